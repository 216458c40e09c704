"""Checkpoints: the flat vectors in parts, as safetensors, then a manifest with sizes and hashes, the commit point.

Any number of members write one together, each a part: one file with its ranges of every vector, then a description of
it. Who finds the descriptions of all parts writes the manifest, so nobody waits for anybody. A checkpoint is whole
when its manifest is there, and restores onto any number of members: each reads the files that hold its own ranges, and
takes them if they have the size and hash that the manifest says.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.contract import paths
from trainer.model.layout import Layout, Ranges
from trainer.storage import manifest
from trainer.storage.base import Conflict, Storage
from trainer.training.progress import Progress

Vectors = dict[str, Tensor]  # each holds the same ranges of its flat vector, end to end
Place = Callable[[Layout], tuple[Vectors, Ranges]]
# Seconds from a notice for which a leaving member waits for the others' parts: a little less than it may stay.
LAST_PARTS = float(os.environ.get("GPT2_TRAINING_GRACE", "25")) - 5


def order(checkpoint: str) -> tuple[int, int]:
    """Step and attempt: newer is greater."""
    step_and_attempt = paths.parse_checkpoint(checkpoint)
    assert step_and_attempt, checkpoint
    return step_and_attempt


def _part(part: int, parts: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}"


def overlaps(first: Ranges, second: Ranges) -> Iterator[tuple[int, int, int, int]]:
    """(start, its place in the vector of `first`, its place in the vector of `second`, elements) of what both hold."""
    i = j = place = other = 0
    while i < len(first) and j < len(second):
        (begin, end), (other_begin, other_end) = first[i], second[j]
        start = max(begin, other_begin)
        if start < min(end, other_end):
            yield start, place + start - begin, other + start - other_begin, min(end, other_end) - start
        if end <= other_end:
            place, i = place + end - begin, i + 1
        else:
            other, j = other + other_end - other_begin, j + 1


@dataclass(frozen=True)
class Restored:
    name: str
    progress: Progress
    layout: Layout


class Checkpoints:
    """Writes one checkpoint at a time in the background; restores the newest one that is whole and undamaged."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        keep: int,
        log: Callable[[str], None],
        scratch: Path | None = None,
        keep_every: int | None = None,
        fenced: Callable[[], bool] = lambda: False,
    ) -> None:
        """keep: how many of the newest stay; keep_every: those whose step is a multiple of it stay too.

        scratch: a folder for files on their way into the bucket; None is the system's own. `fenced` is asked before a
        manifest is written: whether this process was believed dead and a newer attempt is under way.
        """
        self._storage, self._prefix, self._log = storage, paths.checkpoints(run), log
        self._keep, self._keep_every, self._scratch, self._fenced = keep, keep_every, scratch, fenced
        self._writing: threading.Thread | None = None
        self._copies: Vectors = {}  # kept: memory that was used before is 20 times as fast to copy to
        self.bad: set[str] = set()  # checkpoints that restore() passed over

    # -- writing ---------------------------------------------------------------------------------------------------

    def save(
        self,
        vectors: Vectors,
        progress: Progress,
        attempt: int,
        layout: Layout,
        *,
        part: int = 0,
        parts: int = 1,
        ranges: Ranges | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> bool:
        """Copy now, write in the background: part `part` of `parts`, which holds `ranges` (None: the whole vector).

        False if one is still being written: then this one is left out, and no step waits. `before` is called, in the
        background, before the part counts: the metrics of its steps, which nobody takes again. A failure to write is
        said and forgotten: the run goes on, and the next interval tries again.
        """
        if self._writing is not None and self._writing.is_alive():
            self._log(f"no checkpoint at step {progress.step}: the one before is still being written")
            return False
        self._copy(vectors)
        state = {"step": progress.step, "attempt": attempt, "progress": progress.to_json(), "layout": layout}
        held = ranges if ranges is not None else [(0, len(vector)) for vector in vectors.values()][:1]
        self._writing = threading.Thread(target=self._write, args=(state, part, parts, held, before), name="checkpoint")
        self._writing.start()
        return True

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def whole(self, step: int, attempt: int) -> bool:
        """Whether all parts are there and it counts."""
        try:
            self._storage.read(f"{self._prefix}/{paths.checkpoint_name(step, attempt)}/{paths.MANIFEST}")
        except FileNotFoundError:
            return False
        return True

    def becomes_whole(self, step: int, attempt: int, seconds: float) -> bool:
        """whole(), as soon as it is, or after `seconds`: others are still writing their parts."""
        end = time.monotonic() + seconds
        while not (there := self.whole(step, attempt)) and time.monotonic() < end:
            time.sleep(0.1)
        return there

    def _copy(self, vectors: Vectors) -> None:
        for key, vector in vectors.items():
            if key not in self._copies or self._copies[key].shape != vector.shape:
                self._copies[key] = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=vector.is_cuda)
            self._copies[key].copy_(vector.detach(), non_blocking=True)
        if any(vector.is_cuda for vector in vectors.values()):
            torch.cuda.current_stream().synchronize()

    def _write(self, state: dict[str, Any], part: int, parts: int, ranges: Ranges, before: Callable[[], None]) -> None:
        target = paths.checkpoint_name(state["step"], state["attempt"])
        path = f"{self._prefix}/{target}/{_part(part, parts)}"
        try:
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as scratch:
                file = Path(scratch) / f"{_part(part, parts)}.safetensors"
                save_file(self._copies, file)
                entry: dict[str, Any] = {**manifest.describe(file)}
                entry["generation"] = self._storage.upload(file, f"{path}.safetensors", if_generation=0)
            before()
            description = {**entry, "ranges": ranges, "lineage": state["progress"]["lineage"]}
            self._storage.write(f"{path}.json", json.dumps(description).encode(), if_generation=0)
            if self._commit(target, parts, state):
                self._prune()
        except Conflict:  # of two writers one wins, and neither changes what the other wrote
            self._log(f"checkpoint {target} is there already, or was begun; the next one is tried")
        except Exception as error:
            self._log(f"checkpoint {target} could not be written ({error}); training goes on, the next one is tried")

    def _commit(self, target: str, parts: int, state: dict[str, Any]) -> bool:
        """Write the manifest if all parts are there. Whether this process did."""
        folder = f"{self._prefix}/{target}"
        files: dict[str, Any] = {}
        ranges: dict[str, Ranges] = {}
        for part in range(parts):
            try:
                description = json.loads(self._storage.read(f"{folder}/{_part(part, parts)}.json"))
            except FileNotFoundError:
                return False  # whoever writes it comes here after us
            # Steps may be taken again within an attempt, after a server was lost, and by other trainers.
            if description.pop("lineage") != state["progress"]["lineage"]:
                self._log(f"checkpoint {target} does not count: its parts are not of the same steps")
                return False
            file = f"{_part(part, parts)}.safetensors"
            ranges[file] = description.pop("ranges")
            files[file] = description
        if self._fenced():
            self._log(f"checkpoint {target} does not count: a newer attempt is under way without this process")
            return False
        body = json.dumps({"files": files, "ranges": ranges, **state}).encode()
        try:
            self._storage.write(f"{folder}/{paths.MANIFEST}", body, if_generation=0)
        except Conflict:  # the writer of another part saw them all, too
            return False
        return True

    def _prune(self) -> None:
        """Delete all that is older than the newest `keep` whole ones: also what was begun and never finished."""
        found, whole = self._found()
        whole = [checkpoint for checkpoint in whole if checkpoint not in self.bad]
        for old in found if len(whole) > self._keep else ():
            stays = self._keep_every is not None and old in whole and order(old)[0] % self._keep_every == 0
            if order(old) < order(whole[self._keep - 1]) and not stays:
                for path in sorted(found[old], key=lambda p: not p.endswith(paths.MANIFEST)):  # it makes it whole
                    self._storage.delete(path)

    def _found(self) -> tuple[dict[str, list[str]], list[str]]:
        """The files of every checkpoint, and the names of those that have a manifest, newest first."""
        found: dict[str, list[str]] = {}
        for entry in self._storage.list(self._prefix):
            candidate = entry.path.removeprefix(f"{self._prefix}/").split("/")[0]
            if paths.parse_checkpoint(candidate):
                found.setdefault(candidate, []).append(entry.path)
        whole = [c for c, files in found.items() if f"{self._prefix}/{c}/{paths.MANIFEST}" in files]
        return found, sorted(whole, key=order, reverse=True)

    # -- reading ---------------------------------------------------------------------------------------------------

    def restore(
        self,
        vectors: Vectors | Place,
        ranges: Ranges | None = None,
        *,
        skip: Collection[str] = (),
        layout: Layout | None = None,
    ) -> Restored | None:
        """Fill `vectors`, which hold `ranges` (None: the whole), from the newest checkpoint whose needed files verify.

        vectors: or a function that makes them and says their ranges, for whom only the checkpoint tells the layout.
        Padding that no file holds stays as it is. None, and nothing is touched, if there is none. Those passed over
        are named in the log and collected in `bad`; those in `skip` are not looked at; with `layout`, only a
        checkpoint of that layout is taken.
        """
        for candidate in self._found()[1]:
            if candidate in skip:
                self.bad.add(candidate)
                continue
            try:
                return self._load(candidate, vectors, ranges, layout)
            except (ValueError, FileNotFoundError, SafetensorError) as error:
                self._log(f"checkpoint {candidate} is skipped: {error}")
                self.bad.add(candidate)
        return None

    def _load(self, candidate: str, vectors: Vectors | Place, ranges: Ranges | None, layout: Layout | None) -> Restored:
        folder = f"{self._prefix}/{candidate}"
        body = manifest.parse(self._storage.read(f"{folder}/{paths.MANIFEST}"))
        progress, found, held = _understand(body)
        if layout is not None and found != layout:
            raise ValueError("it holds another model")
        if callable(vectors):
            vectors, ranges = vectors(found)
        elif ranges is None:
            ranges = [(0, len(vector)) for vector in vectors.values()][:1]
        _check_all_held(ranges, found, held)
        needed: list[tuple[Path, Ranges]] = []
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as scratch:
            for file, kept in held.items():
                if any(overlaps(ranges, kept)):
                    path = self._local(f"{folder}/{file}", Path(scratch))
                    _check(path, body["files"][file], vectors, kept)
                    needed.append((path, kept))
            with torch.no_grad():
                for path, kept in needed:
                    _fill(vectors, ranges, path, kept)
        return Restored(candidate, progress, found)

    def _local(self, path: str, scratch: Path) -> Path:
        """The file on this machine; fetched, if it is not."""
        local = self._storage.local_path(path)
        if local is None:
            local = scratch / Path(path).name
            self._storage.download(path, local)
        return local


