"""Check, before a local stack starts, that this computer can run it: platform, GPUs, memory, disk."""

import platform
import shutil
import sys
from pathlib import Path

import psutil

from infra.checks.sharing import sharing_problems
from infra.fleet.fleet import Fleet
from infra.fleet.host import host_gpus
from infra.inputs.checkpoint import FOLDER
from infra.sizing.memory import SERVER_BYTES, SERVERS_BYTES_PER_PARAMETER
from infra.sizing.workload import dimensions_of
from infra.stack.config import StackConfig
from infra.stack.keys import data_format
from trainer.contract import paths
from trainer.contract.memory import TRAINER_BYTES

BYTES_PER_PARAMETER = 12  # in a checkpoint: fp32 parameters and AdamW's two moments
PARAMETER_BYTES = 4  # of a parameter, a gradient or a moment
MARGIN = 200_000_000  # bytes that stay free for logs, metrics and other programs


def host_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return what this computer cannot do for a local stack, a line each, without the project's name.

    fleet: the stack's machines, which are processes of this computer.
    """
    problems = []
    system, processor, version = platform.system(), platform.machine(), sys.version_info[:2]
    if not (system == "Linux" and processor in ("x86_64", "AMD64") and (3, 11) <= version <= (3, 13)):
        problems += [
            f"trainingInput.{key}: found {count}, but torchft, by which machines work together, exists for Linux on"
            f" x86-64 with Python 3.11 to 3.13, and this is {system} on {processor} with Python"
            f" {version[0]}.{version[1]}; use 0"
            for key, count in (("workerCount", config.workers), ("parameterServerCount", config.servers))
            if count
        ]
    file = config.file
    problems += _gpu_problems(config) or sharing_problems(config, fleet)
    precision = file.training_input.hyperparameters.precision
    if precision == "fp16" and not host_gpus():
        problems.append("trainingInput.hyperparameters.precision: fp16 needs a GPU, and here is none; use auto or fp32")
    trainers, members = 1 + config.workers, f"{1 + config.workers} trainers"
    need = trainers * _trainer_bytes(config, fleet)
    if config.servers:
        members += f" and {config.servers} parameter servers"
        need += config.servers * SERVER_BYTES + SERVERS_BYTES_PER_PARAMETER[
            file.parallel.synchronization
        ] * _parameters(config)
    memory = psutil.virtual_memory().total
    if need > memory:
        problems.append(
            f"trainingInput.workerCount: {members} of this model need about {need / 1e9:.0f} GB of memory, and this"
            f" machine has {memory / 1e9:.0f}; use fewer machines or a smaller model"
        )
    value = file.data.vocabulary_path
    if value and value.startswith(FOLDER) and not (config.root / Path(value).expanduser()).exists():
        problems.append(f"data.vocabularyPath: there is no folder {value}; check the path")
    return problems


def _gpu_problems(config: StackConfig) -> list[str]:
    """Return why the trainers cannot share out this computer's GPUs, without the project's name."""
    gpus, trainers = host_gpus(), 1 + config.workers
    problems = []
    if 0 < len(gpus) < trainers:
        use = f"use at most {len(gpus) - 1}" if len(gpus) > 1 else "use 0"
        problems.append(
            f"trainingInput.workerCount: found {trainers} trainers (master and {config.workers} workers), and this"
            f" machine has {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}; {use}, or set CUDA_VISIBLE_DEVICES to nothing"
            " to train on its CPU"
        )
    of_model: dict[str, list[str]] = {}
    for gpu in gpus:
        if gpu.model:
            of_model.setdefault(gpu.model, []).append(gpu.device)
    if len(of_model) > 1:
        found = ", ".join(f"{len(devices)} x {model}" for model, devices in of_model.items())
        most = max(of_model.values(), key=len)
        problems.append(
            f"platform: local would train on GPUs of several models, {found}, and each gets the same part of a step;"
            f" choose those of one model, for example CUDA_VISIBLE_DEVICES={','.join(most)}"
        )
    return problems


def _trainer_bytes(config: StackConfig, fleet: Fleet) -> int:
    """Return the bytes of this computer's memory that a trainer takes: all its processes together."""
    processes, parameters = fleet.processes_per_trainer, _parameters(config)
    if fleet.gpus_per_trainer:  # each process makes the model here, then moves it to its GPU
        return processes * (TRAINER_BYTES + PARAMETER_BYTES * parameters)
    # Parameters and gradients are of each process, with fsdp shared; the two moments are always shared.
    copies = 1 if config.file.parallel.parallelism == "fsdp" else processes
    return processes * TRAINER_BYTES + 2 * (copies + 1) * PARAMETER_BYTES * parameters


def _parameters(config: StackConfig) -> int:
    """Return how many parameters a new model has; 0 for one that starts from a checkpoint, which alone knows."""
    file = config.file
    size = dimensions_of(file.model, file.data, config.root) if file.model.initialize is None else None
    return size.parameters if size else 0


def disk_problem(config: StackConfig, run: str) -> str | None:
    """Return a problem if a new run's files will not fit on the disk."""
    folder = config.root.resolve() / "artifacts" / config.stack
    if (folder / paths.run(run)).exists():  # it was checked before, and may be finished
        return None
    file = config.file
    # The text's copy and its tokens of two bytes; for pairs also their texts and index.
    copies = 5 if data_format(file.data) == "pairs" else 3
    need = MARGIN + copies * config.text.stat().st_size
    checkpoint_count = file.checkpoints.keep
    if file.checkpoints.keep_every is not None:
        checkpoint_count += file.training_input.hyperparameters.steps // file.checkpoints.keep_every
    need += _parameters(config) * BYTES_PER_PARAMETER * (checkpoint_count + 2)
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free >= need:
        return None
    return (
        f"checkpoints.keep: {checkpoint_count} checkpoints, one being written, the model and the data need"
        f" {need / 1e9:.1f} GB in artifacts/{config.stack}, and {free / 1e9:.1f} GB are free;"
        " make room, keep fewer, or use a smaller model"
    )
