"""Tokens, windows, batches and how a batch is cut: pure functions, checked by property tests with hypothesis."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract.geometry import MICRO_BATCH_TOKENS
from trainer.data.batches import TOKEN, Batches, Tokens, Windows, pieces


@given(
    batch=st.integers(1, 500),
    length=st.integers(8, 4096),
    trainers=st.integers(1, 64),
    most=st.none() | st.integers(1, 64),
)
def test_pieces_cover_a_batch_evenly(batch: int, length: int, trainers: int, most: int | None) -> None:
    parts = pieces(batch, length, trainers, most)
    rows = [row for part in parts for row in range(batch)[part]]
    assert rows == list(range(batch))  # every row appears once, in order
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= (most or max(1, MICRO_BATCH_TOKENS // length))
    assert len(parts) >= min(batch, trainers)
    work = [sum(sizes[rank::trainers]) for rank in range(trainers)]
    assert max(work) <= -(-len(parts) // trainers) * max(sizes)


@given(batch=st.integers(1, 200), most=st.integers(1, 32), trainers=st.sampled_from([1, 2, 3, 4]))
def test_number_of_pieces_is_a_multiple_of_the_trainers_where_the_batch_allows_it(
    batch: int, most: int, trainers: int
) -> None:
    count = len(pieces(batch, 8, trainers, most))
    assert count % trainers == 0 or count == batch


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Write the numbers 0 to 99 into four files, one of them empty."""
    files = []
    for i, (start, stop) in enumerate([(0, 37), (37, 37), (37, 80), (80, 100)]):
        files.append(tmp_path / f"{i}.bin")
        np.arange(start, stop).astype(TOKEN).tofile(files[-1])
    return [f for f in files if f.stat().st_size]  # numpy cannot map an empty file, and prepare() writes none


def test_tokens_of_several_shards_are_one_sequence(shards: list[Path]) -> None:
    tokens = Tokens(shards)
    assert len(tokens) == 100
    for start, stop in [(0, 100), (0, 0), (36, 38), (30, 90), (99, 100), (100, 100)]:
        assert tokens.read(start, stop).tolist() == list(range(start, stop))
    for start, stop in [(-1, 3), (50, 101), (3, 2)]:
        with pytest.raises(IndexError):
            tokens.read(start, stop)


def test_a_target_is_the_token_after_its_input(shards: list[Path]) -> None:
    windows = Windows(Tokens(shards), 9)
    assert len(windows) == 11  # there are 99 targets
    inputs, targets = windows.rows(windows.first(100))
    assert inputs.flatten().tolist() == list(range(99))
    assert targets.flatten().tolist() == list(range(1, 100))
    assert windows.first(3).tolist() == [0, 1, 2]


def test_windows_of_too_few_tokens_are_refused(shards: list[Path]) -> None:
    with pytest.raises(ValueError, match="100 tokens hold no window of 100"):
        Windows(Tokens(shards), 100)


@given(batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 4))
@settings(max_examples=30)
def test_batches_contain_every_window_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, batch: int, seed: int, epochs: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "hundred.bin"
    np.arange(100).astype(TOKEN).tofile(file)
    batches = Batches(Tokens([file]), batch, 9, seed)
    steps = -(-epochs * len(batches) // batch)
    drawn = np.concatenate([batches.batch(step) for step in range(steps)])[: epochs * len(batches)]
    assert Counter(drawn.tolist()) == dict.fromkeys(range(len(batches)), epochs)


def test_batches_are_a_function_of_seed_and_step(shards: list[Path]) -> None:
    def draw(seed: int, steps: list[int]) -> list[list[int]]:
        batches = Batches(Tokens(shards), 4, 9, seed)
        return [batches.batch(step).tolist() for step in steps]

    forward = draw(1, list(range(10)))
    assert draw(1, [9, 3]) == [forward[9], forward[3]]  # the order of the calls does not matter
    assert draw(2, list(range(10))) != forward
    assert draw(1337, [0]) == [[10, 5, 1, 6]]  # this order holds on every machine and in every version
