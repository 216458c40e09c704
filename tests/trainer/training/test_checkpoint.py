"""Checkpoints: any reader restores what any writer saved, and damaged checkpoints are skipped."""

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from torch import Tensor

from trainer.contract.options import Checkpoints
from trainer.model.layout import Layout, Ranges
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage
from trainer.storage.local import FileStorage
from trainer.training.checkpoint import CheckpointShard, CheckpointStore, Restored, overlaps
from trainer.training.progress import SCALE_GROWTH, Progress

RUN = "a-run"
FOLDER = f"runs/{RUN}/checkpoints"
LAYOUT: Layout = [("b", 0, 70, True), ("a", 128, 10, False)]
ANOTHER: Layout = [("b", 0, 71, True), ("a", 128, 10, False)]
PART, DESCRIPTION = "part-00000-of-00001.safetensors", "part-00000-of-00001.json"


def vectors(value: float) -> dict[str, Tensor]:
    return {"parameters": torch.full((192,), value), "moment1": torch.full((192,), 2 * value)}


class Book:
    """The Checkpoints of a bucket, and the lines that they logged."""

    def __init__(self, storage: Storage, keep: int = 2, keep_every: int | None = None, **options: Any) -> None:
        self.said: list[str] = []
        self.storage = storage
        policy = Checkpoints(keep=keep, keep_every=keep_every)
        self.checkpoints = CheckpointStore(storage, RUN, policy, self.said.append, **options)

    def save(self, step: int, attempt: int = 1, value: float | None = None, **options: Any) -> None:
        shard = CheckpointShard(vectors(step if value is None else value), LAYOUT)
        self.checkpoints.save(shard, Progress(step=step), attempt, **options)
        self.checkpoints.wait()

    def restore(self, layout: Layout | None = LAYOUT, **options: Any) -> tuple[int, float] | None:
        """Restore and return (step, the value that fills the parameters).

        Without a checkpoint nothing changes, and it returns None.
        """
        into = vectors(-1.0)
        restored = self.checkpoints.restore(into, layout=layout, **options)
        assert len(set(into["parameters"].tolist())) == 1
        value = float(into["parameters"][0])
        assert torch.equal(into["moment1"], 2 * into["parameters"])
        if restored is None:
            assert value == -1.0
            return None
        return restored.progress.step, value

    def names(self) -> list[str]:
        return sorted({entry.path.split("/")[3] for entry in self.storage.list(FOLDER)})

    def file(self, name: str) -> Path:
        path = self.storage.local_path(f"{FOLDER}/{name}")
        assert path is not None
        return path


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(open_storage(str(tmp_path)))


def test_checkpoint_is_restored_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(open_storage(str(tmp_path)), RUN, Checkpoints(keep=2), print)
    saved = {"parameters": torch.randn(192), "moment1": torch.randn(192)}
    progress = Progress(
        step=7, updates=6, evaluations=5, lineage=123, scale=4.0, good_steps=3, skipped=1, validation_loss=2.5
    )
    assert checkpoints.save(CheckpointShard(saved, LAYOUT), progress, 1)
    checkpoints.wait()
    into = vectors(0.0)
    assert checkpoints.restore(into, layout=LAYOUT) == Restored("step-00000007-attempt-1", progress, LAYOUT)
    assert all(torch.equal(into[key], saved[key]) for key in saved)


@pytest.mark.slow
def test_checkpoints_in_google_storage_are_kept_and_restored(gcs_bucket: str) -> None:
    book = Book(open_storage(gcs_bucket))
    bucket = gcs.Client(project="p", credentials=AnonymousCredentials()).get_bucket(gcs_bucket.removeprefix("gs://"))
    bucket.versioning_enabled = True
    bucket.patch()
    for step in (1, 2, 3):
        book.save(step)
    assert book.said == []
    kept = {blob.name.split("/")[3] for blob in bucket.list_blobs(versions=True)}
    assert kept == set(book.names())  # the bucket has no old version of the checkpoint that went
    assert book.names() == ["step-00000002-attempt-1", "step-00000003-attempt-1"]
    assert book.restore() == (3, 3.0)
    book.storage.write(f"{FOLDER}/step-00000003-attempt-1/{PART}", b"damaged")
    assert book.restore() == (2, 2.0)
    book.save(2, value=9.0)
    assert book.restore() == (2, 2.0)  # the checkpoint was not overwritten


