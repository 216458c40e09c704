"""Checkpoints: what was saved comes back, and what is damaged is passed over."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import SCALE_GROWTH, Checkpoints, Progress
from trainer.storage import FileStorage, Storage, StorageError, open_storage

RUN = "a-run"
FOLDER = f"runs/{RUN}/checkpoints"
LAYOUT = [("b", 0, 70), ("a", 128, 10)]
Layout = list[tuple[str, int, int]]


def vectors(value: float) -> dict[str, Tensor]:
    return {"parameters": torch.full((192,), value), "moment1": torch.full((192,), 2 * value)}


class Book:
    """Checkpoints of a bucket, and what they logged."""

    def __init__(self, storage: Storage, keep: int = 2) -> None:
        self.said: list[str] = []
        self.storage = storage
        self.checkpoints = Checkpoints(storage, RUN, keep, self.said.append)

    def save(self, step: int, attempt: int = 1, value: float | None = None) -> None:
        self.checkpoints.save(vectors(step if value is None else value), Progress(step=step), attempt, LAYOUT)
        self.checkpoints.wait()

    def restore(self, layout: Layout = LAYOUT) -> tuple[int, float] | None:
        """(step, the value that fills the parameters) of what is restored; None, and nothing touched, if nothing is."""
        into = vectors(-1.0)
        progress = self.checkpoints.restore(into, layout)
        assert len(set(into["parameters"].tolist())) == 1
        value = float(into["parameters"][0])
        assert torch.equal(into["moment1"], 2 * into["parameters"])
        if progress is None:
            assert value == -1.0
            return None
        return progress.step, value

    def names(self) -> list[str]:
        return sorted({entry.path.split("/")[3] for entry in self.storage.list(FOLDER)})

    def file(self, name: str) -> Path:
        path = self.storage.local_path(f"{FOLDER}/{name}")
        assert path is not None
        return path


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(open_storage(str(tmp_path)))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)), RUN, 2, print)
    saved = {"parameters": torch.randn(192), "moment1": torch.randn(192)}
    progress = Progress(
        step=7, updates=6, evaluations=5, lineage=123, scale=4.0, good_steps=3, skipped=1, validation_loss=2.5
    )
    checkpoints.save(saved, progress, 1, LAYOUT)
    checkpoints.wait()
    into = vectors(0.0)
    assert checkpoints.restore(into, LAYOUT) == progress
    assert all(torch.equal(into[key], saved[key]) for key in saved)


@pytest.mark.slow
def test_the_same_through_google_storage(gcs_bucket: str) -> None:
    book = Book(open_storage(gcs_bucket))
    for step in (1, 2, 3):
        book.save(step)
    assert book.said == []
    assert book.names() == ["step-00000002-attempt-1", "step-00000003-attempt-1"]
    assert book.restore() == (3, 3.0)
    book.storage.write(f"{FOLDER}/step-00000003-attempt-1/moment1.safetensors", b"damaged")
    assert book.restore() == (2, 2.0)
    book.save(2, value=9.0)
    assert book.restore() == (2, 2.0)  # not written over


def test_what_changes_after_save_is_not_in_it(book: Book) -> None:
    values, progress = vectors(1.0), Progress(step=1)
    book.checkpoints.save(values, progress, 1, LAYOUT)
    for vector in values.values():
        vector.zero_()
    progress.step = 99
    book.checkpoints.wait()
    assert book.restore() == (1, 1.0)


def test_nothing_to_restore(book: Book) -> None:
    assert book.restore() is None
    assert book.said == []


def test_the_newest_is_restored(book: Book) -> None:
    book.checkpoints = Checkpoints(book.storage, RUN, 10, book.said.append)
    for step, attempt in [(900, 1), (1000, 2), (1000, 10), (1000, 9), (999, 11)]:
        book.save(step, attempt, value=attempt)
    assert book.restore() == (1000, 10.0)  # by number and not by letter: attempt 10 is after 9


@pytest.mark.parametrize("file", ["parameters.safetensors", "moment1.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "empty"])
def test_a_damaged_checkpoint_is_passed_over(book: Book, file: str, damage: str) -> None:
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
        assert book.said == []  # it was never whole: nobody promised it
    else:
        assert len(book.said) == 1
        assert book.said[0].startswith("checkpoint step-00000002-attempt-1 is skipped: ")
        assert "\n" not in book.said[0]


@pytest.mark.parametrize(
    "change",
    [
        {"layout": [["b", 0, 71], ["a", 128, 10]]},
        {"layout": "none"},
        {"layout": None},
        {"files": {}},
        {"files": None},
        {"progress": {"step": 2, "unheard": 1}},
        {"progress": None},
    ],
    ids=str,
)
def test_a_manifest_that_says_something_else(book: Book, change: dict[str, object]) -> None:
    book.save(1)
    book.save(2)
    path = book.file("step-00000002-attempt-1/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert book.restore() == (1, 1.0)
    assert len(book.said) == 1


def test_another_models_checkpoint_is_not_loaded(book: Book) -> None:
    book.save(1)
    assert book.restore([("b", 0, 71), ("a", 128, 10)]) is None
    assert book.said == ["checkpoint step-00000001-attempt-1 is skipped: it holds another model"]


def test_the_newest_are_kept(book: Book) -> None:
    for step in range(1, 6):
        book.save(step)
    assert book.names() == ["step-00000004-attempt-1", "step-00000005-attempt-1"]


def test_what_was_begun_and_never_finished_is_cleaned_up(book: Book) -> None:
    book.save(1)
    book.file("step-00000001-attempt-1/manifest.json").unlink()  # its writer was killed before it wrote this
    for step in (2, 3, 4):
        book.save(step)
    assert book.names() == ["step-00000003-attempt-1", "step-00000004-attempt-1"]


def test_files_of_others_are_left_alone(book: Book) -> None:
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


class Full(FileStorage):
    """A disk that has no room for a shard."""

    refuse = True

    def upload(self, source: Path, path: str, *further: object, **options: object) -> int:
        if self.refuse and path.endswith("moment1.safetensors"):
            raise StorageError(f"cannot write {path}: the disk is full; free some space")
        return super().upload(source, path, *further, **options)  # type: ignore[arg-type]


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    storage = Full(tmp_path)
    book = Book(storage)
    book.save(1)
    assert len(book.said) == 1
    assert "could not be written" in book.said[0]
    assert "free some space" in book.said[0]
    assert book.restore() is None  # half of it is none of it
    storage.refuse = False
    book.save(2)
    assert book.restore() == (2, 2.0)


# -- progress ----------------------------------------------------------------------------------------------------------


def test_the_scale_of_fp16_falls_at_once_and_grows_slowly() -> None:
    progress = Progress(scale=1024.0)
    progress.count(finite=False, scaled=True)
    assert (progress.step, progress.updates, progress.skipped, progress.scale) == (1, 0, 1, 512.0)
    for _ in range(SCALE_GROWTH - 1):
        progress.count(finite=True, scaled=True)
    assert (progress.scale, progress.skipped) == (512.0, 0)
    progress.count(finite=True, scaled=True)
    assert progress.scale == 1024.0


def test_without_fp16_nothing_is_scaled() -> None:
    progress = Progress()
    for finite in (True, False, True):
        progress.count(finite=finite, scaled=False)
    assert progress == Progress(step=3, updates=2, scale=1.0)
