"""Tokens in files -> batches, as a pure function of seed and step: nothing to save, nothing to skip on resume."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKEN = np.dtype("<u2")  # how a token lies in a file
PIECE_TOKENS = 16384  # most tokens of a micro-batch, unless microBatchSize says otherwise

Indices = NDArray[np.int64]


class Tokens:
    """Shards of uint16 tokens, memory-mapped, as one sequence."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._shards = [np.memmap(file, TOKEN, mode="r") for file in files]
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Tokens start to stop. Raises IndexError outside of the sequence."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        parts = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            end = min(stop, self._starts[shard + 1])
            parts.append(self._shards[shard][start - self._starts[shard] : end - self._starts[shard]])
            start, shard = end, shard + 1
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)


class Windows:
    """Tokens cut into windows of sequence_length inputs. Each token is a target once, but the first and the rest.

    ValueError if there is not one window.
    """

    def __init__(self, tokens: Tokens, sequence_length: int) -> None:
        self._tokens = tokens
        self._sequence_length = sequence_length
        self._count = max(len(tokens) - 1, 0) // sequence_length
        if self._count == 0:
            raise ValueError(f"{len(tokens)} tokens hold no window of {sequence_length} + 1")

    def __len__(self) -> int:
        return self._count

    def first(self, n: int) -> Indices:
        """At most n windows from the start, in the order of the text: what is validated on."""
        return np.arange(min(n, len(self)), dtype=np.int64)

    def rows(self, indices: Sequence[int] | Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets) of shape (len(indices), sequence_length): the target is the token after the input."""
        length = self._sequence_length
        block = np.empty((len(indices), length + 1), np.int64)
        for row, index in zip(block, indices, strict=True):
            row[:] = self._tokens.read(int(index) * length, (int(index) + 1) * length + 1)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])


class Batches(Windows):
    """Every window once an epoch, each epoch in an order of its own; steps walk on across the border of epochs."""

    def __init__(self, tokens: Tokens, batch_size: int, sequence_length: int, seed: int) -> None:
        super().__init__(tokens, sequence_length)
        self._batch_size = batch_size
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # a batch at the border needs two

    def batch(self, step: int) -> Indices:
        """The windows of a step, counted from 0: shape (batch_size,), in order."""
        position = step * self._batch_size
        stop = position + self._batch_size
        parts = []
        while position < stop:
            epoch, offset = divmod(position, len(self))
            parts.append(self._order(epoch)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> Indices:
        # Not Generator.permutation: NumPy keeps the raw numbers the same in all versions, and that alone. All
        # machines of a run, and a run resumed years later, must agree.
        numbers = np.random.PCG64(np.random.SeedSequence([self._seed, epoch])).random_raw(len(self))
        return np.argsort(np.asarray(numbers), kind="stable").astype(np.int64)


def pieces(batch_size: int, sequence_length: int, trainers: int, most: int | None) -> list[slice]:
    """How a batch's rows are cut into micro-batches: a function of what is declared, never of who is there.

    At least one a trainer where there are rows enough, sizes differing by at most one row.
    """
    rows = most or max(1, PIECE_TOKENS // sequence_length)
    count = min(batch_size, trainers * -(-batch_size // (rows * trainers)))
    bounds = [batch_size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]
