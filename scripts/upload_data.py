"""Check a text file and put it into a bucket under data/, where a run finds it. Safe to stop and to run again.

For a stack on Google Cloud it also writes FILE.lock.json. Commit that file: `pulumi up` reads it instead of the text.
A text that is in a bucket already (gs://bucket/object) is read once, and data/NAME.lock.json is written.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

from infra.inputs.data_lock import DataLock, lock_path, write_lock
from scripts.support.common import (
    CHECKOUT,
    UserError,
    add_bucket_arguments,
    bucket_url,
    google_stack,
    megabytes,
    progress_bar,
    run_main,
    stack_bucket,
)
from trainer.contract import paths
from trainer.contract.identity import sha256_of
from trainer.data.pairs import PairFile
from trainer.data.text import check_text, decode, size_of
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage


@dataclass(frozen=True)
class Uploaded:
    target: str  # the path in the bucket
    sha256: str
    size: int  # bytes
    there: bool  # it was there before


def upload(storage: Storage, path: Path) -> Uploaded:
    """Check and upload a file. Raise InputError if it is not text, UserError if it cannot be read or changes."""
    try:
        size = size_of(path, str(path))
        before = path.stat()
        with progress_bar("checking", size) as progress:
            check_text(path, str(path), progress)
        digest = sha256_of(path)
        target = paths.text(digest[:16], path.name)  # the same fingerprint as identity.fingerprint()
        if storage.matches(path, target):
            return Uploaded(target, digest, size, there=True)
        with progress_bar("uploading", size) as progress:
            generation = storage.upload(path, target, progress, restartable=True)
        after = path.stat()
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; check its owner and mode") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        storage.delete(target, generation=generation)  # its path names the fingerprint of another content
        raise UserError(f"{path}: it changed while it was uploaded; wait until nothing writes it and run again")
    return Uploaded(target, digest, size, there=False)


class TextCheck:
    """A checker of a text that comes in pieces. It checks for UTF-8 and computes the SHA-256, and keeps no piece."""

    def __init__(self, name: str) -> None:
        self.size = 0  # bytes
        self._name, self._rest, self._sum = name, b"", hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raise InputError if it is not text."""
        data = self._rest + piece
        end = len(data) - unfinished(data)
        decode(data[:end], self.size - len(self._rest), self._name)
        self._rest = data[end:]
        self._sum.update(piece)
        self.size += len(piece)

    def finish(self) -> str:
        """Return the SHA-256 of all pieces. Raise InputError if they end within a character, UserError if empty."""
        if not self.size:
            raise UserError(f"{self._name}: the object is empty: give one with text")
        decode(self._rest, self.size - len(self._rest), self._name)
        return self._sum.hexdigest()


def unfinished(data: bytes) -> int:
    """Return how many bytes at the end belong to an incomplete UTF-8 character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:  # a character's first byte, which gives its length
            length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return back if length > back else 0
    return 0


def lock_remote(url: str, folder: Path) -> Path:
    """Read gs://bucket/object once and write its lock into `folder`. Return the path that the text itself would have.

    Raise UserError or InputError if the object cannot be read or is not text.
    """
    from scripts.support.buckets import read_object  # 0.2 s of imports that a local stack does not need

    name = url.rpartition("/")[2]
    if not name or url.count("/") < 3:
        raise UserError(f"{url}: give the address of one text, gs://bucket/object")
    check = TextCheck(url)
    size, pieces = read_object(url)
    with progress_bar(f"reading {name}", size) as progress:
        for piece in pieces:
            check.write(piece)
            progress(len(piece))
    lock = DataLock(url=url, sha256=check.finish(), size=check.size)
    write_lock(folder / name, lock)
    return folder / name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.upload_data", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="the text, UTF-8, of any size; or its address, gs://bucket/object")
    add_bucket_arguments(parser)
    options = parser.parse_args(arguments)
    if options.file.startswith("gs://"):
        text = lock_remote(options.file, CHECKOUT / "data")
        print(f"read and noted: {options.file} is UTF-8 text")
        print("the machines read it there: their service accounts need roles/storage.objectViewer on its bucket")
        _print_next_steps(text, locked=True)
        return 0
    path = Path(options.file)
    if path.suffix.lower() == ".jsonl":
        _check_pairs(path)
    if options.bucket is None and stack_bucket(options.stack).startswith("gs://"):
        _upload_to_stack(options.stack, path)
        _print_next_steps(path, locked=True)
        return 0
    storage = open_storage(bucket_url(options))
    uploaded = upload(storage, path)
    _print_uploaded(storage, uploaded)
    _print_next_steps(path, locked=False)
    return 0


def _check_pairs(path: Path) -> None:
    """Print which lines a run would refuse. This is no error: the stack file may skip some, or use the file as text."""
    size = size_of(path, str(path))
    pairs = PairFile(path, str(path), skip=size)
    count = sum(1 for _ in pairs)
    print(f"{path}: {count:,} pairs of prompt and completion")
    if pairs.skipped:
        print(
            f"{path}:{pairs.bad[0]}: one of {pairs.skipped:,} bad lines: a run refuses the file, unless there is"
            f" data.skipBadLines: {pairs.skipped}"
        )


def _upload_to_stack(stack: str, path: Path) -> None:
    """Upload a text into the data bucket of a stack on Google Cloud, and write its lock."""
    from scripts.support.buckets import ensure_bucket  # as in lock_remote()

    size_of(path, str(path))  # checks the file before a bucket is made
    config = google_stack(stack)
    if ensure_bucket(config):
        print(f"made {config.data_bucket} in {config.region}; `pulumi up --stack {stack}` takes it over")
    storage = open_storage(config.data_bucket)
    uploaded = upload(storage, path)
    _print_uploaded(storage, uploaded)
    url = f"{storage.url}/{uploaded.target}"
    write_lock(path, DataLock(url=url, sha256=uploaded.sha256, size=uploaded.size))


def _print_uploaded(storage: Storage, uploaded: Uploaded) -> None:
    done = "already there" if uploaded.there else "uploaded"
    print(f"{done}: {storage.url}/{uploaded.target} ({megabytes(uploaded.size)})")


def _print_next_steps(text: Path, *, locked: bool) -> None:
    """Print what to do next."""
    if locked:
        print(f"wrote {_shown(lock_path(text))}: commit it, `pulumi up` reads it in place of the text")
    print("to train on it, write into the stack file, under config:")
    print(f"  gpt2-training:data: {{path: {_yaml(_shown(text))}}}")


def _shown(path: Path) -> str:
    full = path.resolve()
    return (full.relative_to(CHECKOUT) if full.is_relative_to(CHECKOUT) else full).as_posix()


def _yaml(text: str) -> str:
    return text if text.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum() else repr(text)


if __name__ == "__main__":
    run_main(main)
