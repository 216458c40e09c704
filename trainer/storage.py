"""gs:// and file:// behind one small interface, and the file:// half of it.

A storage holds files under relative paths such as `runs/<run>/status.json`. Every file has a generation, a number
that grows with each write of that path, so that several machines can agree on who wrote last. Google's half is
trainer/google_storage.py, imported only for gs:// addresses. Nothing here imports torch.
"""

import errno
import fcntl
import filecmp
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

Progress = Callable[[int], None]  # called with the number of further bytes done; perhaps from several threads

COPY_BYTES = 4 * 1024 * 1024
LOCK = ".lock"


class Conflict(Exception):
    """A conditional write found another generation than the one it was told to replace."""


class StorageError(Exception):
    """One line for a person: what could not be read or written, and what to do."""


class Unavailable(StorageError):
    """For now: the same may work later."""


class NoBucket(StorageError):
    """There is no such bucket."""


@dataclass(frozen=True)
class Entry:
    path: str  # relative to the storage, with slashes
    size: int  # bytes
    generation: int
    updated: float  # seconds since the epoch


Entries = list[Entry]  # a name of its own, because a Storage has a method called list


class Storage(Protocol):
    """Every method raises StorageError, in one line for a person, for what a person can mend."""

    url: str  # without a slash at the end

    def read(self, path: str) -> bytes:
        """A whole small file. FileNotFoundError if it is not there."""

    def read_generation(self, path: str) -> tuple[bytes, int]:
        """A whole small file and the generation of exactly these bytes. FileNotFoundError if it is not there."""

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        """Writes whole or not at all and returns the new generation.

        With `if_generation` only over that generation (0: only if absent), else Conflict.
        """

    def list(self, prefix: str) -> Entries:
        """All files below a folder, at any depth, sorted by path; "" is everything. Empty if there are none."""

    def delete(self, path: str) -> None:
        """No error if it is absent."""

    def upload(
        self,
        source: Path,
        path: str,
        progress: Progress | None = None,
        *,
        if_generation: int | None = None,
        restartable: bool = False,
    ) -> int:
        """A file of any size from this machine, checked on arrival; the rest is as in write().

        restartable: a later call continues where one that was killed stopped (on gs://; a local copy starts again).
        """

    def download(self, path: str, target: Path, progress: Progress | None = None) -> None:
        """A file of any size to this machine, checked; `target` appears whole or not at all. FileNotFoundError."""

    def matches(self, source: Path, path: str) -> bool:
        """Whether the file at `path` is there and has the same content as `source`."""

    def local_path(self, path: str) -> Path | None:
        """Where the file lies (or would lie) on this machine; None for gs://."""


def open_storage(url: str) -> Storage:
    """Opens "gs://bucket", "gs://bucket/folder", "file:///folder" or a plain folder path.

    Nothing is created before the first write. StorageError for any other address and if there are no credentials.
    """
    if url.startswith("gs://"):
        from trainer.google_storage import GoogleStorage

        bucket, _, prefix = url.removeprefix("gs://").partition("/")
        if not bucket:
            raise StorageError(f"{url!r} names no bucket; write gs://bucket")
        return GoogleStorage(bucket, prefix.strip("/"))
    if url.startswith("file:"):
        parts = urlsplit(url.replace("?", "%3F").replace("#", "%23"))  # legal in a folder's name
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StorageError(f"{url!r} is not an absolute folder; write file:///folder (three slashes)")
        return FileStorage(Path(unquote(parts.path)))
    if "://" in url or not url:
        raise StorageError(f"{url!r} is no storage; write gs://bucket, file:///folder or the path of a folder")
    return FileStorage(Path(url).expanduser())


def path_parts(path: str) -> list[str]:
    """The checked parts of a path inside a storage. StorageError for one that could lead out of it."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part or is_internal(part) for part in parts):
        raise StorageError(f"{path!r} is not a path inside a bucket; write it as folder/file, without . or ..")
    return parts


def is_internal(name: str) -> bool:
    """Whether a file of this name is our own lock or an unfinished file."""
    return name == LOCK or (name.startswith(".") and name.endswith((".tmp", ".part")))


def explain(error: OSError, doing: str) -> StorageError:
    """An operating system's error in words that say what to do. `doing`: such as "write /folder/file"."""
    no_space = "the disk is full; free some space"
    no_permission = "no permission; check the owner and mode of the folder"
    remedies = {
        errno.ENOSPC: no_space,
        errno.EDQUOT: no_space,
        errno.EACCES: no_permission,
        errno.EPERM: no_permission,
        errno.EROFS: "the disk is read-only; use another folder",
    }
    kind = Unavailable if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"cannot {doing}: {remedies.get(error.errno or 0) or error.strerror or error}")


