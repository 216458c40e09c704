"""Define the keys of a stack file and the values that they take.

Keys are camelCase in the file and snake_case in Python. infra/checks decides afterwards which keys go together and what
a platform can do. Descriptions go into docs/stack.schema.json and docs/reference.md: run `make schema` after a change.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.contract import options, spec
from trainer.contract.sweep_options import Sweep

DEFAULT_TEXT = Path("data/default.txt")
# AI Platform's presets: the numbers of workers and of parameter servers, besides one master.
TIERS: dict[str, tuple[int, int]] = {
    "BASIC": (0, 0),
    "BASIC_GPU": (0, 0),
    "STANDARD_1": (4, 3),
    "PREMIUM_1": (19, 11),
}
# The machine types of these presets: master, worker, parameter server.
TIER_MACHINES: dict[str, tuple[str, str, str]] = {
    "BASIC": ("n1-standard-4", "", ""),
    "BASIC_GPU": ("n1-standard-8", "", ""),
    "STANDARD_1": ("n1-highcpu-8", "n1-highcpu-8", "n1-standard-4"),
    "PREMIUM_1": ("n1-highcpu-16", "n1-highcpu-16", "n1-highmem-8"),
}
TIER_ACCELERATOR = {"BASIC_GPU": "nvidia-tesla-t4"}  # the preset's K80 is gone
# Container-Optimized OS has Docker, and Google supports this version to July 2028.
IMAGE_FAMILY = "cos-129-lts"


def _digits(value: Any) -> Any:
    """Return a quoted number as an integer: AI Platform's files quote their 64-bit numbers, workerCount: "10"."""
    return int(value) if isinstance(value, str) and re.fullmatch(DIGITS, value) else value


DIGITS = "[0-9]{1,6}"
Count = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_digits)]


class TrainingInput(options.Strict):
    """Machines and hyperparameters, in the words of AI Platform's trainingInput."""

    scale_tier: Literal["CUSTOM", "BASIC", "BASIC_GPU", "STANDARD_1", "PREMIUM_1"] = Field(
        "CUSTOM",
        description="CUSTOM takes the types and counts below. The others are AI Platform's presets: BASIC is a master,"
        " BASIC_GPU a master with a T4, STANDARD_1 has 4 workers and 3 parameter servers, PREMIUM_1 19 and 11.",
    )
    master_type: str | None = Field(
        None,
        description="Google Cloud only: the machine type of the master, such as n1-standard-16: E2, N1, N2, N2D, N4,"
        " C3, C3D, C4, C4D, or with GPUs built in G2, G4, A2, A3, A4 (docs/google-cloud.md lists them). On this machine"
        " a machine is a process.",
    )
    worker_type: str | None = Field(None, description="Google Cloud only: the machine type of each worker.")
    worker_count: Count = Field(
        0,
        description="The number of workers. The master trains too, so there are 1 + workerCount trainers; their number"
        " does not change the result.",
    )
    min_workers: Count = Field(
        0, description="With fewer workers than this, no step is taken: those that are there wait."
    )
    parameter_server_type: str | None = Field(
        None, description="Google Cloud only: the machine type of each parameter server."
    )
    parameter_server_count: Count = Field(
        0,
        description="The number of parameter servers, each of which holds a part of the parameters and of the"
        " optimizer's state. With 0 the trainers exchange gradients among themselves; the result is the same.",
    )
    hyperparameters: options.Hyperparameters = Field(
        options.Hyperparameters(), description="What is optimized and how. A change of one of these is a new run."
    )

    def counts(self) -> tuple[int, int]:
        """Return the numbers of workers and of parameter servers, of the preset or as counted."""
        return TIERS.get(self.scale_tier, (self.worker_count, self.parameter_server_count))

    def machine_types(self) -> dict[spec.Role, str | None]:
        """Return the machine type of each role, of the preset or as named."""
        named = (self.master_type, self.worker_type, self.parameter_server_type)
        master, worker, server = TIER_MACHINES.get(self.scale_tier, named)
        return {"master": master, "worker": worker, "ps": server}


class Accelerator(options.Strict):
    """GPUs of each master and worker."""

    type: str = Field(description="The GPU model, such as nvidia-tesla-t4.")
    count: int = Field(1, ge=1, le=8, description="The number of GPUs of each machine.")