def test_checkpoint_does_not_contain_changes_after_save(book: Book) -> None:
    values, progress = vectors(1.0), Progress(step=1)
    book.checkpoints.save(CheckpointShard(values, LAYOUT), progress, 1)
    for vector in values.values():
        vector.zero_()
    progress.step = 99
    book.checkpoints.wait()
    assert book.restore() == (1, 1.0)


def test_restore_without_a_checkpoint_returns_none(book: Book) -> None:
    assert book.restore() is None
    assert book.said == []
    assert not book.checkpoints.whole(1, 1)


def test_restore_takes_the_newest_checkpoint(book: Book) -> None:
    book.checkpoints = CheckpointStore(book.storage, RUN, Checkpoints(keep=10), book.said.append)
    for step, attempt in [(900, 1), (1000, 2), (1000, 10), (1000, 9), (999, 11)]:
        book.save(step, attempt, value=attempt)
    assert book.restore() == (1000, 10.0)  # the order is by number, not by letter: attempt 10 is after 9
    assert book.restore(skip={"step-00001000-attempt-10"}) == (1000, 9.0)
    assert book.checkpoints.whole(999, 11)
    assert not book.checkpoints.whole(999, 10)


def test_checkpoint_does_not_count_before_the_metrics_are_flushed(book: Book) -> None:
    there: list[list[str]] = []
    book.save(1, before=lambda: there.append([entry.path.rpartition("/")[2] for entry in book.storage.list(FOLDER)]))
    assert there == [[PART]]
    assert book.checkpoints.whole(1, 1)