def _understand(body: dict[str, Any]) -> tuple[Progress, Layout, dict[str, Ranges]]:
    """What a manifest says, and the ranges of each file. ValueError if it is no checkpoint's."""
    try:
        progress = Progress(**body["progress"])
        layout = [
            (str(tensor), int(start), int(size), bool(decayed)) for tensor, start, size, decayed in body["layout"]
        ]
        held = {file: [(int(a), int(b)) for a, b in body["ranges"][file]] for file in body["files"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{paths.MANIFEST} is not a checkpoint's ({type(error).__name__}: {error})") from error
    return progress, layout, held


def _check_all_held(ranges: Ranges, layout: Layout, held: dict[str, Ranges]) -> None:
    """ValueError unless every element of a tensor in `ranges` is in exactly one file."""
    everything = sorted(kept for each in held.values() for kept in each)
    if any(first[1] > second[0] for first, second in pairwise(everything)):
        raise ValueError("its files overlap")
    tensors = [(start, start + size) for _, start, size, _ in layout]
    wanted = [(start, start + count) for start, _, _, count in overlaps(ranges, tensors)]
    if sum(count for *_, count in overlaps(wanted, everything)) < sum(stop - start for start, stop in wanted):
        raise ValueError("its files do not hold all of the model")


def _check(path: Path, entry: manifest.File, vectors: Vectors, ranges: Ranges) -> None:
    """ValueError unless the file is the one that was written, and holds `ranges` of these vectors."""
    if not manifest.verify(path, entry):
        raise ValueError(f"{path.name} is not what its manifest says (size or sha256)")
    elements = sum(stop - start for start, stop in ranges)
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(vectors):
            raise ValueError(f"it holds {', '.join(sorted(file.keys()))} and not {', '.join(sorted(vectors))}")
        if any(file.get_slice(key).get_shape() != [elements] for key in vectors):
            raise ValueError(f"{path.name} has not the ranges that its manifest says")


def _fill(vectors: Vectors, ranges: Ranges, path: Path, held: Ranges) -> None:
    """Copy what the file holds of `ranges`."""
    with safe_open(path, framework="pt") as file:
        for key, vector in vectors.items():
            stored = file.get_slice(key)
            for _, place, other, count in overlaps(ranges, held):
                vector[place : place + count].copy_(stored[other : other + count])
