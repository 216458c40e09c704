"""Read the prepared data of a bucket: tokenizer, token shards, pairs. trainer/data/prepare.py writes it.

trainer/contract/paths.py lists the files. The manifest is written last: without it the data counts as absent.
"""

import fcntl
import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.identity import sha256_of
from trainer.contract.options import Data, Strict
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import EXAMPLE, TOKEN, Tokens, tokens_cut_off
from trainer.data.pairs import Pair, SplitName, parse_pair
from trainer.storage.base import Storage

DataProgress = Callable[[int, int], None]  # (bytes done, bytes in all)
log = logging.getLogger(__name__)


class Shard(Strict):
    name: str
    tokens: int
    sha256: str


class Listing(Strict):
    name: str
    bytes: int
    sha256: str


class Split(Strict):
    """The description of one part. Its fields are keys of manifest.json."""

    bytes: int  # of text
    tokens: int
    # The loss, in nats per token, of a model that knows only how often each token occurs in the training part (every
    # count plus one). For pairs, only the tokens of completions and end-of-text count.
    unigram_entropy: float
    shards: list[Shard]
    # Only for pairs.
    examples: int | None = None
    index: Listing | None = None
    lines: Listing | None = None

    @property
    def files(self) -> dict[str, int]:
        """The name of each file and its size in bytes."""
        sizes = {shard.name: shard.tokens * TOKEN.itemsize for shard in self.shards}
        return sizes | {listing.name: listing.bytes for listing in (self.index, self.lines) if listing is not None}


class Manifest(Strict):
    version: Literal[1] = 1
    fingerprint: str  # of the text
    tokenizer: Literal["train", "gpt2", "byte", "checkpoint"]
    tokenizer_sha256: str
    vocabulary_size: int
    train: Split
    validation: Split
    test: Split | None = None  # only for pairs
    skipped: int = 0  # bad lines of a file of pairs


@dataclass(frozen=True)
class Prepared:
    """Prepared data in a bucket."""

    storage: Storage
    folder: str  # in the bucket
    manifest: Manifest

    def tokenizer(self) -> Tokenizer:
        """Return the vocabulary. Raise InputError if its file is damaged."""
        path = f"{self.folder}/tokenizer.json"
        content = self.storage.read(path)
        if hashlib.sha256(content).hexdigest() != self.manifest.tokenizer_sha256:
            raise InputError(damaged(self.storage, path, self.folder))
        return vocabularies.parse_tokenizer(content.decode(), f"{self.storage.url}/{path}")

    def tokens(self, name: SplitName, cache: Path | None = None, progress: DataProgress | None = None) -> Tokens:
        """Return the tokens of a part, memory-mapped.

        If the bucket is not a folder of this machine, its files are fetched and checked once.

        Args:
            name: the part.
            cache: the folder for fetched files; cache_folder() if None.
            progress: called with the bytes fetched so far and the bytes of all shards.

        Raises:
            InputError: if a shard is damaged.
        """
        split = self._split(name)
        files = []
        done, total = 0, split.tokens * TOKEN.itemsize
        for shard in split.shards:
            size = shard.tokens * TOKEN.itemsize
            files.append(self._file(shard.name, size, shard.sha256, cache))
            done += size
            if progress:
                progress(done, total)
        return Tokens(files)

    def examples(self, name: SplitName, cache: Path | None = None) -> NDArray[np.void]:
        """Return the index of a part of pairs: rows of batches.EXAMPLE, in the order of the source file.

        Raise InputError if the file is damaged.
        """
        index = self._split(name).index
        assert index is not None
        return np.fromfile(self._file(index.name, index.bytes, index.sha256, cache), EXAMPLE)

    def pairs(self, name: SplitName, cache: Path | None = None) -> list[Pair]:
        """Return the texts of a part of pairs, in the order of examples(). Raise InputError if the file is damaged."""
        lines = self._split(name).lines
        assert lines is not None
        file = self._file(lines.name, lines.bytes, lines.sha256, cache)
        try:
            with file.open("rb") as content:
                return [parse_pair(line) for line in content]
        except ValueError:
            raise InputError(damaged(self.storage, f"{self.folder}/{lines.name}", self.folder)) from None

    def truncated(self, name: SplitName, sequence_length: int) -> int:
        """Return how many examples of a part lose the beginning of their prompt to fit into a sequence."""
        return int((tokens_cut_off(self.examples(name), sequence_length) > 0).sum())

    def _split(self, name: SplitName) -> Split:
        split: Split | None = getattr(self.manifest, name)
        if split is None:
            raise InputError(f"{self.storage.url}/{self.folder}: has no {name} part: only pairs have one")
        return split

    def _file(self, name: str, size: int, sha256: str, cache: Path | None) -> Path:
        """Return the path of a file on this machine. Fetch and check it if the bucket is elsewhere."""
        path = f"{self.folder}/{name}"
        file = self.storage.local_path(path)
        if file is None:
            # The name contains the content's hash: an existing file was checked, whichever bucket it came from.
            file = (cache or cache_folder()) / self.manifest.fingerprint / f"{sha256[:16]}-{name}"
            fetch(self.storage, path, file, size, sha256)
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(damaged(self.storage, path, self.folder))
        return file


def cache_folder() -> Path:
    """Return the folder of this machine that keeps fetched texts and tokens of gs:// buckets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-training" / "data"


def find_prepared(storage: Storage, data: Data, fingerprint: str) -> Prepared | None:
    """Return the data that prepare() made before, or None unless all files exist with the right sizes."""
    folder = paths.tokens(fingerprint, data.tokens_key())
    try:
        manifest = Manifest.model_validate_json(storage.read(f"{folder}/{paths.MANIFEST}"))
    except (FileNotFoundError, ValidationError):
        return None
    sizes = {entry.path: entry.size for entry in storage.list(folder)}
    for split in filter(None, (manifest.train, manifest.validation, manifest.test)):
        if any(sizes.get(f"{folder}/{name}") != size for name, size in split.files.items()):
            return None
    if f"{folder}/{paths.TOKENIZER}" not in sizes:
        return None
    return Prepared(storage, folder, manifest)


def fetch(storage: Storage, path: str, target: Path, size: int, sha256: str) -> None:
    """Download a file to `target` unless it is there already, and check it.

    A file gets its final name only after the check, so an existing file of the right size is not checked again. Of the
    processes of a machine that want it at the same time, one downloads it, and the others wait.

    Args:
        storage: the bucket.
        path: the file in the bucket.
        target: its path on this machine.
        size: its bytes.
        sha256: its SHA-256 in hexadecimal, or the first digits of it.

    Raises:
        InputError: if the content has another SHA-256.
    """
    if _is_there(target, size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f".{target.name}.lock")):
        if _is_there(target, size):  # another process has fetched it meanwhile
            return
        log.info("fetching %s/%s (%.0f MB)", storage.url, path, size / 1e6)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            storage.download(path, temporary)
            if not sha256_of(temporary).startswith(sha256):
                raise InputError(f"{storage.url}/{path}: not what was put there (its SHA-256 differs): upload it again")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _is_there(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file, while no other process or thread has it. The kernel frees that of a dead process.

    The file is removed in the end. Whoever waited for it then finds what was fetched, and so does everyone who comes
    later. After a failure two may download at once, to files of their own.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def damaged(storage: Storage, path: str, folder: str) -> str:
    """Return the error text for a damaged file `path` of the prepared data in `folder`."""
    return f"{storage.url}/{path}: damaged or gone: delete {storage.url}/{folder}, and it is made again"
