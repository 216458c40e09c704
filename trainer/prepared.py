"""Token shards that lie in a bucket: what they are, and how a machine comes to read them.

    data/<fingerprint>/<tokens key>/
        tokenizer.json
        train-00000.bin ... validation-00000.bin    uint16, little-endian, no header
        manifest.json                               written last: without it nothing is there

trainer/data.py makes them. Nothing here imports torch.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from tokenizers import Tokenizer

from trainer import tokenizer as vocabularies
from trainer.batches import TOKEN, Tokens
from trainer.spec import Data, InputError, Strict
from trainer.storage import Storage

Name = Literal["train", "validation"]
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

log = logging.getLogger(__name__)


class Shard(Strict):
    name: str
    tokens: int
    sha256: str


class Split(Strict):
    bytes: int  # of text
    tokens: int
    # nats a token, of a model that knows only how often each token occurs in the training part, every count plus one
    unigram_entropy: float
    shards: list[Shard]


class Manifest(Strict):
    version: Literal[1] = 1
    fingerprint: str  # of the text
    tokenizer: Literal["train", "gpt2", "byte", "checkpoint"]
    tokenizer_sha256: str
    vocabulary_size: int
    train: Split
    validation: Split


@dataclass(frozen=True)
class Prepared:
    """Tokens that lie in a bucket."""

    storage: Storage
    folder: str  # in the bucket
    manifest: Manifest

    def tokenizer(self) -> Tokenizer:
        """Raises InputError if the file is damaged."""
        path = f"{self.folder}/tokenizer.json"
        content = self.storage.read(path)
        if hashlib.sha256(content).hexdigest() != self.manifest.tokenizer_sha256:
            raise InputError(damaged(self.storage, path, self.folder))
        return vocabularies.parse(content.decode(), f"{self.storage.url}/{path}")

    def tokens(self, name: Name, cache: Path | None = None, progress: Progress | None = None) -> Tokens:
        """The tokens of a part, mapped from the bucket if that is a folder, else fetched and checked once.

        Raises InputError if a shard is damaged.
        """
        split: Split = getattr(self.manifest, name)
        files = []
        done, total = 0, split.tokens * TOKEN.itemsize
        for shard in split.shards:
            path = f"{self.folder}/{shard.name}"
            size = shard.tokens * TOKEN.itemsize
            file = self.storage.local_path(path)
            if file is None:
                # Named by its content: what lies there was checked, whichever bucket it came from.
                file = (cache or cache_folder()) / self.manifest.fingerprint / f"{shard.sha256[:16]}-{shard.name}"
                fetch(self.storage, path, file, size, shard.sha256)
            if not file.is_file() or file.stat().st_size != size:
                raise InputError(damaged(self.storage, path, self.folder))
            files.append(file)
            done += size
            if progress:
                progress(done, total)
        return Tokens(files)


def cache_folder() -> Path:
    """Where texts and tokens of a gs:// bucket are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2-training" / "data"


def find(storage: Storage, data: Data, fingerprint: str) -> Prepared | None:
    """What prepare() made before, if it is all there (files and their sizes)."""
    folder = f"data/{fingerprint}/{data.tokens_key()}"
    try:
        manifest = Manifest.model_validate_json(storage.read(f"{folder}/manifest.json"))
    except (FileNotFoundError, ValidationError):
        return None
    there = {entry.path: entry.size for entry in storage.list(folder)}
    for shard in manifest.train.shards + manifest.validation.shards:
        if there.get(f"{folder}/{shard.name}") != shard.tokens * TOKEN.itemsize:
            return None
    if f"{folder}/tokenizer.json" not in there:
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
