"""What finished runs reached, by their own metrics: an estimate prefers it to what data sheets promise.

`scripts.estimate` reads the runs of a stack's bucket and keeps the sum in artifacts/measured.json, so that a preview
needs no network and says the same twice. A run that is there keeps its machine: a checkout may move.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.fleet.host import host_cores, this_machine
from infra.sizing import workload
from infra.stack.config import StackConfig
from trainer.contract import geometry, paths, spec
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.records import Status
from trainer.runs.status import read_status
from trainer.storage.base import Storage

FILE = "artifacts/measured.json"
LEAST_STEPS = 50  # fewer say little
WARM_UP = 5  # steps that are not counted
STALLS = 0.01  # of the steps, the slowest: a member was lost, or a machine slept


class Measured(spec.Strict):
    """One run. Its trainers all had the same machine."""

    run: str
    launch: int
    machine: str  # machine_of()
    finished: float  # seconds since the epoch
    steps: int  # that were counted
    step_seconds: float  # mean
    communication_seconds: float  # of them
    tokens: int  # of a step, of the busiest trainer
    flops_a_token: float
    kind: dict[str, str | int | float | bool]  # kind_of()

    @property
    def flops(self) -> float:
        """FLOP/s of one trainer while it does not wait for the network."""
        computing = max(self.step_seconds - self.communication_seconds, 0.05 * self.step_seconds)
        return self.tokens * self.flops_a_token / computing


def machine_of(machine_type: str, accelerator: str, accelerators: int) -> str:
    """A machine of Google Cloud in words."""
    return f"{machine_type} + {accelerators} x {accelerator}" if accelerators else machine_type


def here() -> str:
    """This machine in words."""
    return f"{this_machine()}, {host_cores()} cores"


def kind_of(
    size: geometry.Dimensions, hyper: spec.Hyperparameters, cluster: spec.Cluster, parallel: spec.Parallel
) -> dict[str, str | int | float | bool]:
    """What a step's time depends on beside the machine and the batch: the same kind takes the same time."""
    return {
        "layers": size.layers,
        "width": size.width,
        "vocabulary": size.vocabulary,
        "sequenceLength": hyper.sequence_length,
        "precision": hyper.precision,
        "compile": hyper.compile,
        "trainers": cluster.trainers,
        "servers": cluster.parameter_servers,
        "every": parallel.every,
        "parallelism": parallel.parallelism,
    }


@dataclass(frozen=True)
class Likeness:
    """The newest run on such machines. same: of the same kind, too; else its FLOP/s say something about others."""

    measured: Measured
    same: bool


def like(found: list[Measured], machine: str, kind: dict[str, str | int | float | bool]) -> Likeness | None:
    """The newest run of that kind on such machines; else the newest on such machines that computes alike."""
    on_it = sorted((one for one in found if one.machine == machine), key=lambda one: -one.finished)
    for one in on_it:
        if one.kind == kind:
            return Likeness(one, True)
    alike = ("precision", "compile", "parallelism")
    for one in on_it:
        if all(one.kind.get(key) == kind[key] for key in alike):
            return Likeness(one, False)
    return None


def read(root: Path) -> list[Measured]:
    """What is kept in a checkout; nothing if there is nothing, or if another version wrote it."""
    try:
        return [Measured.model_validate(one) for one in json.loads((root / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def write(root: Path, found: list[Measured]) -> None:
    path = root / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [one.to_json() for one in sorted(found, key=lambda one: (one.finished, one.run))]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def collect(storage: Storage, config: StackConfig, known: list[Measured]) -> tuple[list[Measured], int]:
    """The runs of a bucket that are over and not known, and how many of them say nothing. Raises StorageError."""
    seen, found, silent = {(one.run, one.launch) for one in known}, [], 0
    names = {run for entry in storage.list(paths.RUNS) if (run := paths.run_of_status(entry.path))}
    for run in sorted(run for run in names if paths.sweep_of(run) is None):
        try:
            job = spec.JobSpec.model_validate_json(storage.read(paths.job(run)))
            status = read_status(storage, run)
        except (FileNotFoundError, ValidationError):  # of another version
            silent += 1
            continue
        if status is None or status.state != "SUCCEEDED" or (run, job.launch) in seen:
            continue
        one = measure(storage, job, status, config)
        found += [one] if one else []
        silent += one is None
    return found, silent


def measure(storage: Storage, job: spec.JobSpec, status: Status, config: StackConfig) -> Measured | None:
    """One run; None if it says nothing: too short, trainers with several kinds of machines, a model in a checkpoint."""
    size = workload.dimensions_of(job.model, job.data, config.root)
    machines = {
        machine_of(hardware.machine_type, hardware.accelerator or "", hardware.accelerators)
        for role, hardware in job.hardware.items()
        if role != "ps"
    }
    if not config.google and storage.url.startswith("file://"):
        machines = {here()}
    steps = [r for r in read_metrics(storage, job.run).steps if r.step_seconds and r.step > WARM_UP]
    if size is None or len(machines) != 1 or len(steps) < LEAST_STEPS:
        return None
    steps.sort(key=lambda record: record.step_seconds or 0)
    steps = steps[: max(1, round(len(steps) * (1 - STALLS)))]
    hyper, processes = job.hyperparameters, job.cluster.trainers * job.cluster.processes
    return Measured(
        run=job.run,
        launch=job.launch,
        machine=machines.pop(),
        finished=round(status.finished or status.updated),
        steps=len(steps),
        step_seconds=sum(r.step_seconds or 0 for r in steps) / len(steps),
        communication_seconds=sum(r.communication_seconds or 0 for r in steps) / len(steps),
        tokens=geometry.share(hyper, processes).tokens,
        flops_a_token=size.flops_a_token(hyper.sequence_length),
        kind=kind_of(size, hyper, job.cluster, job.parallel),
    )
