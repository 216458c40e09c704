"""What a run starts from: model.initialize as a folder, an address, a hub id, or a finished run by its id.

Pure but for reading files of this machine, so that a preview needs no credentials.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from infra.stack.config import StackConfig
from trainer.contract import errors, identity, paths, wording
from trainer.runs.status import read_status
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

# As spec.run_id() makes them, with a sweep's trials. A hub id has no such ending.
RUN = re.compile(r"[a-z0-9-]+-[0-9a-f]{8}(/trials/\d+)?")
ADDRESS = re.compile(rf"(?P<bucket>(gs|file)://.+)/{paths.RUNS}/(?P<run>[^/]+(/trials/\d+)?)(/model)?/*")
FOLDER = ("/", "./", "../", "~")  # what a hub id does not begin with
TOKENS = {"byte": 257, "gpt2": 50257}
PADDING = 64  # a checkpoint's table of tokens may have fewer rows than so many that stand for none


@dataclass(frozen=True)
class Start:
    where: str  # as the machines reach it
    name: str  # ends with what a run that starts from it is called after
    folder: Path | None = None  # where it lies on this machine

    @property
    def content(self) -> str:
        """The same, named by its content where that is at hand: what the run's name depends on."""
        if self.folder is None:
            return self.name
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return f"{identity.hash_files(self.folder, files)}/{self.name}"


def locate(config: StackConfig) -> Start | None:
    """None without model.initialize. Raises InputError if it is not there; hub and buckets are not asked."""
    named = config.file.model.initialize
    if named is None:
        return None
    address = ADDRESS.fullmatch(named)
    if address is not None and named.startswith("gs://"):
        return _in_bucket(address["bucket"], address["run"])
    here = named.startswith("file://")
    folder = _path(named) if here else config.root / Path(named).expanduser()
    if config.google and (here or folder.is_dir()):
        raise errors.InputError(
            f"model.initialize: {named} is a folder here, which the machines cannot read; copy it into a bucket"
            " (gcloud storage cp -r) and give its gs:// address"
        )
    if address is not None:
        return _of_run(address["run"], [_path(address["bucket"])])
    if folder.is_dir():
        return Start(str(folder.resolve()), folder.name, folder)
    if here or named.startswith(FOLDER):
        raise errors.InputError(f"model.initialize: there is no folder {named}; check the path")
    buckets = _buckets(config)
    if any((bucket / paths.run(named)).is_dir() for bucket in buckets) or RUN.fullmatch(named):
        return _in_bucket(config.bucket, named) if config.google else _of_run(named, buckets)
    if config.google and not named.startswith("gs://") and not config.file.network.nat:
        raise errors.InputError(
            f"model.initialize: {named} is on the hub, and the machines have no internet; set network.nat: true,"
            " or give a gs:// address"
        )
    return Start(named, named)


def problems(config: StackConfig) -> list[str]:
    """What is wrong with it, one line each, as far as this machine can know."""
    try:
        start = locate(config)
    except errors.InputError as error:
        return [str(error)]
    if start is None or start.folder is None:
        return []
    return _unfit(config, start.folder)


def _unfit(config: StackConfig, folder: Path) -> list[str]:
    """What a checkpoint's files say against this run."""
    named, data = config.file.model.initialize, config.file.data
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, positions, vocabulary = (found.get(key) for key in ("model_type", "n_positions", "vocab_size"))
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
    known = TOKENS.get(data.tokenizer)
    if known is not None and isinstance(vocabulary, int) and not known <= vocabulary < known + PADDING:
        lines.append(
            f"data.tokenizer: {data.tokenizer} has {known:,} tokens, and {named} knows {vocabulary:,} others; set"
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
    from trainer.data import tokenizer  # takes a moment

    try:
        return tokenizer.has_other_tokens((folder / "tokenizer.json").read_text(encoding="utf-8"), kind)
    except (OSError, UnicodeDecodeError):
        return False


def _in_bucket(bucket: str, run: str) -> Start:
    return Start(f"{bucket}/{paths.model(run)}", f"{bucket}/{paths.run(run)}/{_family(run)}")


def _family(run: str) -> str:
    """A run's name without its hash, for the name of one that starts from it."""
    return run.partition("/")[0].rpartition("-")[0].removeprefix("from-") or run


def _of_run(run: str, buckets: list[Path]) -> Start:
    for bucket in buckets:
        model = bucket / paths.model(run)
        if (model / paths.MANIFEST).is_file():
            return Start(str(model.resolve()), _family(run), model)
    there = next((bucket for bucket in buckets if (bucket / paths.run(run)).is_dir()), None)
    found = f"there is no run {run} on this machine" if there is None else f"{run} has no model yet{_state(there, run)}"
    raise errors.InputError(f"model.initialize: {found}; finished are: {_finished(buckets)}")


def _state(bucket: Path, run: str) -> str:
    try:
        status = read_status(open_storage(str(bucket)), run)
    except (StorageError, ValueError):
        return ""
    return f" ({status.state}, step {status.step})" if status else ""


def _finished(buckets: list[Path]) -> str:
    """The newest runs with a model."""
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
    """Of this machine's stacks; first the stack's own."""
    own = config.root / "artifacts" / config.stack
    return [own, *sorted(folder for folder in (config.root / "artifacts").glob("*") if folder != own)]


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
