"""Check, before a local stack starts, that this computer can run it: platform, GPUs, memory, disk."""

import platform
import shutil
import sys
from pathlib import Path

import psutil

from infra.fleet.host import gpus
from infra.inputs.checkpoint import FOLDER
from infra.sizing.memory import SERVER_BYTES, SERVERS_BYTES_PER_PARAMETER, TRAINER_BYTES
from infra.sizing.workload import dimensions_of
from infra.stack.config import StackConfig
from infra.stack.keys import data_format
from trainer.contract import paths

BYTES_PER_PARAMETER = 12  # in a checkpoint: fp32 parameters and AdamW's two moments
TRAINER_BYTES_PER_PARAMETER = 16  # fp32 parameters, gradients and two moments
MARGIN = 200_000_000  # bytes that stay free for logs, metrics and other programs


def host_problems(config: StackConfig) -> list[str]:
    """Return what this computer cannot do for a local stack, a line each, without the project's name."""
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
    if file.parallel.parallelism == "fsdp" and (own_gpus := gpus()) < 2:
        problems.append(
            f"parallel.parallelism: fsdp shares a model among the GPUs of one machine, and this one has {own_gpus}; use"
            " replicas"
        )
    precision = file.training_input.hyperparameters.precision
    if precision == "fp16" and not gpus():
        problems.append("trainingInput.hyperparameters.precision: fp16 needs a GPU, and here is none; use auto or fp32")
    trainers, members = 1 + config.workers, f"{1 + config.workers} trainers"
    need = trainers * (TRAINER_BYTES + TRAINER_BYTES_PER_PARAMETER * _parameters(config))
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
