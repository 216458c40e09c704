"""Define JobSpec, the one contract between infra/, which declares a run, and trainer/, which carries it out.

`infra/` validates a stack file into these models and stores a JobSpec as `runs/<run>/job.json`; every machine
reads it back. Keys are camelCase in both files and snake_case in Python.
"""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from trainer.contract.options import Checkpoints, Data, Evaluation, Hyperparameters, Model, Parallel, Strict
from trainer.contract.sweep_options import Sweep

Role = Literal["master", "worker", "ps"]
ROLES: tuple[Role, ...] = get_args(Role)


class Cluster(Strict):
    """The members of a run, and what each has. The master trains too: trainers = 1 + workers."""

    workers: int = Field(0, ge=0)
    min_workers: int = Field(0, ge=0)
    parameter_servers: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)  # CPU threads of each trainer process
    processes: int = Field(1, ge=1)  # processes of each trainer machine: one for each GPU
    gpus: int = Field(0, ge=0)  # GPUs of each trainer machine; 0 where it computes on its CPU
    trainer_gbps: float | None = Field(None, gt=0)  # Gbit/s of a trainer's network; None if not known
    server_gbps: float | None = Field(None, gt=0)  # the same of a parameter server

    @property
    def trainers(self) -> int:
        return 1 + self.workers

    def machines(self) -> list[tuple[str, Role]]:
        """Return the name and role of every machine, master first."""
        names: list[tuple[str, Role]] = [("master-0", "master")]
        names += [(f"worker-{i}", "worker") for i in range(self.workers)]
        names += [(f"ps-{i}", "ps") for i in range(self.parameter_servers)]
        return names


class Hardware(Strict):
    """The machines of a role on Google Cloud, as they were declared."""

    machine_type: str
    accelerator: str | None = None
    accelerators: int = Field(0, ge=0)  # GPUs of each machine
    spot: bool = False
    usd_per_hour: float | None = Field(None, ge=0)  # list price of one machine with its disk; None if not known


class JobSpec(Strict):
    """A whole run. `run` is its name; identity.run_id() explains what the name depends on."""

    run: str
    launch: int = Field(1, ge=1)
    model: Model
    data: Data
    fingerprint: str  # a hash of the source text: identity.fingerprint()
    code: str  # a hash of the trainer: identity.code_hash(), or the digest of a pinned image
    hyperparameters: Hyperparameters
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    parallel: Parallel = Parallel()
    cluster: Cluster = Cluster()
    sweep: Sweep | None = None
    hardware: dict[Role, Hardware] = Field(
        default_factory=dict
    )  # empty for a local stack; it does not change the result

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hyperparameters.sequence_length > self.model.positions:
            raise ValueError(
                f"sequenceLength {self.hyperparameters.sequence_length} is longer than the model's"
                f" {self.model.positions} positions"
            )
        return self