class Held(FileStorage):
    """A slow bucket: an upload takes until `save_another` was called."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.save_another = lambda: None

    def upload(self, source: Path, path: str, *further: object, **options: object) -> int:
        self.save_another()
        return super().upload(source, path, *further, **options)  # type: ignore[arg-type]


def test_save_does_not_wait_for_a_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    storage = Held(tmp_path)
    book = Book(storage)
    taken: list[bool] = []
    storage.save_another = lambda: taken.append(
        book.checkpoints.save(
            CheckpointShard(vectors(2.0), LAYOUT), Progress(step=2), 1
        )  # called while step 1 is being written
    )
    book.save(1)
    assert taken == [False]
    assert book.said == ["no checkpoint at step 2: the one before is still being written"]
    assert book.restore() == (1, 1.0)


@pytest.mark.parametrize("file", [PART, "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "empty"])
def test_damaged_checkpoint_is_skipped(book: Book, file: str, damage: str) -> None:
    book.save(1)
    book.save(2)
    path = book.file(f"step-00000002-attempt-1/{file}")
    body = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(body) // 2
        changed = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        path.write_bytes({"changed": changed, "truncated": body[:-1], "empty": b""}[damage])
    assert book.restore() == (1, 1.0)
    if (file, damage) == ("manifest.json", "missing"):
        assert book.said == []  # it was never whole, so no line reports it
        assert book.checkpoints.bad == set()
    else:
        assert len(book.said) == 1
        assert book.said[0].startswith("checkpoint step-00000002-attempt-1 is skipped: ")
        assert "\n" not in book.said[0]
        assert book.checkpoints.bad == {"step-00000002-attempt-1"}


@pytest.mark.parametrize(
    "change",
    [
        {"layout": [list(entry) for entry in ANOTHER]},
        {"layout": "none"},
        {"layout": None},
        {"files": {}},
        {"files": None},
        {"ranges": {}},
        {"ranges": None},
        {"ranges": {PART: [[0, 64], [128, 192]]}},
        {"ranges": {PART: [[0, 200]]}},
        {"ranges": {PART: [[0, 128], [64, 128]]}},
        {"progress": {"step": 2, "unheard": 1}},
        {"progress": None},
    ],
    ids=str,
)
def test_checkpoint_with_a_manifest_of_other_values_is_skipped(book: Book, change: dict[str, object]) -> None:
    book.save(1)
    book.save(2)
    path = book.file("step-00000002-attempt-1/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert book.restore() == (1, 1.0)
    assert len(book.said) == 1
    assert "\n" not in book.said[0]


def test_checkpoint_of_another_model_is_skipped(book: Book) -> None:
    book.save(1)
    assert book.restore(ANOTHER) is None
    assert book.said == ["checkpoint step-00000001-attempt-1 is skipped: it holds another model"]


@pytest.mark.parametrize("keys", [["parameters"], ["parameters", "moment1", "moment2"]], ids=str)
def test_checkpoint_of_another_optimizer_is_skipped(book: Book, keys: list[str]) -> None:
    book.save(1)
    assert book.checkpoints.restore({key: torch.zeros(192) for key in keys}) is None
    held = "moment1, parameters and not " + ", ".join(sorted(keys))
    assert book.said == [f"checkpoint step-00000001-attempt-1 is skipped: it holds {held}"]


def test_newest_checkpoints_are_kept(book: Book) -> None:
    for step in range(1, 6):
        book.save(step)
    assert book.names() == ["step-00000004-attempt-1", "step-00000005-attempt-1"]


def test_every_kth_checkpoint_is_kept_for_ever(tmp_path: Path) -> None:
    book = Book(open_storage(str(tmp_path)), keep=1, keep_every=3)
    book.save(3, attempt=1)
    book.save(6, attempt=1)
    book.file("step-00000006-attempt-1/manifest.json").unlink()
    for step in range(7, 12):
        book.save(step, attempt=2)
    assert book.names() == ["step-00000003-attempt-1", "step-00000009-attempt-2", "step-00000011-attempt-2"]


def test_unfinished_checkpoint_is_removed(book: Book) -> None:
    book.save(1)
    book.file("step-00000001-attempt-1/manifest.json").unlink()  # its writer was killed before it wrote this file
    for step in (2, 3, 4):
        book.save(step)
    assert book.names() == ["step-00000003-attempt-1", "step-00000004-attempt-1"]


def test_files_that_are_not_checkpoints_are_left_alone(book: Book) -> None:
    for name in ("README.md", "my-copy/manifest.json", "step-00000001-attempt-1/notes/today.txt"):
        book.storage.write(f"{FOLDER}/{name}", b"mine")
    book.save(1)
    book.save(2)
    assert book.restore() == (2, 2.0)
    assert {"README.md", "my-copy"} < set(book.names())
    assert book.said == []


def test_two_writers_of_one_step_do_not_mix(tmp_path: Path) -> None:
    first, second = Book(open_storage(str(tmp_path))), Book(open_storage(str(tmp_path)))
    first.save(1, value=1.0)
    second.save(1, value=2.0)
    assert first.restore() == (1, 1.0)
    assert first.said == []
    assert second.said == ["checkpoint step-00000001-attempt-1 is there already, or was begun; the next one is tried"]
    second.save(1, attempt=2, value=3.0)  # a later attempt has a place of its own
    assert first.restore() == (1, 3.0)


def test_fenced_writer_writes_no_manifest(tmp_path: Path) -> None:
    asked: list[bool] = []

    def fenced() -> bool:
        # The question comes as late as possible.
        asked.append(stale.file(f"step-00000009-attempt-1/{DESCRIPTION}").exists())
        return True

    current, stale = Book(open_storage(str(tmp_path))), Book(open_storage(str(tmp_path)), fenced=fenced)
    current.save(5, attempt=2)
    stale.save(9, attempt=1)
    assert asked == [True]
    assert stale.said == [
        "checkpoint step-00000009-attempt-1 does not count: a newer attempt is under way without this process"
    ]
    assert current.restore() == (5, 5.0)


class Full(FileStorage):
    """A disk that has no room for a shard."""

    refuse = True

    def upload(self, source: Path, path: str, *further: object, **options: object) -> int:
        if self.refuse and path.endswith(".safetensors"):
            raise StorageError(f"cannot write {path}: the disk is full; free some space")
        return super().upload(source, path, *further, **options)  # type: ignore[arg-type]


def test_save_on_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    storage = Full(tmp_path)
    book = Book(storage)
    book.save(1)
    assert len(book.said) == 1
    assert "could not be written" in book.said[0]
    assert "free some space" in book.said[0]
    assert book.restore() is None  # half of a checkpoint is none
    storage.refuse = False
    book.save(2)
    assert book.restore() == (2, 2.0)


# -- parts -------------------------------------------------------------------------------------------------------------

TOTAL = 64 * 40
MODEL: Layout = [("c", 0, 1000, True), ("b", 1024, 64 * 20 - 1, True), ("a", 64 * 36, 3, False)]


def cut(parts: int) -> list[Ranges]:
    """Return each part's ranges: pieces of three buckets, cut at odd places, as servers own them."""
    buckets = list(pairwise([0, 64 * 7, 64 * 31, TOTAL]))
    pieces = [[a + (b - a) * i // parts for i in range(parts + 1)] for a, b in buckets]
    return [[(bounds[part], bounds[part + 1]) for bounds in pieces] for part in range(parts)]


def take(vector: Tensor, ranges: Ranges) -> Tensor:
    return torch.cat([vector[start:stop] for start, stop in ranges])


def model_vectors() -> dict[str, Tensor]:
    """Return vectors that are random in the tensors and zero in the padding."""
    whole = {key: torch.zeros(TOTAL) for key in ("parameters", "moment1", "moment2")}
    for vector in whole.values():
        for _, start, size, _ in MODEL:
            vector[start : start + size] = torch.randn(size)
    return whole


class Parts:
    """A checkpoint's writers, each with its own view of one bucket, like as many processes."""

    def __init__(self, url: str, ranges: list[Ranges]) -> None:
        self.whole, self.ranges = model_vectors(), ranges
        self.books = [Book(open_storage(url)) for _ in ranges]

    def save(self, part: int, step: int = 1, lineage: int = 0) -> None:
        mine = {key: take(vector, self.ranges[part]) for key, vector in self.whole.items()}
        checkpoints = self.books[part].checkpoints
        shard = CheckpointShard(mine, MODEL, self.ranges[part], part, len(self.books))
        checkpoints.save(shard, Progress(step=step, lineage=lineage), 1)
        checkpoints.wait()

    def said(self) -> list[str]:
        return [line for book in self.books for line in book.said]


def assert_readers_get(whole: dict[str, Tensor], url: str, readers: int, step: int = 1) -> None:
    for ranges in cut(readers):
        into = {key: torch.zeros(sum(b - a for a, b in ranges)) for key in whole}
        restored = Book(open_storage(url)).checkpoints.restore(into, ranges, layout=MODEL)
        assert restored is not None
        assert restored.progress.step == step
        assert all(torch.equal(into[key], take(whole[key], ranges)) for key in whole)


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_checkpoint_of_three_parts_restores_onto_any_number_of_readers(tmp_path: Path, readers: int) -> None:
    parts = Parts(str(tmp_path), cut(3))
    for part in (2, 0, 1):
        parts.save(part)
    assert parts.said() == []
    assert_readers_get(parts.whole, str(tmp_path), readers)


def test_parts_may_leave_out_the_padding(tmp_path: Path) -> None:
    halves: list[Ranges] = [[], []]
    for _, start, size, _ in MODEL:  # FSDP cuts like this: rows of each tensor
        halves[0].append((start, start + size // 2))
        halves[1].append((start + size // 2, start + size))
    parts = Parts(str(tmp_path), halves)
    parts.save(0)
    parts.save(1)
    assert_readers_get(parts.whole, str(tmp_path), 3)


def test_reader_without_a_layout_takes_it_from_the_checkpoint(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), cut(2))
    parts.save(0)
    parts.save(1)
    ranges, into = cut(3)[1], {}

    def place(layout: Layout) -> tuple[dict[str, Tensor], Ranges]:
        assert layout == MODEL
        into.update({key: torch.zeros(sum(b - a for a, b in ranges)) for key in parts.whole})
        return into, ranges

    assert parts.books[0].checkpoints.restore(place) is not None
    assert all(torch.equal(into[key], take(parts.whole[key], ranges)) for key in parts.whole)


def test_checkpoint_without_all_parts_does_not_count(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), cut(3))
    for part in range(3):
        parts.save(part)
    for part in (0, 2):
        parts.save(part, step=2)
    assert not parts.books[0].checkpoints.whole(2, 1)
    assert_readers_get(parts.whole, str(tmp_path), 1, step=1)
    parts.save(1, step=2)  # the part is late, but there
    assert parts.books[0].checkpoints.whole(2, 1)
    assert_readers_get(parts.whole, str(tmp_path), 1, step=2)
    assert parts.said() == []


class Abreast(FileStorage):
    """A bucket that two writers share: no description is written before both arrive."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.both = threading.Barrier(2)
        self.manifests = 0

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        generation = super().write(path, data, if_generation=if_generation)
        if "/part-" in path:
            self.both.wait(60)
        else:
            self.manifests += 1
        return generation


def test_two_writers_that_see_all_parts_write_one_manifest(tmp_path: Path) -> None:
    parts, storage = Parts(str(tmp_path), cut(2)), Abreast(tmp_path)
    parts.books = [Book(storage), Book(storage)]
    writers = [threading.Thread(target=parts.save, args=(part,)) for part in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert storage.manifests == 1
    assert parts.said() == []
    assert_readers_get(parts.whole, str(tmp_path), 1)


def test_parts_of_different_steps_do_not_mix(tmp_path: Path) -> None:
    """Part 0 was written, then a server was lost; the steps are taken again, with fewer trainers."""
    parts = Parts(str(tmp_path), cut(2))
    parts.save(0, lineage=1)
    for part in range(2):
        parts.save(part, lineage=2)
    assert not parts.books[0].checkpoints.whole(1, 1)
    assert parts.said() == [
        "checkpoint step-00000001-attempt-1 is there already, or was begun; the next one is tried",
        "checkpoint step-00000001-attempt-1 does not count: its parts are not of the same steps",
    ]


def test_damaged_part_is_seen_only_by_readers_that_need_it(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), cut(2))
    for step in (1, 2):
        for part in range(2):
            parts.save(part, step=step)
    newest, older = "step-00000002-attempt-1", "step-00000001-attempt-1"
    parts.books[0].file(f"{newest}/part-00001-of-00002.safetensors").write_bytes(b"damaged")
    got = []
    for part, book in enumerate(parts.books):
        into = {key: torch.zeros(sum(b - a for a, b in parts.ranges[part])) for key in parts.whole}
        restored = book.checkpoints.restore(into, parts.ranges[part])
        assert restored is not None
        got.append((restored.name, book.checkpoints.bad))
    assert got == [(newest, set()), (older, {newest})]
    # Now they agree: all skip the checkpoint that one of them found damaged.
    into = {key: torch.zeros(sum(b - a for a, b in parts.ranges[0])) for key in parts.whole}
    restored = parts.books[0].checkpoints.restore(into, parts.ranges[0], skip={newest})
    assert restored is not None
    assert restored.name == older


@pytest.mark.slow
def test_parts_in_google_storage_are_restored(gcs_bucket: str) -> None:
    parts = Parts(gcs_bucket, cut(3))
    for part in (2, 0, 1):
        parts.save(part)
    assert_readers_get(parts.whole, gcs_bucket, 2)
    parts.save(1)
    assert parts.said() == ["checkpoint step-00000001-attempt-1 is there already, or was begun; the next one is tried"]
    parts.books[0].storage.write(f"{FOLDER}/step-00000001-attempt-1/part-00002-of-00003.safetensors", b"damaged")
    ranges = [cut(3)[part] for part in range(3)]
    results = []
    for part in range(3):
        into = {key: torch.zeros(sum(b - a for a, b in ranges[part])) for key in parts.whole}
        results.append(parts.books[part].checkpoints.restore(into, ranges[part]) is not None)
    assert results == [True, True, False]
    assert parts.books[2].checkpoints.bad == {"step-00000001-attempt-1"}


def test_overlaps_of_ranges_equal_those_found_element_by_element() -> None:
    """The plain way looks at each element by itself."""
    chance = torch.Generator().manual_seed(3)

    def some() -> Ranges:
        places = sorted(set(torch.randint(0, 60, (10,), generator=chance).tolist()))
        return list(zip(places[::2], places[1::2], strict=False))

    for _ in range(200):
        first, second = some(), some()
        places = [{e: i for i, e in enumerate(x for a, b in ranges for x in range(a, b))} for ranges in (first, second)]
        expected = [(e, place, places[1][e]) for e, place in places[0].items() if e in places[1]]
        found = [
            (start + i, place + i, other + i) for start, place, other, n in overlaps(first, second) for i in range(n)
        ]
        assert found == expected


# -- progress ----------------------------------------------------------------------------------------------------------


def test_scale_of_fp16_falls_at_once_and_grows_slowly() -> None:
    progress = Progress(scale=1024.0)
    progress.count(finite=False, scaled=True)
    assert (progress.step, progress.updates, progress.skipped, progress.scale) == (1, 0, 1, 512.0)
    for _ in range(SCALE_GROWTH - 1):
        progress.count(finite=True, scaled=True)
    assert (progress.scale, progress.skipped) == (512.0, 0)
    progress.count(finite=True, scaled=True)
    assert progress.scale == 1024.0


def test_scale_without_fp16_stays_one() -> None:
    progress = Progress()
    for finite in (True, False, True):
        progress.count(finite=finite, scaled=False)
    assert progress == Progress(step=3, updates=2, scale=1.0)