class MachineSettings(options.Strict):
    """The settings that all machines on Google Cloud share."""

    accelerator: Accelerator | None = Field(
        None,
        description="The GPUs to attach to the master and to each worker. Only N1 machines take them; G2, G4, A2, A3"
        " and A4 have theirs built in.",
    )
    spot: bool = Field(
        False,
        description="Run the workers as Spot VMs, which cost about a third and may be taken away at any time. The"
        " master and the parameter servers stay on demand, as all others depend on them.",
    )
    boot_disk_gb: int = Field(
        200,
        ge=50,
        le=65536,
        description="The size of each machine's boot disk, in GB. A Deep Learning VM image alone takes 50.",
    )
    image_family: str = Field(
        IMAGE_FAMILY,
        description="The family of images that machines boot from: of Container-Optimized OS (cos-...), Ubuntu with"
        " NVIDIA's driver (ubuntu-accelerator-...), Ubuntu without it (other ubuntu-..., for machines without GPUs) or"
        " Deep Learning VM (others). A driver of the image must be for CUDA 13.",
    )
    zones: list[str] = Field(
        [],
        description="Zones of gcp:region to run in. The machines of a run share one: where Google likely has them."
        " The run moves to another if they do not come. By default all zones that are known to have the machines.",
    )
    reservation: str | None = Field(
        None, description="The name of a reservation whose machines master and workers use."
    )
    flex_start: bool = Field(
        False,
        description="Wait in Google's queue for machines, which may take days. They stay for 7 days at most. Only for"
        " machines with GPUs built in.",
    )
    compact_placement: bool = Field(
        False,
        description="Ask Google to place the machines close together, which lowers the network's latency. Capacity is"
        " found less often. Not for N1, E2 and N4 machines, and not with flexStart or a reservation.",
    )


class RunLimits(options.Strict):
    """The time at which Google ends the machines, whatever the trainer does."""

    max_hours: float = Field(
        24,
        ge=0.25,
        le=2880,
        description="Hours from the start of a launch to the end of its machines. Google's own limit is 120 days.",
    )
    max_cost_usd: float | None = Field(
        None,
        gt=0,
        description="USD by the price list after which the machines end, if that is before maxHours. It is an estimate,"
        " not a cap on the bill.",
    )
    billing_account: str | None = Field(
        None,
        description="The billing account for a budget of maxCostUsd, which sends e-mail at 50, 90 and 100 %. The"
        " deployer needs rights on it.",
    )


class NetworkSettings(options.Strict):
    """The machines' way to the internet."""

    nat: bool = Field(
        False,
        description="Give machines a way out to the internet, for example to the hub. Without it they reach Google's"
        " services alone.",
    )


class PipelineSettings(options.Strict):
    """The GitHub repository whose workflows preview and deploy the stack."""

    repository: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$",
        description="The repository, as owner/name, in GitHub's own capitals and small letters.",
    )
    repository_id: int = Field(
        ge=1,
        description="The repository's number, which stays its own when it is renamed. `gh api repos/OWNER/NAME --jq"
        " .id` prints it.",
    )


class StackFile(options.Strict):
    """All keys of this project that a stack file may have."""

    platform: Literal["local", "google"] = Field(
        "local",
        description="Where the machines are: processes of this machine, or VMs on Google Cloud. To change it, make"
        " another stack.",
    )
    training_input: TrainingInput = Field(
        description="Machines and hyperparameters, in the words of AI Platform's trainingInput."
    )
    model: options.Model = Field(
        description="The network: a size by name, or layers, heads and width, or a checkpoint to start from. A change"
        " is a new run."
    )
    data: options.Data = Field(description="The text and how it becomes tokens. A change is a new run.")
    evaluation: options.Evaluation = Field(
        options.Evaluation(), description="How often and on what the model is measured."
    )
    checkpoints: options.Checkpoints = Field(
        options.Checkpoints(),
        description="How often a run is saved. It continues from a checkpoint after a crash, or after pulumi destroy"
        " and pulumi up.",
    )
    parallel: options.Parallel = Field(options.Parallel(), description="How the trainers share a step's work.")
    sweep: Sweep | None = Field(
        None, description="Train many trials with other hyperparameters, one after the other, and keep the best model."
    )
    launch: int = Field(
        1,
        ge=1,
        le=1_000_000,
        description="Raise it by one to start a run again that FAILED or was STOPPED: it continues from its newest"
        " checkpoint. On Google Cloud it also takes another zone.",
    )
    machines: MachineSettings = Field(
        MachineSettings(), description="Google Cloud only: what the machines have in common. A change replaces them."
    )
    limits: RunLimits = Field(
        RunLimits(), description="Google Cloud only: when Google ends the machines, whatever the trainer does."
    )
    network: NetworkSettings = Field(
        NetworkSettings(), description="Google Cloud only: the machines' way to the internet."
    )
    pipeline: PipelineSettings | None = Field(
        None, description="Google Cloud only: the GitHub repository whose workflows preview and deploy the stack."
    )
    image: str | None = Field(
        None,
        description="Google Cloud only: an image NAME@sha256:… to run instead of the one that the stack builds from"
        " trainer/. python -m scripts.build_image prints it. A change is a new run.",
    )
    notify: str | None = Field(None, description="Google Cloud only: the e-mail address that gets the alerts.")
    keep_artifacts: bool = Field(
        True,
        description="Google Cloud only: keep buckets, images and the registry when the stack is destroyed. With false,"
        " models, checkpoints and data go too.",
    )


def data_format(data: options.Data) -> Literal["text", "pairs"]:
    """Return what the data file is: as the stack file says, else by its name."""
    return data.format or ("pairs" if data.path.lower().endswith(".jsonl") else "text")


GOOGLE_ONLY = ("machines", "limits", "network", "pipeline", "image", "notify", "keep_artifacts")
