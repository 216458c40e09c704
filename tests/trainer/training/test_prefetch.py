"""Reading ahead: it changes nothing but the thread that reads."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data.batches import EXAMPLE, IGNORED, TOKEN, Batches, Dealing, Examples, Indices, Tokens
from trainer.training.prefetch import Prefetch, read

CPU = torch.device("cpu")
BATCH = 12


class NotedBatches(Batches):
    """Batches that note which thread reads rows, and fail to read those of a step."""

    def __init__(self, tokens: Tokens, broken: int = -1) -> None:
        super().__init__(tokens, BATCH, 9, seed=1)
        self.threads: list[str] = []
        self._broken = broken

    def batch(self, step: int) -> Indices:
        if step == self._broken:
            raise OSError("the disk is gone")
        return super().batch(step)

    def rows(self, indices: list[int] | Indices) -> tuple[Indices, Indices]:
        self.threads.append(threading.current_thread().name)
        return super().rows(indices)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "tokens.bin"
    np.arange(1000).astype(TOKEN).tofile(file)
    return Tokens([file])


def taken(prefetch: Prefetch, step: int, number: int, processes: int) -> list[list[list[int]]]:
    parts = Dealing(BATCH, most=2).micro_batches(number, processes)
    return [[*batch.inputs.tolist(), *batch.targets.tolist()] for batch in prefetch.take(step, parts)]


def test_prefetch_gives_the_same_rows_whoever_reads_them(tokens: Tokens) -> None:
    plain, noted = NotedBatches(tokens), NotedBatches(tokens)
    in_line, ahead = Prefetch(plain, CPU), Prefetch(noted, CPU, ahead=True)
    # The members change at step 2, and at step 4 a failed step is taken again.
    for step, number, processes in [(0, 1, 3), (1, 1, 3), (2, 0, 2), (3, 0, 2), (4, 0, 2), (4, 0, 2), (5, 0, 2)]:
        assert taken(ahead, step, number, processes) == taken(in_line, step, number, processes)
    assert set(plain.threads) == {threading.current_thread().name}
    assert set(noted.threads) == {threading.current_thread().name, "prefetch"}


def test_prefetch_of_a_file_that_cannot_be_read_fails_in_its_own_step(tokens: Tokens) -> None:
    prefetch = Prefetch(NotedBatches(tokens, broken=2), CPU, ahead=True)
    for step in (0, 1):
        assert taken(prefetch, step, 0, 1)
    with pytest.raises(OSError, match="the disk is gone"):
        taken(prefetch, 2, 0, 1)


def test_read_examples_says_which_targets_count(tokens: Tokens) -> None:
    examples = Examples(tokens, np.array([(0, 3, 6, 1), (6, 2, 9, 2)], EXAMPLE), sequence_length=8)
    found = read(examples, examples.first(2), pinned=False)
    assert found.counted is not None
    flat = found.targets.flatten()
    assert flat[found.counted].tolist() == [3, 4, 5, 8, 9, 10, 11, 12, 13, 14]
    assert int((flat != IGNORED).sum()) == found.tokens == len(found.counted)
