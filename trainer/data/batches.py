"""Tokens in files -> batches, as a pure function of seed and step: nothing to save, nothing to skip on resume."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.contract.geometry import micro_batches

TOKEN = np.dtype("<u2")  # how a token lies in a file
# Where an example of pairs lies among the tokens of its part: prompt, completion, end-of-text. line: of the source.
EXAMPLE = np.dtype([("start", "<u8"), ("prompt", "<u4"), ("tokens", "<u4"), ("line", "<u8")])
IGNORED = -100  # a target that does not count
MULTIPLE = 8  # rows of pairs are padded to such a length, so that there are few shapes
GROUP = 50  # batches of pairs whose examples are sorted by length
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

    def counted(self, indices: Sequence[int] | Indices) -> int:
        """How many targets count."""
        return len(indices) * self._sequence_length

    def rows(self, indices: Sequence[int] | Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets) of shape (len(indices), sequence_length): the target is the token after the input."""
        length = self._sequence_length
        block = np.empty((len(indices), length + 1), np.int64)
        for row, index in zip(block, indices, strict=True):
            row[:] = self._tokens.read(int(index) * length, (int(index) + 1) * length + 1)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])


def cut(examples: NDArray[np.void], sequence_length: int) -> Indices:
    """How many tokens each example loses at its beginning: its inputs are all tokens but the last."""
    return np.maximum(examples["tokens"].astype(np.int64) - 1 - sequence_length, 0)


def fits(examples: NDArray[np.void], sequence_length: int) -> NDArray[np.bool_]:
    """Whether something of the prompt is left before the completion, of each example."""
    return cut(examples, sequence_length) < examples["prompt"]


class Examples:
    """Examples of pairs, one a row: the loss counts on the completion and end-of-text. They must fit, see fits()."""

    def __init__(self, tokens: Tokens, examples: NDArray[np.void], sequence_length: int) -> None:
        self._tokens = tokens
        self._sequence_length = sequence_length
        self._cut = cut(examples, sequence_length)
        self._start = examples["start"].astype(np.int64) + self._cut
        self._prompt = examples["prompt"].astype(np.int64) - self._cut
        self._length = examples["tokens"].astype(np.int64) - self._cut

    def __len__(self) -> int:
        return len(self._length)

    def first(self, n: int) -> Indices:
        """At most n examples, evenly spread over the file, which may be sorted; in order of their length."""
        n = min(n, len(self))
        return self._by_length(np.arange(n, dtype=np.int64) * len(self) // max(n, 1))

    def counted(self, indices: Sequence[int] | Indices) -> int:
        """How many targets count."""
        return int((self._length[indices] - self._prompt[indices]).sum())

    def rows(self, indices: Sequence[int] | Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(inputs, targets), as long as the longest of them needs. Padded at the end, where no target counts.

        A causal model computes the same with and without what stands after a token.
        """
        most = int(self._length[indices].max()) - 1
        width = min(-(-most // MULTIPLE) * MULTIPLE, self._sequence_length)
        inputs = np.zeros((len(indices), width), np.int64)
        targets = np.full((len(indices), width), IGNORED, np.int64)
        for i, index in enumerate(indices):
            start, length, prompt = int(self._start[index]), int(self._length[index]), int(self._prompt[index])
            tokens = self._tokens.read(start, start + length)
            inputs[i, : length - 1] = tokens[:-1]
            targets[i, prompt - 1 : length - 1] = tokens[prompt:]
        return inputs, targets

    def _by_length(self, indices: Indices) -> Indices:
        return indices[np.argsort(self._length[indices], kind="stable")]


class _Epochs:
    """Every row once an epoch, each epoch in an order of its own; steps walk on across the border of epochs."""

    _count: int  # rows
    _batch_size: int
    _seed: int

    def _begin(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # a batch at the border needs two

    def batch(self, step: int) -> Indices:
        """The rows of a step, counted from 0: shape (batch_size,), in order."""
        position = step * self._batch_size
        stop = position + self._batch_size
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self._count)
            parts.append(self._order(epoch)[offset : offset + stop - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> Indices:
        return self._shuffled(self._count, epoch)

    def _shuffled(self, count: int, *salt: int) -> Indices:
        # Not Generator.permutation: NumPy keeps the raw numbers the same in all versions, and that alone. All
        # machines of a run, and a run resumed years later, must agree.
        numbers = np.random.PCG64(np.random.SeedSequence([self._seed, *salt])).random_raw(count)
        return np.argsort(np.asarray(numbers), kind="stable").astype(np.int64)


class Batches(_Epochs, Windows):
    """Windows of a text, shuffled."""

    def __init__(self, tokens: Tokens, batch_size: int, sequence_length: int, seed: int) -> None:
        Windows.__init__(self, tokens, sequence_length)
        self._begin(len(self), batch_size, seed)


class PairBatches(_Epochs, Examples):
    """Examples of pairs, shuffled; the rows of a batch are of about one length, the shortest first."""

    def __init__(
        self, tokens: Tokens, examples: NDArray[np.void], batch_size: int, sequence_length: int, seed: int
    ) -> None:
        Examples.__init__(self, tokens, examples, sequence_length)
        self._begin(len(self), batch_size, seed)

    def batch(self, step: int) -> Indices:
        """The examples of a step, counted from 0: shape (batch_size,), in order of their length."""
        return self._by_length(super().batch(step))

    def _permutation(self, epoch: int) -> Indices:
        """In groups of batches: examples sorted by length, and then the batches shuffled."""
        order, size = super()._permutation(epoch), self._batch_size
        first = -epoch * self._count % size  # belongs to a batch that the epoch before began
        for number, start in enumerate(range(first, self._count, GROUP * size)):
            group = self._by_length(order[start : start + GROUP * size])
            whole = len(group) // size  # the last batch may go on in the next epoch
            batches = group[: whole * size].reshape(whole, size)
            group[: whole * size] = batches[self._shuffled(whole, epoch, 1 + number)].reshape(-1)
            order[start : start + GROUP * size] = group
        return order


def pieces(batch_size: int, sequence_length: int, trainers: int, most: int | None) -> list[slice]:
    """How a batch's rows are cut into micro-batches: a function of what is declared, never of who is there.

    At least one a trainer where there are rows enough, sizes differing by at most one row.
    """
    count = micro_batches(batch_size, sequence_length, trainers, most)
    bounds = [batch_size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]