@contextmanager
def _for_people(doing: str) -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
        if doing.startswith("read "):  # as on gs://, where a folder is no object
            raise FileNotFoundError(f"{doing.removeprefix('read ')} is not there") from error
        raise explain(error, doing) from error
    except OSError as error:
        raise explain(error, doing) from error


@contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `target`, safe on disk, when the block ends without an error; else nothing does.

    Raises OSError. The folder of `target` is made if need be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def chunks(file: BinaryIO, progress: Progress | None) -> Iterator[bytes]:
    """The rest of a file in pieces; `progress` hears of each piece once it was dealt with."""
    while chunk := file.read(COPY_BYTES):
        yield chunk
        if progress is not None:
            progress(len(chunk))


class FileStorage:
    """A folder. A file's generation is its modification time in nanoseconds, made to grow with every write.

    Any number of threads and processes may use one folder: what must be one step (compare the generation and
    replace the file) happens under an flock on `<folder>/.lock`, whose own modification time remembers the highest
    generation given, so that generations grow even if a file is deleted or the clock goes back. Readers take no lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100  (removes .. and keeps links)
        self.url = self.root.as_uri()

    def read(self, path: str) -> bytes:
        return self.read_generation(path)[0]

    def read_generation(self, path: str) -> tuple[bytes, int]:
        target = self._where(path)
        with _for_people(f"read {target}"), target.open("rb") as file:
            return file.read(), _generation(os.fstat(file.fileno()))  # of the file that is open, not of its name

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        return self._put(path, [data], if_generation)

    def list(self, prefix: str) -> Entries:
        base = self._where(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        entries: Entries = []
        with _for_people(f"list {base}"):
            for folder, _, names in os.walk(base, onerror=_raise_unless_absent):
                for name in names:
                    if not is_internal(name) and (entry := self._entry(Path(folder, name))) is not None:
                        entries.append(entry)
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str) -> None:
        target = self._where(path)
        if not target.is_file():
            return
        with _for_people(f"delete {target}"), self._locked():
            target.unlink(missing_ok=True)
            for folder in target.parents:  # a folder exists only while something is in it, as on gs://
                if folder == self.root or any(folder.iterdir()):
                    break
                folder.rmdir()

    def upload(
        self,
        source: Path,
        path: str,
        progress: Progress | None = None,
        *,
        if_generation: int | None = None,
        restartable: bool = False,
    ) -> int:
        with source.open("rb") as file:
            return self._put(path, chunks(file, progress), if_generation)

    def download(self, path: str, target: Path, progress: Progress | None = None) -> None:
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
            found = target.stat()
        except FileNotFoundError:  # deleted since the folder was read, or a link to nothing
            return None
        if not stat.S_ISREG(found.st_mode) or not target.resolve().is_relative_to(self.root.resolve()):
            return None
        path = target.relative_to(self.root).as_posix()
        return Entry(path, found.st_size, _generation(found), found.st_mtime)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Alone in this folder, among threads and processes; yields the lock's file descriptor."""
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
        """The generation at `target`, 0 if there is none. Conflict if it is not the expected one."""
        try:
            current = _generation(target.stat())
        except FileNotFoundError:
            current = 0
        if if_generation is not None and current != if_generation:
            raise Conflict(f"{target} has generation {current}, not {if_generation}")
        return current


def _generation(found: os.stat_result) -> int:
    return max(1, found.st_mtime_ns)  # 0 means absent, and some tools date files to the epoch


def _stamp(descriptor: int, floor: int) -> int:
    """Dates an open file now, but later than `floor`, and returns the date. Both are nanoseconds since the epoch."""
    wanted = max(time.time_ns(), floor + 1)
    for grain in (0, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000):  # file systems round dates down, FAT to 2 s
        os.utime(descriptor, ns=(wanted + grain, wanted + grain))
        if (dated := os.fstat(descriptor).st_mtime_ns) > floor:
            return dated
    raise OSError(errno.EINVAL, "this file system does not keep modification times; use another folder")


def _sweep(folder: Path) -> None:
    """Removes the unfinished files of writers that were killed: nobody holds their lock any more."""
    for path in folder.glob(".*.tmp"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:  # somebody is writing it, or has just finished
            pass


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a rename is on disk only once its folder is
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems refuse to
            raise
    finally:
        os.close(descriptor)


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
