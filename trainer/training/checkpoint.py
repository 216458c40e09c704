"""Checkpoints: the flat vectors in parts, as safetensors, then a manifest with sizes and hashes, the commit point.

Any number of members write one together, each a part: one file with its ranges of every vector, then a description of
it. A member that finds the descriptions of all parts writes the manifest, so no member waits for another. A checkpoint
is whole when its manifest is there, and restores onto any number of members: each reads the files that hold its own
ranges, and takes them if they have the size and hash of the manifest.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.contract import paths
from trainer.contract.options import Checkpoints
from trainer.model.layout import Layout, Ranges
from trainer.storage import manifest
from trainer.storage.base import Conflict, Entry, Storage
from trainer.training.progress import Progress

Vectors = dict[str, Tensor]  # each holds the same ranges of its flat vector, end to end
Place = Callable[[Layout], tuple[Vectors, Ranges]]
# Seconds from a notice for which a leaving member waits for the others' parts: a little less than it may stay.
LAST_PARTS = float(os.environ.get("GPT2_TRAINING_GRACE", "25")) - 5


def order(checkpoint: str) -> tuple[int, int]:
    """Return step and attempt: newer checkpoints are greater."""
    step_and_attempt = paths.parse_checkpoint(checkpoint)
    assert step_and_attempt, checkpoint
    return step_and_attempt


def _part(part: int, parts: int) -> str:
    return f"part-{part:05d}-of-{parts:05d}"


def overlaps(first: Ranges, second: Ranges) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, place in the vectors of `first`, place in those of `second`, elements) of what both hold."""
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


@dataclass(frozen=True)
class CheckpointShard:
    """One member's part of a checkpoint."""

    vectors: Vectors
    layout: Layout  # of the flat vector
    ranges: Ranges | None = None  # of the flat vector, that `vectors` hold; None: all of it
    part: int = 0
    parts: int = 1


