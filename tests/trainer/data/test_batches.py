"""Tokens, windows, batches and how a batch is cut: pure functions, checked by property tests with hypothesis."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract import geometry
from trainer.contract.options import Hyperparameters
from trainer.data.batches import TOKEN, Batches, Dealing, Tokens, Windows


def rows_of(parts: list[slice], batch: int) -> list[int]:
    return [row for part in parts for row in range(batch)[part]]


@given(
    batch=st.integers(1, 300),
    processes=st.integers(1, 40),
    most=st.integers(1, 64),
    piece=st.none() | st.integers(1, 16),
)
def test_dealing_gives_every_row_to_one_process(batch: int, processes: int, most: int, piece: int | None) -> None:
    dealing = Dealing(batch, most, piece)
    dealt = [dealing.micro_batches(number, processes) for number in range(processes)]
    assert sorted(row for parts in dealt for row in rows_of(parts, batch)) == list(range(batch))
    sizes = [[len(range(batch)[part]) for part in parts] for parts in dealt]
    assert all(1 <= size <= (piece or most) for each in sizes for size in each)
    assert dealing.passes(processes) == max(map(len, sizes))


@given(batch=st.integers(1, 300), processes=st.integers(1, 40), most=st.integers(1, 64))
def test_dealing_by_rows_gives_all_processes_equal_work(batch: int, processes: int, most: int) -> None:
    dealing = Dealing(batch, most)
    dealt = [dealing.micro_batches(number, processes) for number in range(processes)]
    work = [len(rows_of(parts, batch)) for parts in dealt]
    assert max(work) - min(work) <= 1
    assert min(work) >= (1 if batch >= processes else 0)
    sizes = [len(range(batch)[part]) for parts in dealt for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(parts) == min(rows, dealing.passes(processes)) for parts, rows in zip(dealt, work, strict=True))
    # The estimate counts the same.
    share = geometry.share(Hyperparameters(batch_size=batch, micro_batch_size=most), processes)
    assert (share.sequences, share.passes) == (max(work), dealing.passes(processes))
    assert share.rows == dealing.rows(processes) == max(sizes)


def test_dealing_to_one_process_in_two_passes_makes_the_micro_batches_of_two_processes() -> None:
    two = [part for number in range(2) for part in Dealing(9, most=5).micro_batches(number, 2)]
    assert Dealing(9, most=5).micro_batches(0, 1) == two


@pytest.mark.parametrize("declared", [11, 32, 100, 1000])
@given(extra=st.integers(0, 3000))
def test_dealing_without_one_process_costs_the_others_its_share_and_one_row(declared: int, extra: int) -> None:
    batch = declared + extra

    def slowest(processes: int) -> int:
        return len(rows_of(Dealing(batch, 16).micro_batches(0, processes), batch))

    assert slowest(declared - 1) <= slowest(declared) * declared / (declared - 1) + 1


@given(batch=st.integers(1, 300), declared=st.integers(1, 40), there=st.integers(1, 40))
def test_pieces_of_a_batch_are_the_same_whoever_is_there(batch: int, declared: int, there: int) -> None:
    piece = geometry.piece_rows(Hyperparameters(batch_size=batch, dropout=0.1), declared)
    dealing = Dealing(batch, 64, piece)
    together = [part for number in range(there) for part in dealing.micro_batches(number, there)]
    assert sorted(together, key=lambda part: part.start) == dealing.micro_batches(0, 1)
    if there <= min(declared, batch):
        assert all(dealing.micro_batches(number, there) for number in range(there))


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
