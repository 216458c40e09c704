"""The keys of a stack file and what may stand there. What goes together, and what a platform can do, is checked after.

Keys are camelCase in the file and snake_case in Python.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.alias_generators import to_camel

from trainer import spec, sweep

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


def combination_problems(file: StackFile) -> list[str]:
    """Values that are fine alone and not together, on any platform; one line each, starting with the key."""
    problems = []
    training, parameters = file.training_input, file.training_input.hyperparameters
    workers, servers = training.counts()
    if training.scale_tier in TIERS:
        given = {"worker_count": "workerCount", "parameter_server_count": "parameterServerCount"}
        if file.platform == "google":
            given |= {"master_type": "masterType", "worker_type": "workerType"}
            given |= {"parameter_server_type": "parameterServerType"}
        for name in given.keys() & training.model_fields_set:
            problems.append(
                f"trainingInput.{given[name]}: scaleTier {training.scale_tier} sets it; remove one, or use CUSTOM"
            )
    if parameters.batch_size < 1 + workers:
        problems.append(
            f"trainingInput.hyperparameters.batchSize: found {parameters.batch_size}, less than the {1 + workers}"
            f" trainers (master and {workers} workers); use at least {1 + workers}, or fewer workers"
        )
    if training.min_workers > workers:
        problems.append(
            f"trainingInput.minWorkers: found {training.min_workers}, more than the {workers} workers there will be;"
            f" use at most {workers}"
        )
    if parameters.sequence_length > file.model.positions:
        problems.append(
            f"trainingInput.hyperparameters.sequenceLength: found {parameters.sequence_length}, longer than"
            f" model.positions, {file.model.positions}; shorten it or raise model.positions"
        )
    if parameters.warmup_steps > parameters.steps:
        problems.append(
            f"trainingInput.hyperparameters.warmupSteps: found {parameters.warmup_steps}, more than steps,"
            f" {parameters.steps}; use at most {parameters.steps}"
        )
    if file.data.vocabulary_path is not None and file.data.tokenizer != "gpt2":
        problems.append(
            f"data.vocabularyPath: belongs to tokenizer gpt2, found {file.data.tokenizer}; remove it, or use gpt2"
        )
    if data_format(file.data) == "text":
        problems += [
            f"data.{to_camel(name)}: belongs to format pairs, and {file.data.path} is taken for text; remove it, or set"
            " data.format: pairs"
            for name in ("test_fraction", "skip_bad_lines")
            if name in file.data.model_fields_set
        ]
    task = file.evaluation.task
    if task is not None and (problem := spec.format_problem(task, data_format(file.data))):
        if file.data.format is None and task != "text":  # as its name says
            problem += ", or set data.format: pairs"
        problems.append(problem)
    often, keep = file.checkpoints.every, file.checkpoints.keep_every
    if keep is not None and (problem := _multiple("checkpoints.keepEvery", keep, "checkpoints.every", often)):
        problems.append(problem)
    problems += _model_problems(file, servers)
    problems += _parallel_problems(file, workers, servers)
    if file.sweep is not None:
        problems += sweep.problems(file.sweep, parameters, 1 + workers, file.model.positions)
    if file.platform == "local":
        problems += [
            f"{to_camel(name)}: means something to platform google only; set platform: google, or remove it"
            for name in GOOGLE_ONLY
            if name in file.model_fields_set
        ]
    return problems


def _model_problems(file: StackFile, servers: int) -> list[str]:
    """What starts from a checkpoint, and what does not."""
    problems = []
    if file.data.tokenizer == "checkpoint" and file.model.initialize is None:
        problems.append("data.tokenizer: checkpoint needs model.initialize, or use train, gpt2 or byte")
    if file.data.tokenizer == "train" and file.model.initialize is not None:
        problems.append(
            "data.tokenizer: train makes a vocabulary that the checkpoint of model.initialize does not know; use"
            " checkpoint"
        )
    if file.model.lora is None:
        return problems
    if file.model.initialize is None:
        problems.append(
            "model.lora: trains a few parameters beside those of a checkpoint, and there is none; set model.initialize"
            " instead of a size, or remove lora"
        )
    if servers:
        problems.append(
            f"model.lora: is for one process or data parallel, and there are {servers} parameter servers; set"
            " trainingInput.parameterServerCount to 0, or remove lora"
        )
    if file.parallel.parallelism == "fsdp":
        problems.append(
            "model.lora: is for one process or data parallel, found parallel.parallelism fsdp; use replicas, or remove"
            " lora"
        )
    return problems


def _parallel_problems(file: StackFile, workers: int, servers: int) -> list[str]:
    """How the trainers are to share the work, and with whom."""
    parallel, problems = file.parallel, []
    if parallel.parallelism == "fsdp" and (workers or servers):
        problems.append(
            "parallel.parallelism: fsdp shares a model among the GPUs of the master alone, and there are"
            f" {workers} workers and {servers} parameter servers; use 0 of both, or parallelism: replicas"
        )
    if not servers:
        for name, found, usual in (("plan", parallel.plan, "auto"), ("wire", parallel.wire, "fp32")):
            if found != usual:
                problems.append(
                    f"parallel.{name}: found {found}, and there are no parameter servers that it could mean; remove it,"
                    " or set trainingInput.parameterServerCount to 1 or more"
                )
    if parallel.synchronization == "step":
        if parallel.every > 1:
            problems.append(
                f"parallel.every: found {parallel.every}, but trainers meet at every step; add synchronization: local,"
                " or remove it"
            )
        return problems
    if not servers:
        problems.append(
            "parallel.synchronization: local needs parameter servers, which hold what the trainers agree on, and there"
            " are none; set trainingInput.parameterServerCount to 1 or more, or use step"
        )
    if parallel.every < 2:
        problems.append(
            "parallel.every: found 1, but with synchronization: local it is the steps from one meeting of the trainers"
            " to the next; use 2 or more, for example 16"
        )
    for key, value in (("evaluation.every", file.evaluation.every), ("checkpoints.every", file.checkpoints.every)):
        if problem := _multiple(key, value, "parallel.every", parallel.every):  # only then is there one model
            problems.append(problem)
    if (optimizer := file.training_input.hyperparameters.optimizer) != "adamw":
        problems.append(
            f"trainingInput.hyperparameters.optimizer: found {optimizer}, but parallel.synchronization: local is for"
            " adamw; use adamw, or synchronization: step"
        )
    return problems


def _multiple(key: str, value: int, of: str, unit: int) -> str | None:
    """What to say if a number of steps is no multiple of another."""
    if value % unit == 0:
        return None
    return f"{key}: found {value}, must be a multiple of {of}, {unit}; use {max(round(value / unit), 1) * unit}"
