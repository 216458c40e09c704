"""Place the inputs of a run on this machine."""

from pathlib import Path
from typing import Any

from infra.fleet.host import gpus
from infra.inputs import checkpoint
from infra.inputs.placed import Placed
from infra.stack.config import StackConfig
from infra.stack.keys import data_format
from trainer.contract import identity, paths


def place(config: StackConfig, cores: int) -> Placed:
    """On this machine: the text is copied into the bucket, folders are used where they are."""
    file = config.file
    fingerprint = identity.fingerprint(config.text)
    data: dict[str, Any] = {"path": paths.text(fingerprint, config.text.name), "format": data_format(file.data)}
    if file.data.vocabulary_path is not None:
        data["vocabulary_path"] = _located(config.root, file.data.vocabulary_path)
    where = content = None
    if (found := checkpoint.locate(config)) is not None:
        where, content = found.where, found.content
        if file.data.tokenizer == "checkpoint":
            data["vocabulary_path"] = where
    processes = gpus() if file.parallel.parallelism == "fsdp" else 1
    # With more threads than cores, trainers are 20 times slower, and here they share the cores. Parameter servers get
    # none of them: they compute, with one thread, while trainers wait.
    cluster = {"threads": max(1, cores // ((1 + config.workers) * processes))}
    return Placed(fingerprint, data, where, content, cluster | ({"processes": processes} if processes > 1 else {}))


def _located(root: Path, named: str) -> str:
    """Where the folder lies that a stack file names; hub ids and gs:// as they are."""
    folder = root / Path(named).expanduser()
    return str(folder.resolve()) if folder.is_dir() else named
