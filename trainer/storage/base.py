"""The interface of a bucket's storage, and what both kinds of it share: local.py and google.py.

A storage holds files under relative paths (trainer/contract/paths.py). Every file has a generation, a number that grows
with each write of that path, so that several machines can agree on who wrote last.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

ByteProgress = Callable[[int], None]  # called with the number of further bytes done, perhaps from several threads
COPY_BYTES = 4 * 1024 * 1024
LOCK = ".lock"


class Conflict(Exception):
    """A conditional write found another generation than the one that it should replace."""


class StorageError(Exception):
    """One line for a person: what could not be read or written, and what to do."""


class Unavailable(StorageError):
    """The storage cannot be used now; the same may work later."""


class Refused(StorageError):
    """The account may not do that, or its grant is still on its way."""


class NoBucket(StorageError):
    """There is no such bucket."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    path: str  # relative to the storage, with slashes
    size: int  # bytes
    generation: int
    updated: float  # seconds since the epoch


Entries = list[Entry]  # named here, because within Storage `list` is a method


class Storage(Protocol):
    """A bucket. Every method raises StorageError, in one line for a person, for what a person can fix."""

    url: str  # without a slash at the end

    def read(self, path: str) -> bytes:
        """Return the content of a small file. Raise FileNotFoundError."""

    def read_generation(self, path: str) -> tuple[bytes, int]:
        """Return the content of a small file and the generation of exactly these bytes. Raise FileNotFoundError."""

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        """Write a file, whole or not at all, and return its new generation.

        if_generation: replace only this generation (0: write only if the file is absent). Raise Conflict for another.
        """

    def size(self, path: str) -> int | None:
        """Return the bytes of a file; None if it is absent."""

    def list(self, prefix: str) -> Entries:
        """Return all files below a folder, at any depth, sorted by path. "" is the whole bucket."""

    def delete(self, path: str, *, generation: int | None = None) -> None:
        """Delete a file. An absent file is no error.

        generation: the one to delete, for good. Without it, a bucket with versions keeps the file as an old version.
        """

    def upload(
        self,
        source: Path,
        path: str,
        progress: ByteProgress | None = None,
        *,
        if_generation: int | None = None,
        restartable: bool = False,
    ) -> int:
        """Write a file of any size from this machine, as write() does, checked on arrival.

        restartable: a later call continues where a call that was killed stopped (on gs://; a local copy starts again).
        """

    def download(self, path: str, target: Path, progress: ByteProgress | None = None) -> None:
        """Copy a file of any size to this machine, checked; `target` appears whole or not at all.

        Raise FileNotFoundError.
        """

    def matches(self, source: Path, path: str) -> bool:
        """Return whether the file at `path` is there and has the content of `source`."""

    def local_path(self, path: str) -> Path | None:
        """Return where the file is, or would be, on this machine; None for gs://."""


def path_parts(path: str) -> list[str]:
    """Return the parts of a path inside a storage. Raise StorageError for a path that could lead out of it."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part or is_internal(part) for part in parts):
        raise StorageError(f"{path!r} is not a path inside a bucket; write it as folder/file, without . or ..")
    return parts


def is_internal(name: str) -> bool:
    """Return whether a file of this name is our own lock or an unfinished file."""
    return name == LOCK or (name.startswith(".") and name.endswith((".tmp", ".part")))


def explain(error: OSError, doing: str) -> StorageError:
    """Return an operating system's error in words that say what to do. doing: such as "write /folder/file"."""
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
    """Yield a file that takes the place of `target`, safe on disk, when the block ends without an error.

    The folder of `target` is made if it is missing. Raise OSError.
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


def chunks(file: BinaryIO, progress: ByteProgress | None) -> Iterator[bytes]:
    """Yield the rest of a file in pieces, and report each to `progress` after the caller has dealt with it."""
    while chunk := file.read(COPY_BYTES):
        yield chunk
        if progress is not None:
            progress(len(chunk))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a rename is on disk only when its folder is
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
