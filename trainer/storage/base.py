"""gs:// and file:// behind one small interface, and the file:// half of it.

A storage holds files under relative paths such as `runs/<run>/status.json`. Every file has a generation, a number
that grows with each write of that path, so that several machines can agree on who wrote last. Google's half is
trainer/storage/google.py, imported only for gs:// addresses. Nothing here imports torch.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a rename is on disk only once its folder is
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems refuse to
            raise
    finally:
        os.close(descriptor)
