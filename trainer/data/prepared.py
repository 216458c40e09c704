"""Tokens in a bucket: what a folder of token shards holds, and how a machine reads it.

trainer/contract/paths.py lists the files; trainer/data/prepare.py makes them.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.spec import Data, Strict
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import EXAMPLE, TOKEN, Tokens, cut
from trainer.data.pairs import Pair, Part, parse
from trainer.storage.base import Storage

Name = Part
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
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
    bytes: int  # of text
    tokens: int
    # nats a token, of a model that knows only how often each token occurs in the training part, every count plus one;
    # of pairs: a token of a completion or its end-of-text
    unigram_entropy: float
    shards: list[Shard]
    # Of pairs.
    examples: int | None = None
    index: Listing | None = None
    lines: Listing | None = None

    @property
    def files(self) -> dict[str, int]:
        """Names and sizes in bytes."""
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
    test: Split | None = None  # of pairs
    skipped: int = 0  # bad lines of pairs


@dataclass(frozen=True)
class Prepared:
    """Tokens that lie in a bucket."""

    storage: Storage
    folder: str  # in the bucket
    manifest: Manifest

    def tokenizer(self) -> Tokenizer:
        """Raises InputError if the file is damaged."""
        path = f"{self.folder}/{paths.TOKENIZER}"
        content = self.storage.read(path)
        if hashlib.sha256(content).hexdigest() != self.manifest.tokenizer_sha256:
            raise InputError(damaged(self.storage, path, self.folder))
        return vocabularies.parse(content.decode(), f"{self.storage.url}/{path}")

    def tokens(self, name: Name, cache: Path | None = None, progress: Progress | None = None) -> Tokens:
        """The tokens of a part, mapped from the bucket if that is a folder, else fetched and checked once.

        Raises InputError if a shard is damaged.
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

    def examples(self, name: Name, cache: Path | None = None) -> NDArray[np.void]:
        """Where the examples of a part of pairs lie in its tokens: rows of batches.EXAMPLE, in the file's order.

        Raises InputError if the file is damaged.
        """
        index = self._split(name).index
        assert index is not None
        return np.fromfile(self._file(index.name, index.bytes, index.sha256, cache), EXAMPLE)

    def pairs(self, name: Name, cache: Path | None = None) -> list[Pair]:
        """The texts of a part of pairs, in the order of examples(). Raises InputError if the file is damaged."""
        lines = self._split(name).lines
        assert lines is not None
        file = self._file(lines.name, lines.bytes, lines.sha256, cache)
        try:
            with file.open("rb") as content:
                return [parse(line) for line in content]
        except ValueError:
            raise InputError(damaged(self.storage, f"{self.folder}/{lines.name}", self.folder)) from None

    def truncated(self, name: Name, sequence_length: int) -> int:
        """How many examples of a part lose the beginning of their prompt, because they are longer than a sequence."""
        return int((cut(self.examples(name), sequence_length) > 0).sum())

    def _split(self, name: Name) -> Split:
        split: Split | None = getattr(self.manifest, name)
        if split is None:
            raise InputError(f"{self.storage.url}/{self.folder}: has no {name} part: only pairs have one")
        return split

    def _file(self, name: str, size: int, sha256: str, cache: Path | None) -> Path:
        """Where it lies on this machine; fetched and checked if the bucket is elsewhere."""
        path = f"{self.folder}/{name}"
        file = self.storage.local_path(path)
        if file is None:
            # Named by its content: what lies there was checked, whichever bucket it came from.
            file = (cache or cache_folder()) / self.manifest.fingerprint / f"{sha256[:16]}-{name}"
            fetch(self.storage, path, file, size, sha256)
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(damaged(self.storage, path, self.folder))
        return file


def cache_folder() -> Path:
    """Where texts and tokens of a gs:// bucket are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-training" / "data"


def find(storage: Storage, data: Data, fingerprint: str) -> Prepared | None:
    """What prepare() made before, if it is all there (files and their sizes)."""
    folder = paths.tokens(fingerprint, data.tokens_key())
    try:
        manifest = Manifest.model_validate_json(storage.read(f"{folder}/{paths.MANIFEST}"))
    except (FileNotFoundError, ValidationError):
        return None
    there = {entry.path: entry.size for entry in storage.list(folder)}
    for split in filter(None, (manifest.train, manifest.validation, manifest.test)):
        if any(there.get(f"{folder}/{name}") != size for name, size in split.files.items()):
            return None
    if f"{folder}/{paths.TOKENIZER}" not in there:
        return None
    return Prepared(storage, folder, manifest)


def fetch(storage: Storage, path: str, target: Path, size: int, sha256: str) -> None:
    """Downloads, checks, then gives it its name: a file at `target` was checked before. `sha256`: its first digits."""
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching %s/%s (%.0f MB)", storage.url, path, size / 1e6)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        storage.download(path, temporary)
        if not sha256_of(temporary).startswith(sha256):
            raise InputError(f"{storage.url}/{path}: not what was put there (its SHA-256 differs): upload it again")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(storage: Storage, path: str, folder: str) -> str:
    return f"{storage.url}/{path}: damaged or gone: delete {storage.url}/{folder}, and it is made again"
