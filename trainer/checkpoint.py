"""Checkpoints: flat vectors as safetensors, then a manifest with sizes and hashes, which is the commit point.

A checkpoint is whole when its manifest is there and every file in it has the size and hash that it says. It does
not depend on how many machines wrote it: the vectors are laid out as model.Flat says, and the layout is in it.
"""

import json
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import manifest
from trainer.storage import Conflict, Storage

SCALE_GROWTH = 2000  # good steps after which the loss scale doubles


@dataclass
class Progress:
    """All of a run's state that is not in the flat vectors. Small, and the same on every member after a step."""

    step: int = 0
    updates: int = 0  # steps that were not skipped
    evaluations: int = 0  # step of the newest evaluation
    lineage: int = 0  # hash of the groups that took the steps: equal means equal parameters
    scale: float = 1.0  # of the loss, with fp16
    good_steps: int = 0  # since the scale last changed
    skipped: int = 0  # steps in a row whose gradient was not finite
    validation_loss: float | None = None  # the newest, in nats

    def count(self, finite: bool, scaled: bool) -> None:
        """A step was taken, or skipped because its gradient was not finite; moves the scale of fp16."""
        self.step += 1
        self.updates += finite
        self.skipped = 0 if finite else self.skipped + 1
        if scaled:
            self.good_steps = self.good_steps + 1 if finite else 0
            if not finite:
                self.scale /= 2
            elif self.good_steps % SCALE_GROWTH == 0:
                self.scale *= 2


NAME = re.compile(r"step-(\d+)-attempt-(\d+)")


def name(step: int, attempt: int) -> str:
    return f"step-{step:08d}-attempt-{attempt}"


def _order(checkpoint: str) -> tuple[int, int]:
    """Newer is greater: by step, then by attempt."""
    match = NAME.fullmatch(checkpoint)
    assert match, checkpoint
    return int(match[1]), int(match[2])


class Checkpoints:
    """Writes one checkpoint at a time in the background; restores the newest whole one."""

    def __init__(
        self, storage: Storage, run: str, keep: int, log: Callable[[str], None], scratch: Path | None = None
    ) -> None:
        """scratch: a folder for files on their way into the bucket; None is the system's own."""
        self._scratch = scratch
        self._storage, self._prefix, self._keep, self._log = storage, f"runs/{run}/checkpoints", keep, log
        self._writing: threading.Thread | None = None

    def save(
        self,
        vectors: dict[str, Tensor],
        progress: Progress,
        attempt: int,
        layout: list[tuple[str, int, int]],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy now, write in the background. While one is still being written, this one is left out: no step waits.

        `before` is called, in the background, before it counts: the metrics of its steps, which nobody takes again.
        A failure to write is said and forgotten: the run goes on, and the next interval tries again.
        """
        if self._writing is not None and self._writing.is_alive():
            self._log(f"no checkpoint at step {progress.step}: the one before is still being written")
            return
        copies = {key: vector.detach().to("cpu", copy=True) for key, vector in vectors.items()}
        state = {"progress": asdict(progress), "layout": layout}
        target = name(progress.step, attempt)
        self._writing = threading.Thread(target=self._write, args=(copies, state, target, before), name="checkpoint")
        self._writing.start()

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _write(
        self, vectors: dict[str, Tensor], state: dict[str, Any], target: str, before: Callable[[], None]
    ) -> None:
        folder = f"{self._prefix}/{target}"
        try:
            files: dict[str, Any] = {}
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as scratch:
                for key, vector in vectors.items():
                    file = Path(scratch) / f"{key}.safetensors"
                    save_file({key: vector}, file)
                    files[file.name] = manifest.describe(file)
                    self._storage.upload(file, f"{folder}/{file.name}", if_generation=0)
                    file.unlink()
            body = json.dumps({"files": files, **state}).encode()
            before()
            self._storage.write(f"{folder}/manifest.json", body, if_generation=0)
            self._prune()
        except Conflict:  # of two writers one wins, and neither changes what the other wrote
            self._log(f"checkpoint {target} is there already, or was begun; the next one is tried")
        except Exception as error:
            self._log(f"checkpoint {target} could not be written ({error}); training goes on, the next one is tried")

    def _prune(self) -> None:
        """Delete all that is older than the newest `keep` whole ones: also what was begun and never finished."""
        found, whole = self._found()
        for old in found if len(whole) > self._keep else ():
            if _order(old) < _order(whole[self._keep - 1]):
                for path in sorted(found[old], key=lambda p: not p.endswith("/manifest.json")):  # it makes it whole
                    self._storage.delete(path)

    def _found(self) -> tuple[dict[str, list[str]], list[str]]:
        """The files of every checkpoint, and the names of those that have a manifest, newest first."""
        found: dict[str, list[str]] = {}
        for entry in self._storage.list(self._prefix):
            candidate = entry.path.removeprefix(f"{self._prefix}/").split("/")[0]
            if NAME.fullmatch(candidate):
                found.setdefault(candidate, []).append(entry.path)
        whole = [c for c, files in found.items() if f"{self._prefix}/{c}/manifest.json" in files]
        return found, sorted(whole, key=_order, reverse=True)

    def restore(self, vectors: dict[str, Tensor], layout: list[tuple[str, int, int]]) -> Progress | None:
        """Fill `vectors` from the newest checkpoint that verifies; None if there is none. Damaged ones are named."""
        for candidate in self._found()[1]:
            try:
                return self._load(candidate, vectors, layout)
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                self._log(f"checkpoint {candidate} is skipped: {error}")
        return None

    def _load(self, candidate: str, vectors: dict[str, Tensor], layout: list[tuple[str, int, int]]) -> Progress:
        folder = f"{self._prefix}/{candidate}"
        body = manifest.parse(self._storage.read(f"{folder}/manifest.json"))
        if [tuple(entry) for entry in body["layout"]] != layout:
            raise ValueError("it holds another model")
        loaded: dict[str, Tensor] = {}
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as scratch:
            for key in vectors:
                file = self._storage.local_path(f"{folder}/{key}.safetensors")
                if file is None:
                    file = Path(scratch) / f"{key}.safetensors"
                    self._storage.download(f"{folder}/{file.name}", file)
                if not manifest.verify(file, body["files"][file.name]):
                    raise ValueError(f"{file.name} is not what its manifest says (size or sha256)")
                loaded[key] = load_file(file)[key]
        with torch.no_grad():
            for key, vector in vectors.items():
                vector.copy_(loaded[key])
        return Progress(**body["progress"])
