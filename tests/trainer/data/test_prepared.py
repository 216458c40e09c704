"""Files of prepared data that several processes of a machine want at the same time."""

import hashlib
import os
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

from trainer.data.prepared import fetch
from trainer.storage.base import ByteProgress
from trainer.storage.local import FileStorage

BODY = os.urandom(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
PROCESSES, FILES = 8, 5


class Counted(FileStorage):
    """A bucket that notes its downloads."""

    def __init__(self, root: Path, notes: Path) -> None:
        super().__init__(root)
        self._notes = notes

    def download(self, path: str, target: Path, progress: ByteProgress | None = None) -> None:
        (self._notes / f"{path}-{os.getpid()}").touch()
        super().download(path, target)


def want_all(bucket: Path, notes: Path, cache: Path, everyone: Barrier) -> None:
    storage = Counted(bucket, notes)
    for number in range(FILES):
        everyone.wait(60)
        fetch(storage, f"shard-{number}", cache / f"shard-{number}", len(BODY), SHA256)


def test_files_that_all_processes_want_are_downloaded_once(tmp_path: Path) -> None:
    bucket, notes, cache = (tmp_path / name for name in ("bucket", "notes", "cache"))
    notes.mkdir()
    storage = FileStorage(bucket)
    for number in range(FILES):
        storage.write(f"shard-{number}", BODY)
    context = get_context("fork")
    everyone = context.Barrier(PROCESSES)
    processes = [context.Process(target=want_all, args=(bucket, notes, cache, everyone)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert len(list(notes.iterdir())) == FILES
    assert sorted(file.name for file in cache.iterdir()) == [f"shard-{number}" for number in range(FILES)]
    assert all(file.read_bytes() == BODY for file in cache.iterdir())
