"""Locate the checkpoint of model.initialize: a folder, an address, a hub id, or a finished run by its id.

Nothing here needs the network or a login: a preview reads files of this machine alone.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from infra.stack.config import StackConfig
from trainer.contract import errors, identity, paths, wording
from trainer.contract.geometry import VOCABULARY_MULTIPLE
from trainer.runs.status import read_status
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

# Names of runs as identity.run_id() makes them, and trials of a sweep. No hub id has such an ending.
RUN = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}(/trials/\d+)?")
ADDRESS = re.compile(rf"(?P<bucket>(gs|file)://.+)/{paths.RUNS}/(?P<run>[^/]+(/trials/\d+)?)(/model)?/*")
FOLDER = ("/", "./", "../", "~")  # a hub id begins with none of these
TOKENS = {"byte": 257, "gpt2": 50257}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a run starts from."""

    where: str  # the address or folder from which the machines read it
    name: str  # its last part goes into the name of a run that starts from it
    folder: Path | None = None  # its folder on this machine, if it is here

    def content(self) -> str:
        """Return its name, with a hash of its files if they are on this machine. The run's own hash covers this."""
        if self.folder is None:
            return self.name
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return f"{identity.hash_files(self.folder, files)}/{self.name}"


def locate(config: StackConfig) -> Checkpoint | None:
    """Return the checkpoint of model.initialize, None if the stack file has none; hub and buckets are not asked.

    Raise InputError if the checkpoint is not there or out of the machines' reach.
    """
    named = config.file.model.initialize
    if named is None:
        return None
    address = ADDRESS.fullmatch(named)
    if address is not None and named.startswith("gs://"):
        return _in_bucket(address["bucket"], address["run"])
    is_file_url = named.startswith("file://")
    folder = _path(named) if is_file_url else config.root / Path(named).expanduser()
    if config.google and (is_file_url or folder.is_dir()):
        raise errors.InputError(
            f"model.initialize: {named} is a folder here, which the machines cannot read; copy it into a bucket"
            " (gcloud storage cp -r) and give its gs:// address"
        )
    if address is not None:
        return _of_run(address["run"], [_path(address["bucket"])])
    if folder.is_dir():
        return Checkpoint(str(folder.resolve()), folder.name, folder)
    if is_file_url or named.startswith(FOLDER):
        raise errors.InputError(f"model.initialize: there is no folder {named}; check the path")
    buckets = _buckets(config)
    if any((bucket / paths.run(named)).is_dir() for bucket in buckets) or RUN.fullmatch(named):
        return _in_bucket(config.bucket, named) if config.google else _of_run(named, buckets)
    if config.google and not named.startswith("gs://") and not config.file.network.nat:
        raise errors.InputError(
            f"model.initialize: {named} is on the hub, and the machines have no internet; set network.nat: true,"
            " or give a gs:// address"
        )
    return Checkpoint(named, named)


def misfits(config: StackConfig, folder: Path) -> list[str]:
    """Return why the checkpoint in a folder of this machine cannot start this run, one line for each reason."""
    named, data = config.file.model.initialize, config.file.data
    try:
        model_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, positions, vocabulary = (model_config.get(key) for key in ("model_type", "n_positions", "vocab_size"))
    except FileNotFoundError:
        return [f"model.initialize: {named} has no config.json; give a checkpoint's folder"]
    except (OSError, ValueError, AttributeError):
        return [f"model.initialize: config.json of {named} cannot be read; fetch it again"]
    if kind != "gpt2":
        return [f"model.initialize: {named} is a {kind} model; only GPT-2 can be trained"]
    lines = []
    length = config.file.training_input.hyperparameters.sequence_length
    if isinstance(positions, int) and length > positions:
        lines.append(
            f"trainingInput.hyperparameters.sequenceLength: found {length}, longer than the {positions} positions of"
            f" {named}; use at most {positions}"
        )
    tokens = TOKENS.get(data.tokenizer)
    if tokens is not None and isinstance(vocabulary, int) and not tokens <= vocabulary < tokens + VOCABULARY_MULTIPLE:
        lines.append(
            f"data.tokenizer: {data.tokenizer} has {tokens:,} tokens, and {named} knows {vocabulary:,} others; set"
            " data.tokenizer: checkpoint"
        )
    elif data.tokenizer in ("byte", "gpt2") and _other_tokens(folder, data.tokenizer):
        lines.append(
            f"data.tokenizer: {data.tokenizer} has other tokens than the tokenizer.json of {named}, though as many; set"
            " data.tokenizer: checkpoint"
        )
    if data.tokenizer == "checkpoint" and not any((folder / n).is_file() for n in ("tokenizer.json", "vocab.json")):
        lines.append(f"data.tokenizer: checkpoint, and {named} has no tokenizer.json; copy it there, or use gpt2")
    return lines


def _other_tokens(folder: Path, kind: Literal["byte", "gpt2"]) -> bool:
    """Return whether a checkpoint's tokenizer.json has other tokens than this tokenizer."""
    from trainer.data import tokenizer  # 0.1 s of imports, the tokenizers' library, that few stacks need

    try:
        return tokenizer.has_other_tokens((folder / "tokenizer.json").read_text(encoding="utf-8"), kind)
    except (OSError, UnicodeDecodeError):
        return False


def _in_bucket(bucket: str, run: str) -> Checkpoint:
    return Checkpoint(f"{bucket}/{paths.model(run)}", f"{bucket}/{paths.run(run)}/{_family(run)}")


def _family(run: str) -> str:
    """Return a run's name without its hash; a run that starts from it is named by this."""
    return run.partition("/")[0].rpartition("-")[0].removeprefix("from-") or run


def _of_run(run: str, buckets: list[Path]) -> Checkpoint:
    """Return the model of a finished run in one of these folders. Raise InputError if none has it."""
    for bucket in buckets:
        model = bucket / paths.model(run)
        if (model / paths.MANIFEST).is_file():
            return Checkpoint(str(model.resolve()), _family(run), model)
    run_bucket = next((bucket for bucket in buckets if (bucket / paths.run(run)).is_dir()), None)
    problem = (
        f"there is no run {run} on this machine"
        if run_bucket is None
        else f"{run} has no model yet{_state(run_bucket, run)}"
    )
    raise errors.InputError(f"model.initialize: {problem}; finished are: {_finished(buckets)}")


def _state(bucket: Path, run: str) -> str:
    """Return where a run stands, in brackets; empty if its status cannot be read."""
    try:
        status = read_status(open_storage(str(bucket)), run)
    except (StorageError, ValueError):
        return ""
    return f" ({status.state}, step {status.step})" if status else ""


def _finished(buckets: list[Path]) -> str:
    """Return the names of the newest runs that have a model, as words of an error."""
    written = {
        path: run
        for bucket in buckets
        for pattern in ("*", paths.trial_id("*", "*"))
        for path in bucket.glob(paths.model_manifest(pattern))
        if (run := paths.run_of_model(path.relative_to(bucket).as_posix()))
    }
    newest = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    return wording.few([written[path] for path in newest], "older ones")


def _buckets(config: StackConfig) -> list[Path]:
    """Return the bucket folders of this machine's stacks, the stack's own first."""
    own = config.root / "artifacts" / config.stack
    return [own, *sorted(folder for folder in (config.root / "artifacts").glob("*") if folder != own)]


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
