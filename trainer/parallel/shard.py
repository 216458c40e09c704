"""The part of a model that one process updates, and how it belongs to the model that the process computes with."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.model.layout import Layout, Ranges
from trainer.model.loss import Loss
from trainer.parallel.ownership import Lane
from trainer.parallel.readiness import Readiness
from trainer.training.optimizer import squares


class Shard(Protocol):
    """A process's lane of the flat vector. One thread computes, another one calls `reduce`, and `gather` too.

    `reduce` and `gather` are collectives of the machine's processes, which must call them alike, in one order.
    """

    layout: Layout
    total: int  # elements of the flat vector
    lane: Lane
    buckets: Ranges  # of the flat vector
    length: int  # elements of the flat vector with the padding that makes lanes equally long
    readiness: Readiness
    parameters: Tensor  # fp32 [lane.size], the lane's own
    gradients: Tensor  # the same of gradients
    device: torch.device
    waits: bool  # whether the forward pass waits for the parameters that it needs
    whole: bool  # whether this process has the whole model, so that it can sample from it

    @property
    def loss(self) -> Loss:
        """The loss of this process's rows."""

    def zero(self, passes: int) -> None:
        """Set the gradients to zero, for a step in which the busiest process computes so many passes."""

    def backward_begins(self) -> None:
        """Let gradients that become final travel: the step's last backward pass begins."""

    def backward_ends(self, passes: int) -> None:
        """Take note that all gradients of this process are final. passes: of the busiest process."""

    def forward_ends(self, passes: int) -> None:
        """End an evaluation. passes: of the busiest process."""

    def reduce(self, bucket: int) -> None:
        """Wait until a bucket is final, and add it up over the machine's processes into `gradients`."""

    def gather(self, bucket: int) -> None:
        """Bring a bucket of the processes' new `parameters` into the model of each."""

    def take(self, model: GPT2LMHeadModel) -> None:
        """Take over the parameters of another model of the same layout."""

    def exported(self) -> GPT2LMHeadModel | None:
        """Return the whole model on the machine's first process, None on the others, which all must call this."""


def own_squares(shard: Shard, block: int) -> Tensor:
    """Return this process's part of the sums of squares of the gradient's blocks, float64; zeros for other lanes.

    Lanes that are cut anywhere, by rows, have one sum for all. All processes must decide that alike, and one lane may
    be cut at blocks by chance.
    """
    mine = squares(shard.gradients, block)
    if not shard.whole:
        return mine.sum().view(1)
    if shard.lane.ranges == ((0, shard.total),):
        return mine
    blocks = torch.cat([torch.arange(start // block, stop // block) for start, stop in shard.lane.ranges])
    every = torch.zeros(-(-shard.length // block), dtype=torch.float64, device=mine.device)
    every[blocks.to(mine.device)] = mine
    return every
