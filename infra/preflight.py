"""What must be so on this machine before anything starts: the text, the host, the disk. One line a problem."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from infra.stack_file import data_format
from infra.start import FOLDER
from trainer.pairs import PARTS, PairFile, Part, begins_with_a_pair, count_problem, part_of
from trainer.spec import InputError
from trainer.text import check_text

if TYPE_CHECKING:
    from infra.config import StackConfig

DEFAULT_TEXT = Path("data/default.txt")
BYTES_PER_PARAMETER = 12  # of a checkpoint: fp32 parameters and AdamW's two moments
# Of memory, whatever the model: measured.
TRAINER_BYTES = 900_000_000
SERVER_BYTES = 620_000_000
TRAINER_BYTES_PER_PARAMETER = 16  # fp32 parameters, gradients and two moments
SERVERS_BYTES_PER_PARAMETER = {"step": 28, "local": 44}  # of all parameter servers together
PAIRS_READ = 64_000_000  # bytes of a file of pairs: some seconds. What comes after them, who makes the tokens checks
MARGIN = 200_000_000  # bytes to be left free for logs, metrics and everybody else


def text_problems(config: "StackConfig") -> list[str]:
    """What is wrong with the source text."""
    path, named = config.text, config.file.data.path
    parameters = config.file.training_input.hyperparameters
    if "://" in named:
        return [f"data.path: {named} is an address; platform local wants a file of this machine"]
    if not path.exists():
        fix = "python -m scripts.default_corpus makes it" if Path(named) == DEFAULT_TEXT else "check the path"
        return [f"data.path: there is no file {named}; {fix}"]
    try:
        if data_format(config.file.data) == "pairs":
            return _pairs_problems(config)
        size = check_text(path, f"data.path: {named}")
        if config.file.data.format is None and begins_with_a_pair(path):
            fix = "set data.format: pairs, or format: text if that is meant"
            return [f"data.path: {named} begins with a pair of prompt and completion, and would be read as text; {fix}"]
    except InputError as error:
        return [str(error)]
    # A token is a byte or more, so that with less than this there cannot be two batches and one held-out sequence.
    sequence = parameters.sequence_length + 1
    least = max(2 * parameters.batch_size * sequence, int(sequence / config.file.data.validation_fraction) + 1)
    if size < least:
        need = (
            f"batchSize {parameters.batch_size} and sequenceLength {parameters.sequence_length} need at least {least:,}"
        )
        return [f"data.path: {named} is too small, {size:,} bytes; {need}: give more text, or lower these"]
    return []


def _pairs_problems(config: "StackConfig") -> list[str]:
    """What is wrong with a file of pairs. Raises InputError for bad lines."""
    data, parameters, name = config.file.data, config.file.training_input.hyperparameters, config.file.data.path
    counts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    file = PairFile(config.text, f"data.path: {name}", data.skip_bad_lines)
    for line in file:
        counts[part_of(line.pair.prompt, data)] += 1
        size, length = len(line.pair.completion.encode()) + 1, parameters.sequence_length
        if data.tokenizer == "byte" and size > length:  # of the others, tokens are known when they are made
            problem = (
                f"{line.number}: the completion has {size:,} tokens with end-of-text, more than"
                f" trainingInput.hyperparameters.sequenceLength, {length:,}; shorten it, or raise sequenceLength"
            )
            return [f"data.path: {name}:{problem}"]
        if file.done > PAIRS_READ:
            return []
    few = count_problem(counts, parameters.batch_size)
    return [f"data.path: {name}: {few}"] if few else []


def host_problems(config: "StackConfig") -> list[str]:
    """What this machine cannot do."""
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
    if file.parallel.parallelism == "fsdp" and (found := gpus()) < 2:
        problems.append(
            f"parallel.parallelism: fsdp shares a model among the GPUs of one machine, and this one has {found}; use"
            " replicas"
        )
    precision = file.training_input.hyperparameters.precision
    if precision == "fp16" and not gpus():
        problems.append("trainingInput.hyperparameters.precision: fp16 needs a GPU, and here is none; use auto or fp32")
    trainers, who = 1 + config.workers, f"{1 + config.workers} trainers"
    need = trainers * (TRAINER_BYTES + TRAINER_BYTES_PER_PARAMETER * _parameters(config))
    if config.servers:
        who += f" and {config.servers} parameter servers"
        need += config.servers * SERVER_BYTES + SERVERS_BYTES_PER_PARAMETER[
            file.parallel.synchronization
        ] * _parameters(config)
    memory = psutil.virtual_memory().total
    if need > memory:
        problems.append(
            f"trainingInput.workerCount: {who} of this model need about {need / 1e9:.0f} GB of memory, and this machine"
            f" has {memory / 1e9:.0f}; use fewer machines or a smaller model"
        )
    value = file.data.vocabulary_path
    if value and value.startswith(FOLDER) and not (config.root / Path(value).expanduser()).exists():
        problems.append(f"data.vocabularyPath: there is no folder {value}; check the path")
    return problems


def gpus() -> int:
    """How many NVIDIA GPUs this machine has, as its driver says: torch would take seconds to be asked."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _parameters(config: "StackConfig") -> int:
    """About how many the model has; 0 where only a checkpoint knows."""
    file = config.file
    if file.model.initialize is not None:
        return 0
    layers, _, width = file.model.dimensions()
    words = {"train": file.data.vocabulary_size, "byte": 257}.get(file.data.tokenizer, 50304)
    return 12 * layers * width**2 + (words + file.model.positions) * width


def disk_problem(config: "StackConfig", run: str) -> str | None:
    """Whether a new run's files will fit on the disk."""
    folder = config.root.resolve() / "artifacts" / config.stack
    if (folder / "runs" / run).exists():  # it was let in before, and may be finished
        return None
    file = config.file
    copies = (
        5 if data_format(file.data) == "pairs" else 3
    )  # the copy, and tokens of two bytes; texts and index of pairs
    need = MARGIN + copies * config.text.stat().st_size
    kept = file.checkpoints.keep
    if file.checkpoints.keep_every is not None:
        kept += file.training_input.hyperparameters.steps // file.checkpoints.keep_every
    need += _parameters(config) * BYTES_PER_PARAMETER * (kept + 2)
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    if free >= need:
        return None
    return (
        f"checkpoints.keep: {kept} checkpoints, one being written, the model and the data need"
        f" {need / 1e9:.1f} GB in artifacts/{config.stack}, and {free / 1e9:.1f} GB are free;"
        " make room, keep fewer, or use a smaller model"
    )