class CheckpointStore:
    """Write one checkpoint at a time in the background; restore the newest one that is whole and undamaged."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        policy: Checkpoints,
        log: Callable[[str], None],
        scratch: Path | None = None,
        fenced: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write into runs/<run>/checkpoints.

        Args:
            storage: the run's bucket.
            run: its name.
            policy: which checkpoints stay.
            log: prints a line.
            scratch: a folder for files on their way into the bucket; None is the system's own.
            fenced: asked before a manifest is written: whether this process was believed dead and a newer attempt is
                under way.
        """
        self._storage, self._prefix, self._log = storage, paths.checkpoints(run), log
        self._policy, self._scratch, self._fenced = policy, scratch, fenced
        self._writing: threading.Thread | None = None
        self._copies: Vectors = {}  # kept: memory that was used before is 20 times as fast to copy to
        self.bad: set[str] = set()  # checkpoints that restore() passed over

    # -- writing ---------------------------------------------------------------------------------------------------

    def save(
        self,
        shard: CheckpointShard,
        progress: Progress,
        attempt: int,
        *,
        before: Callable[[], None] = lambda: None,
    ) -> bool:
        """Copy the shard now and write it in the background.

        Return False if one is still being written: then this one is left out, and no step waits. A failure to write is
        logged and forgotten: the run continues, and the next interval tries again.

        Args:
            shard: this member's part.
            progress: of the step.
            attempt: of the run.
            before: called in the background before the part counts: it writes the metrics of the steps up to here,
                which are not taken again.
        """
        if self.busy:
            self._log(f"no checkpoint at step {progress.step}: the one before is still being written")
            return False
        self._copy(shard.vectors)
        state = {"step": progress.step, "attempt": attempt, "progress": progress.to_json(), "layout": shard.layout}
        copied = replace(shard, vectors=self._copies, ranges=_held(shard.vectors, shard.ranges))
        self._writing = threading.Thread(target=self._write, args=(state, copied, before), name="checkpoint")
        self._writing.start()
        return True

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writing is not None and self._writing.is_alive()

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def whole(self, step: int, attempt: int) -> bool:
        """Return whether all parts are there, so that it counts."""
        try:
            self._storage.read(f"{self._prefix}/{paths.checkpoint_name(step, attempt)}/{paths.MANIFEST}")
        except FileNotFoundError:
            return False
        return True

    def becomes_whole(self, step: int, attempt: int, seconds: float) -> bool:
        """Wait up to `seconds` for the others to write their parts; return whether the checkpoint is whole."""
        end = time.monotonic() + seconds
        while not (is_whole := self.whole(step, attempt)) and time.monotonic() < end:
            time.sleep(0.1)
        return is_whole

    def _copy(self, vectors: Vectors) -> None:
        for key, vector in vectors.items():
            if key not in self._copies or self._copies[key].shape != vector.shape:
                self._copies[key] = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=vector.is_cuda)
            self._copies[key].copy_(vector.detach(), non_blocking=True)
        if any(vector.is_cuda for vector in vectors.values()):
            torch.cuda.current_stream().synchronize()

    def _write(self, state: dict[str, Any], shard: CheckpointShard, before: Callable[[], None]) -> None:
        target, name = paths.checkpoint_name(state["step"], state["attempt"]), _part(shard.part, shard.parts)
        path = f"{self._prefix}/{target}/{name}"
        try:
            with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=self._scratch) as scratch:
                file = Path(scratch) / f"{name}.safetensors"
                save_file(shard.vectors, file)
                entry: dict[str, Any] = {**manifest.describe(file)}
                entry["generation"] = self._storage.upload(file, f"{path}.safetensors", if_generation=0)
            before()
            description = {**entry, "ranges": shard.ranges, "lineage": state["progress"]["lineage"]}
            self._storage.write(f"{path}.json", json.dumps(description).encode(), if_generation=0)
            if self._commit(target, shard.parts, state):
                self._prune()
        except Conflict:  # of two writers one wins, and neither changes what the other wrote
            self._log(f"checkpoint {target} is there already, or was begun; the next one is tried")
        except Exception as error:
            self._log(f"checkpoint {target} could not be written ({error}); training continues, the next one is tried")

    def _commit(self, target: str, parts: int, state: dict[str, Any]) -> bool:
        """Write the manifest if all parts are there. Return whether this process did."""
        folder = f"{self._prefix}/{target}"
        files: dict[str, Any] = {}
        ranges: dict[str, Ranges] = {}
        for part in range(parts):
            try:
                description = json.loads(self._storage.read(f"{folder}/{_part(part, parts)}.json"))
            except FileNotFoundError:
                return False  # the member that writes it comes here after us
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
        """Delete what is older than the newest `keep` whole ones, unfinished ones too, as the policy says, for good."""
        files, whole = self._found()
        whole = [checkpoint for checkpoint in whole if checkpoint not in self.bad]
        keep, keep_every = self._policy.keep, self._policy.keep_every
        for old in files if len(whole) > keep else ():
            stays = keep_every is not None and old in whole and order(old)[0] % keep_every == 0
            if order(old) < order(whole[keep - 1]) and not stays:
                for entry in sorted(files[old], key=lambda e: not e.path.endswith(paths.MANIFEST)):  # it makes it whole
                    self._storage.delete(entry.path, generation=entry.generation)

    def _found(self) -> tuple[dict[str, list[Entry]], list[str]]:
        """Return the files of every checkpoint, and the names of those with a manifest, newest first."""
        candidate_files: dict[str, list[Entry]] = {}
        for entry in self._storage.list(self._prefix):
            candidate = entry.path.removeprefix(f"{self._prefix}/").split("/")[0]
            if paths.parse_checkpoint(candidate):
                candidate_files.setdefault(candidate, []).append(entry)
        last = f"/{paths.MANIFEST}"
        whole = [c for c, files in candidate_files.items() if any(file.path.endswith(c + last) for file in files)]
        return candidate_files, sorted(whole, key=order, reverse=True)

    # -- reading ---------------------------------------------------------------------------------------------------

    def restore(
        self,
        vectors: Vectors | Place,
        ranges: Ranges | None = None,
        *,
        skip: Collection[str] = (),
        layout: Layout | None = None,
    ) -> Restored | None:
        """Fill `vectors` from the newest checkpoint whose needed files verify.

        Return None, and touch nothing, if there is none. Checkpoints that are passed over are logged and collected in
        `bad`. Padding that no file holds stays as it is.

        Args:
            vectors: to fill, or a function that makes them from the checkpoint's layout and returns their ranges.
            ranges: that the vectors hold; None is the whole.
            skip: names of checkpoints that are not looked at.
            layout: take only a checkpoint of this layout.
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
        progress, saved_layout, held = _understand(body)
        if layout is not None and saved_layout != layout:
            raise ValueError("it holds another model")
        if callable(vectors):
            vectors, ranges = vectors(saved_layout)
        else:
            ranges = _held(vectors, ranges)
        _check_all_held(ranges, saved_layout, held)
        needed: list[tuple[Path, Ranges]] = []
        with tempfile.TemporaryDirectory(prefix="restore-", dir=self._scratch) as scratch:
            for file, held_ranges in held.items():
                if any(overlaps(ranges, held_ranges)):
                    path = self._local(f"{folder}/{file}", Path(scratch))
                    _check(path, body["files"][file], vectors, held_ranges)
                    needed.append((path, held_ranges))
            with torch.no_grad():
                for path, held_ranges in needed:
                    _fill(vectors, ranges, path, held_ranges)
        return Restored(candidate, progress, saved_layout)

    def _local(self, path: str, scratch: Path) -> Path:
        """Return the path of the file on this machine, downloaded if it is elsewhere."""
        local = self._storage.local_path(path)
        if local is None:
            local = scratch / Path(path).name
            self._storage.download(path, local)
        return local


def _held(vectors: Vectors, ranges: Ranges | None) -> Ranges:
    """Return the ranges that `vectors` hold: all of the flat vector where they are not given."""
    return ranges if ranges is not None else [(0, len(vector)) for vector in vectors.values()][:1]


def _understand(body: dict[str, Any]) -> tuple[Progress, Layout, dict[str, Ranges]]:
    """Return a manifest's progress, its layout and the ranges of each file. ValueError if it is no checkpoint's."""
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
    """Raise ValueError unless every element of a tensor in `ranges` is in exactly one file."""
    everything = sorted(held_range for each in held.values() for held_range in each)
    if any(first[1] > second[0] for first, second in pairwise(everything)):
        raise ValueError("its files overlap")
    tensors = [(start, start + size) for _, start, size, _ in layout]
    needed = [(start, start + count) for start, _, _, count in overlaps(ranges, tensors)]
    if sum(count for *_, count in overlaps(needed, everything)) < sum(stop - start for start, stop in needed):
        raise ValueError("its files do not hold all of the model")


def _check(path: Path, entry: manifest.File, vectors: Vectors, ranges: Ranges) -> None:
    """Raise ValueError unless the file is the one that was written, and holds `ranges` of these vectors."""
    if not manifest.verify(path, entry):
        raise ValueError(f"{path.name} is not what its manifest says (size or sha256)")
    elements = sum(stop - start for start, stop in ranges)
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(vectors):
            raise ValueError(f"it holds {', '.join(sorted(file.keys()))} and not {', '.join(sorted(vectors))}")
        if any(file.get_slice(key).get_shape() != [elements] for key in vectors):
            raise ValueError(f"{path.name} has not the ranges that its manifest says")


def _fill(vectors: Vectors, ranges: Ranges, path: Path, held: Ranges) -> None:
    """Copy the elements of `ranges` that the file holds."""
    with safe_open(path, framework="pt") as file:
        for key, vector in vectors.items():
            stored = file.get_slice(key)
            for _, place, other, count in overlaps(ranges, held):
                vector[place : place + count].copy_(stored[other : other + count])
