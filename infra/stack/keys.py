"""The keys of a stack file and what may stand there. What goes together, and what a platform can do, is checked after.

Keys are camelCase in the file and snake_case in Python.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainer.contract import spec

DEFAULT_TEXT = Path("data/default.txt")
# AI Platform's presets: workers and parameter servers, beside one master.
TIERS: dict[str, tuple[int, int]] = {
    "BASIC": (0, 0),
    "BASIC_GPU": (0, 0),
    "STANDARD_1": (4, 3),
    "PREMIUM_1": (19, 11),
}
# Their machines: master, worker, parameter server. BASIC_GPU had a K80, which is gone: it gets a T4.
TIER_MACHINES: dict[str, tuple[str, str, str]] = {
    "BASIC": ("n1-standard-4", "", ""),
    "BASIC_GPU": ("n1-standard-8", "", ""),
    "STANDARD_1": ("n1-highcpu-8", "n1-highcpu-8", "n1-standard-4"),
    "PREMIUM_1": ("n1-highcpu-16", "n1-highcpu-16", "n1-highmem-8"),
}
TIER_ACCELERATOR = {"BASIC_GPU": "nvidia-tesla-t4"}
# The oldest that Google still supports with a driver for CUDA 13, which torch's wheels bring (facts of 2026-04).
IMAGE_FAMILY = "common-cu129-ubuntu-2204-nvidia-580"


def _digits(value: Any) -> Any:
    """AI Platform's files quote their 64-bit numbers: workerCount: "10"."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value) else value


Count = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_digits)]


class TrainingInput(spec.Strict):
    """AI Platform's words. Machine types mean nothing to `platform: local`, where a machine is a process."""

    scale_tier: Literal["CUSTOM", "BASIC", "BASIC_GPU", "STANDARD_1", "PREMIUM_1"] = "CUSTOM"
    master_type: str | None = None
    worker_type: str | None = None
    worker_count: Count = 0
    min_workers: Count = 0  # with fewer, no step is taken: those that are there wait
    parameter_server_type: str | None = None
    parameter_server_count: Count = 0
    hyperparameters: spec.Hyperparameters = spec.Hyperparameters()

    def counts(self) -> tuple[int, int]:
        """Workers and parameter servers, of the preset or as counted."""
        return TIERS.get(self.scale_tier, (self.worker_count, self.parameter_server_count))

    def machine_types(self) -> dict[spec.Role, str | None]:
        """The machine type of each role, of the preset or as named."""
        named = (self.master_type, self.worker_type, self.parameter_server_type)
        master, worker, server = TIER_MACHINES.get(self.scale_tier, named)
        return {"master": master, "worker": worker, "ps": server}


class Accelerator(spec.Strict):
    """GPUs of each master and worker. N1 machines alone take them; A2, A3 and G2 have theirs built in."""

    type: str
    count: int = Field(1, ge=1, le=8)


class Machines(spec.Strict):
    """What Google Cloud's machines have in common."""

    accelerator: Accelerator | None = None
    spot: bool = False  # workers only: master and parameter servers would take the others' work with them
    boot_disk_gb: int = Field(200, ge=50, le=65536)
    image_family: str = IMAGE_FAMILY
    zones: list[str] = Field([])  # a run lives in one; each launch takes the next
    reservation: str | None = None  # capacity that was reserved before, by name
    flex_start: bool = False  # wait for capacity, at most 7 days of it


class Limits(spec.Strict):
    """When Google ends the machines, whatever the trainer thinks."""

    max_hours: float = Field(24, ge=0.25, le=2880)  # 120 days are Google's own limit
    max_cost_usd: float | None = Field(None, gt=0)
    billing_account: str | None = None  # with it, e-mail at 50, 90 and 100 % of maxCostUsd; needs billing rights


class Network(spec.Strict):
    nat: bool = False  # the way out to the internet; without it machines reach Google's services alone


class Pipeline(spec.Strict):
    """The GitHub repository whose workflows preview and deploy the stack."""

    repository: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$")  # owner/name


class StackFile(spec.Strict):
    """All keys of this project that a stack file may have."""

    platform: Literal["local", "google"] = "local"
    training_input: TrainingInput
    model: spec.Model
    data: spec.Data
    evaluation: spec.Evaluation = spec.Evaluation()
    checkpoints: spec.Checkpoints = spec.Checkpoints()
    parallel: spec.Parallel = spec.Parallel()
    sweep: spec.Sweep | None = None
    launch: int = Field(1, ge=1, le=1_000_000)
    machines: Machines = Machines()
    limits: Limits = Limits()
    network: Network = Network()
    pipeline: Pipeline | None = None
    image: str | None = None  # NAME@sha256:…, instead of the one that the stack builds from trainer/
    notify: str | None = None  # e-mail address for alerts
    keep_artifacts: bool = True  # on destroy: models, checkpoints, data and images stay


def data_format(data: spec.Data) -> Literal["text", "pairs"]:
    """What the file is: as the stack file says, else by its name."""
    return data.format or ("pairs" if data.path.lower().endswith(".jsonl") else "text")


GOOGLE_ONLY = ("machines", "limits", "network", "pipeline", "image", "notify", "keep_artifacts")
