"""Cut tokens in files into batches, as a pure function of seed and step.

A checkpoint therefore saves nothing about the data, and a resumed run skips nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKEN = np.dtype("<u2")  # a token in a file
# An example of pairs in its part's tokens: the index of its first token, the number of its prompt's tokens, and the
# number of all its tokens (prompt, completion, end-of-text). `line` is the pair's line in the source file, from 1.
EXAMPLE = np.dtype([("start", "<u8"), ("prompt", "<u4"), ("tokens", "<u4"), ("line", "<u8")])
IGNORED = -100  # the target of a token that does not count
WIDTH_MULTIPLE = 8  # rows of pairs are padded to a multiple of this, so that there are few shapes
SORTED_BATCHES = 50  # batches of pairs whose examples are sorted by length together
Indices = NDArray[np.int64]


class Tokens:
    """A sequence of uint16 tokens, memory-mapped from its shards."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._shards = [np.memmap(file, TOKEN, mode="r") for file in files]
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> NDArray[np.uint16]:
        """Return tokens start to stop, shape (stop - start,). Raise IndexError outside of the sequence."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        slices = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            end = min(stop, self._starts[shard + 1])
            slices.append(self._shards[shard][start - self._starts[shard] : end - self._starts[shard]])
            start, shard = end, shard + 1
        return np.concatenate(slices) if slices else np.empty(0, np.uint16)


class Windows:
    """A text's tokens, cut into windows of sequence_length inputs.

    Each token is a target once, except the first one and the remainder after the last window. Raise ValueError if the
    tokens do not fill one window.
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
        """Return the indices of the first n windows, or of all if there are fewer. Validation uses these."""
        return np.arange(min(n, len(self)), dtype=np.int64)

    def counted(self, indices: Sequence[int] | Indices) -> int:
        """Return how many targets of these windows count in the loss: all of them."""
        return len(indices) * self._sequence_length

    def rows(self, indices: Sequence[int] | Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets), both of shape (len(indices), sequence_length).

        The target of an input is the token after it.
        """
        length = self._sequence_length
        block = np.empty((len(indices), length + 1), np.int64)
        for row, index in zip(block, indices, strict=True):
            row[:] = self._tokens.read(int(index) * length, (int(index) + 1) * length + 1)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])


def tokens_cut_off(examples: NDArray[np.void], sequence_length: int) -> Indices:
    """Return how many tokens each example loses at its beginning to fit into a sequence.

    An example needs one input fewer than it has tokens, because its last token is only a target.
    """
    return np.maximum(examples["tokens"].astype(np.int64) - 1 - sequence_length, 0)


def fits(examples: NDArray[np.void], sequence_length: int) -> NDArray[np.bool_]:
    """Return for each example whether a part of its prompt is left before the completion."""
    return tokens_cut_off(examples, sequence_length) < examples["prompt"]


class Examples:
    """Examples of pairs, one a row. All of them must fit, as fits() says.

    The loss counts only the completion and its end-of-text.
    """

    def __init__(self, tokens: Tokens, examples: NDArray[np.void], sequence_length: int) -> None:
        self._tokens = tokens
        self._sequence_length = sequence_length
        removed = tokens_cut_off(examples, sequence_length)
        self._start = examples["start"].astype(np.int64) + removed
        self._prompt = examples["prompt"].astype(np.int64) - removed
        self._length = examples["tokens"].astype(np.int64) - removed

    def __len__(self) -> int:
        return len(self._length)

    def first(self, n: int) -> Indices:
        """Return the indices of at most n examples, in order of their length.

        They are spread evenly over the file, because the file may be sorted.
        """
        n = min(n, len(self))
        return self._by_length(np.arange(n, dtype=np.int64) * len(self) // max(n, 1))

    def counted(self, indices: Sequence[int] | Indices) -> int:
        """Return how many targets of these examples count in the loss."""
        return int((self._length[indices] - self._prompt[indices]).sum())

    def rows(self, indices: Sequence[int] | Indices) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets), both of shape (len(indices), width). The longest example decides the width.

        Shorter rows are padded at the end, where the targets are IGNORED. The padding changes no other position,
        because a causal model does not look ahead.
        """
        longest = int(self._length[indices].max()) - 1
        width = min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self._sequence_length)
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
    """A mixin that serves every row once per epoch, with another order in each epoch.

    A batch may contain the last rows of one epoch and the first rows of the next.
    """

    _count: int  # rows
    _batch_size: int
    _seed: int

    def _begin(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # a batch at the border needs two

    def batch(self, step: int) -> Indices:
        """Return the indices of a step's rows, shape (batch_size,). Steps count from 0."""
        position = step * self._batch_size
        stop = position + self._batch_size
        slices = []
        while position < stop:
            epoch, offset = divmod(position, self._count)
            slices.append(self._order(epoch)[offset : offset + stop - position])
            position += len(slices[-1])
        return np.concatenate(slices)

    def _permutation(self, epoch: int) -> Indices:
        return self._shuffled(self._count, epoch)

    def _shuffled(self, count: int, *salt: int) -> Indices:
        # All machines of a run, and a run resumed years later, must agree on the order. NumPy promises this for the
        # raw numbers of a bit generator, and not for Generator.permutation.
        numbers = np.random.PCG64(np.random.SeedSequence([self._seed, *salt])).random_raw(count)
        return np.argsort(np.asarray(numbers), kind="stable").astype(np.int64)


class Batches(_Epochs, Windows):
    """Windows of a text, shuffled."""

    def __init__(self, tokens: Tokens, batch_size: int, sequence_length: int, seed: int) -> None:
        Windows.__init__(self, tokens, sequence_length)
        self._begin(len(self), batch_size, seed)


class PairBatches(_Epochs, Examples):
    """Examples of pairs, shuffled so that the rows of a batch have similar lengths."""

    def __init__(
        self, tokens: Tokens, examples: NDArray[np.void], batch_size: int, sequence_length: int, seed: int
    ) -> None:
        Examples.__init__(self, tokens, examples, sequence_length)
        self._begin(len(self), batch_size, seed)

    def batch(self, step: int) -> Indices:
        """Return the indices of a step's examples, shape (batch_size,), the shortest first. Steps count from 0."""
        return self._by_length(super().batch(step))

    def _permutation(self, epoch: int) -> Indices:
        """Return an order whose batches have rows of similar lengths.

        Within each group of SORTED_BATCHES batches, sort the examples by length, cut them into batches and shuffle the
        batches.
        """
        order, size = super()._permutation(epoch), self._batch_size
        first = -epoch * self._count % size  # the rows before it complete the last batch of the previous epoch
        for number, start in enumerate(range(first, self._count, SORTED_BATCHES * size)):
            group = self._by_length(order[start : start + SORTED_BATCHES * size])
            whole = len(group) // size  # the next epoch completes a partial batch
            batches = group[: whole * size].reshape(whole, size)
            group[: whole * size] = batches[self._shuffled(whole, epoch, 1 + number)].reshape(-1)
            order[start : start + SORTED_BATCHES * size] = group
        return order


@dataclass(frozen=True)
class Dealing:
    """The rule by which the rows of a batch are dealt to processes and cut into micro-batches.

    Of N processes with m micro-batches each, micro-batch j of process n has the rows i with i mod (N * m) = n + N * j.
    So all processes have equally many rows, and equally long ones where rows are sorted: a process that is missing
    costs each of the others its share and at most one row. And the micro-batches are the same for two processes with
    one each and for one process with two.

    Args:
        batch_size: rows of the batch.
        most: rows of a micro-batch, at most.
        piece: the rows of a piece. If given, the batch is cut into pieces of adjacent rows, each a micro-batch, and
            these are dealt. With dropout they are fixed, because the result must not depend on who is present.
    """

    batch_size: int
    most: int
    piece: int | None = None

    def micro_batches(self, number: int, processes: int) -> list[slice]:
        """Return the rows of the micro-batches of process `number` of `processes`, as slices of the batch.

        Without pieces, all micro-batches of all processes have equally many rows, or one row fewer.
        """
        if self.piece is not None:
            starts = range(number * self.piece, self.batch_size, processes * self.piece)
            return [slice(start, min(start + self.piece, self.batch_size)) for start in starts]
        busiest = -(-self.batch_size // processes)
        stride = processes * -(-busiest // self.most)
        return [
            slice(start, self.batch_size, stride) for start in range(number, min(stride, self.batch_size), processes)
        ]

    def passes(self, processes: int) -> int:
        """Return how many micro-batches the busiest of `processes` has, which is the first."""
        return len(self.micro_batches(0, processes))

    def rows(self, processes: int) -> int:
        """Return how many rows the largest micro-batch of any of `processes` has, which is the first one's first."""
        return len(range(self.batch_size)[self.micro_batches(0, processes)[0]])
