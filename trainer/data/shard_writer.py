"""Write a stream of tokens into the shards of a bucket."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.contract.identity import sha256_of
from trainer.data.batches import TOKEN
from trainer.data.pairs import SplitName
from trainer.data.prepared import Shard, Split
from trainer.storage.base import Storage

TOKENS_PER_SHARD = 100_000_000  # 200 MB: fetched in seconds, and fetched again alone if it is damaged


@dataclass
class ShardWriter:
    """A writer of one part's shards, which also counts how often each token occurs."""

    storage: Storage
    folder: str  # in the bucket
    name: SplitName
    work: Path  # on this machine, for the open shard
    counts: NDArray[np.int64]  # occurrences of each token, shape (vocabulary size,)
    shards: list[Shard] = field(default_factory=list)
    tokens: int = 0
    written: int = 0  # tokens in the open shard

    def add(self, tokens: NDArray[np.uint16], counted: NDArray[np.uint16] | None = None) -> None:
        """Append tokens. Count `counted` for unigram_entropy, or all of them if it is None."""
        self.counts += np.bincount(tokens if counted is None else counted, minlength=len(self.counts))
        self.tokens += len(tokens)
        while len(tokens):
            head = tokens[: TOKENS_PER_SHARD - self.written]
            with self._file.open("ab") as file:
                file.write(head.astype(TOKEN).data)
            self.written += len(head)
            tokens = tokens[len(head) :]
            if self.written == TOKENS_PER_SHARD:
                self.close()

    def close(self) -> None:
        """Upload the open shard, if it has any tokens."""
        if not self.written:
            return
        shard = Shard(name=self._file.name, tokens=self.written, sha256=sha256_of(self._file))
        self.storage.upload(self._file, f"{self.folder}/{shard.name}")
        self._file.unlink()
        self.shards.append(shard)
        self.written = 0

    @property
    def _file(self) -> Path:
        return self.work / f"{self.name}-{len(self.shards):05d}.bin"

    def summary(self, size: int, training: NDArray[np.int64]) -> Split:
        """Describe the part, which has `size` bytes of text, given the token counts of the training part."""
        logs = np.log((training + 1) / (training.sum() + len(training)))
        entropy = -float(self.counts @ logs) / max(int(self.counts.sum()), 1)
        return Split(bytes=size, tokens=self.tokens, unigram_entropy=entropy, shards=self.shards)
