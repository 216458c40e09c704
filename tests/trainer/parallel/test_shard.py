"""The sums of squares of which each process has a part."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from trainer.parallel.ownership import Lane, lanes
from trainer.parallel.shard import Shard, own_squares

BLOCK = 64


def shard(lane: Lane, total: int, *, whole: bool) -> Shard:
    made = SimpleNamespace(lane=lane, total=total, length=total, whole=whole, gradients=torch.ones(lane.size))
    return cast("Shard", made)


def test_squares_of_lanes_of_whole_blocks_are_in_their_places() -> None:
    total = 6 * BLOCK
    every = [own_squares(shard(lane, total, whole=True), BLOCK) for lane in lanes(total, 3)]
    assert torch.equal(sum(every, torch.zeros(6, dtype=torch.float64)), torch.full((6,), 64.0, dtype=torch.float64))


@pytest.mark.parametrize("edges", [[(0, 96), (192, 256)], [(128, 192), (256, 320)]])
def test_squares_of_lanes_of_rows_are_one_sum_also_where_one_is_cut_at_blocks(edges: list[tuple[int, int]]) -> None:
    """LoRA's rows over three processes: the last one may have none of some matrices, and whole blocks of the others."""
    lane = Lane(tuple(edges))
    assert own_squares(shard(lane, 384, whole=False), BLOCK).tolist() == [lane.size]
