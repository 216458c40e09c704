"""Find everything that a run starts from, once, and report every problem with it together.

Nothing here needs the network or a login: a preview resolves inputs by reading files of this machine alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.inputs import checkpoint, docker, google
from infra.inputs.checkpoint import Checkpoint
from infra.inputs.data_lock import read_lock
from infra.inputs.text import text_problems
from infra.stack.config import PROJECT, ConfigError, StackConfig
from infra.stack.keys import data_format
from trainer.contract import identity, paths
from trainer.contract.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run: where they were found, and how its machines reach them."""

    fingerprint: str  # of the text's content
    text: Path | None  # the file to put into the run's bucket; None if a lock file says that it is in a bucket
    vocabulary: Path | None  # the folder with GPT-2's vocabulary to put into the machines' bucket, if there is one
    docker: Path | None  # the archive to put there too, if the machines' image may have no Docker
    checkpoint: Checkpoint | None
    data: dict[str, Any]  # fields of spec.Data that differ from the stack file's


def resolve(config: StackConfig, on_host: Sequence[str] = ()) -> Inputs:
    """Find what the run of a stack starts from.

    Args:
        config: a stack file that is consistent in itself.
        on_host: what else keeps the run from starting here, to be reported with the inputs' problems.

    Raises:
        ConfigError: inputs are missing, do not fit the run or are out of the machines' reach; one line for each.
        InputError: the text's lock file cannot be used.
    """
    # The text, or the lock file that stands for it; and GPT-2's vocabulary for machines without internet.
    named = config.file.data
    lock = folder = None
    if config.google:
        lock = read_lock(config.text, named.path, config.stack) if "://" not in named.path else None
        folder = google.vocabulary_folder(config)
        problems = google.text_problems(config, lock)
        for problem in (google.vocabulary_problem(config, folder), docker.archive_problem(config)):
            if problem:
                problems.append(problem)
    else:
        problems = text_problems(config)

    # The checkpoint of model.initialize.
    start = None
    try:
        start = checkpoint.locate(config)
    except InputError as error:
        problems.append(str(error))
    if start is not None and start.folder is not None:
        problems += checkpoint.misfits(config, start.folder)
    problems += on_host
    if problems:
        raise ConfigError([f"{PROJECT}:{problem}" for problem in problems])

    # How the machines reach them. To hash the text takes longest, so problems come first.
    fingerprint = lock.fingerprint if lock else identity.fingerprint(config.text)
    path = paths.text(fingerprint, config.text.name)
    if config.google:
        path = lock.url if lock else f"{config.data_bucket}/{path}"
    data: dict[str, Any] = {"path": path, "format": data_format(named)}
    if folder is not None:
        data["vocabulary_path"] = f"{config.data_bucket}/{paths.VOCABULARY}"
    elif not config.google and named.vocabulary_path is not None:
        data["vocabulary_path"] = _absolute(config.root, named.vocabulary_path)
    if start is not None and named.tokenizer == "checkpoint":
        data["vocabulary_path"] = start.where
    archive = docker.archive_file(config) if config.google and docker.needs_archive(config) else None
    return Inputs(fingerprint, None if lock else config.text, folder, archive, start, data)


def _absolute(root: Path, named: str) -> str:
    """Return the whole path of a folder that a stack file names; a hub id or a gs:// address stays as it is."""
    folder = root / Path(named).expanduser()
    return str(folder.resolve()) if folder.is_dir() else named
