"""Use a folder of this machine as a bucket."""

import errno
import fcntl
import filecmp
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.storage.base import (
    LOCK,
    ByteProgress,
    Conflict,
    Entries,
    Entry,
    StorageError,
    _sync_folder,
    chunks,
    explain,
    is_internal,
    new_file,
    path_parts,
)


@contextmanager
def _for_people(doing: str) -> Iterator[None]:
    """Raise an operating system's error as one line for a person. doing: such as "read /folder/file"."""
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
        if doing.startswith("read "):  # as on gs://, where a folder is no object
            raise FileNotFoundError(f"{doing.removeprefix('read ')} is not there") from error
        raise explain(error, doing) from error
    except OSError as error:
        raise explain(error, doing) from error


class FileStorage:
    """A folder. A file's generation is its modification time in nanoseconds, made to grow with every write.

    Any number of threads and processes may use a folder. A writer compares the generation and replaces the file under
    an flock on `<folder>/.lock`. The modification time of that lock is the highest generation so far, so that
    generations grow even if a file is deleted or the clock goes back. Readers take no lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100  (removes .. and keeps links)
        self.url = self.root.as_uri()

    def read(self, path: str) -> bytes:
        return self.read_generation(path)[0]

    def read_generation(self, path: str) -> tuple[bytes, int]:
        target = self._where(path)
        with _for_people(f"read {target}"), target.open("rb") as file:
            return file.read(), _generation(
                os.fstat(file.fileno())
            )  # of the open file, as its name may be another file's by now

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        return self._put(path, [data], if_generation)

    def size(self, path: str) -> int | None:
        target = self._where(path)
        try:
            with _for_people(f"read {target}"):
                entry = self._entry(target)
        except FileNotFoundError:
            return None
        return entry.size if entry else None

    def list(self, prefix: str) -> Entries:
        base = self._where(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        entries: Entries = []
        with _for_people(f"list {base}"):
            for folder, _, names in os.walk(base, onerror=_raise_unless_absent):
                for name in names:
                    if not is_internal(name) and (entry := self._entry(Path(folder, name))) is not None:
                        entries.append(entry)
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str, *, generation: int | None = None) -> None:
        target = self._where(path)
        if not target.is_file():
            return
        with _for_people(f"delete {target}"), self._locked():
            if generation not in (None, _generation(target.stat())):
                return
            target.unlink(missing_ok=True)
            for folder in target.parents:  # a folder exists only while something is in it, as on gs://
                if folder == self.root or any(folder.iterdir()):
                    break
                folder.rmdir()

    def upload(
        self,
        source: Path,
        path: str,
        progress: ByteProgress | None = None,
        *,
        if_generation: int | None = None,
        restartable: bool = False,
    ) -> int:
        with source.open("rb") as file:
            return self._put(path, chunks(file, progress), if_generation)

    def download(self, path: str, target: Path, progress: ByteProgress | None = None) -> None:
        origin = self._where(path)
        with _for_people(f"read {origin}"):
            source = origin.open("rb")
        with source, _for_people(f"write {target}"), new_file(target) as file:
            for chunk in chunks(source, progress):
                file.write(chunk)

    def matches(self, source: Path, path: str) -> bool:
        target = self._where(path)
        with _for_people(f"compare {target}"):
            return target.is_file() and filecmp.cmp(source, target, shallow=False)

    def local_path(self, path: str) -> Path | None:
        return self._where(path)

    def _where(self, path: str) -> Path:
        target = self.root.joinpath(*path_parts(path))
        if not target.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"{target} is a link that leads out of {self.root}; put the file itself there")
        return target

    def _entry(self, target: Path) -> Entry | None:
        try:
            file_stat = target.stat()
        except FileNotFoundError:  # deleted since the folder was read, or a link to nothing
            return None
        if not stat.S_ISREG(file_stat.st_mode) or not target.resolve().is_relative_to(self.root.resolve()):
            return None
        path = target.relative_to(self.root).as_posix()
        return Entry(path, file_stat.st_size, _generation(file_stat), file_stat.st_mtime)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Yield the lock's file descriptor, while no other thread or process has the lock of this folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)  # and so unlocks

    def _put(self, path: str, data: Iterable[bytes], if_generation: int | None) -> int:
        target = self._where(path)
        temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")
        with _for_people(f"write {target}"):
            self._expect(target, if_generation)  # before a large file is copied for nothing
            with self._locked():  # so that nobody deletes the folder, or sweeps the file before it has its own lock
                target.parent.mkdir(parents=True, exist_ok=True)
                _sweep(target.parent)
                file = temporary.open("xb")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                with file:
                    file.writelines(data)
                    file.flush()
                    os.fsync(file.fileno())
                    with self._locked() as lock:
                        current = self._expect(target, if_generation)
                        generation = _stamp(file.fileno(), max(current, os.fstat(lock).st_mtime_ns))
                        temporary.replace(target)
                        os.utime(lock, ns=(generation, generation))
                _sync_folder(target.parent)
                return generation
            finally:
                temporary.unlink(missing_ok=True)

    def _expect(self, target: Path, if_generation: int | None) -> int:
        """Return the generation of `target`, 0 if it is absent. Raise Conflict if it is not the expected one."""
        try:
            current = _generation(target.stat())
        except FileNotFoundError:
            current = 0
        if if_generation is not None and current != if_generation:
            raise Conflict(f"{target} has generation {current}, not {if_generation}")
        return current


def _generation(file_stat: os.stat_result) -> int:
    return max(1, file_stat.st_mtime_ns)  # 0 means absent, and some tools date files to the epoch


def _stamp(descriptor: int, floor: int) -> int:
    """Date an open file now, but later than `floor`, and return the date, both in nanoseconds since the epoch."""
    stamp = max(time.time_ns(), floor + 1)
    for grain in (0, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000):  # file systems round dates down, FAT to 2 s
        os.utime(descriptor, ns=(stamp + grain, stamp + grain))
        if (dated := os.fstat(descriptor).st_mtime_ns) > floor:
            return dated
    raise OSError(errno.EINVAL, "this file system does not keep modification times; use another folder")


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of writers that were killed: nobody has their lock any more."""
    for path in folder.glob(".*.tmp"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:  # a writer has it, or has just finished
            pass


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
