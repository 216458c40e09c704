"""The sums that decide a step or make an evaluation: each member adds its part, and all get the same result."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from trainer.cluster.announcement import Tally
from trainer.cluster.group import MemberGroup
from trainer.training.optimizer import norm

_HEAD = 3  # elements before the sums of squares


@dataclass(frozen=True)
class Vote:
    """One member's part of a step's vote, or the sum of all. It travels as float64 [3 + blocks].

    A trainer's loss stays on its device until the vote is counted, so that nothing waits for the device before.
    """

    loss: Tensor | float = 0.0  # sum over the tokens, nats; a tensor is float64 []
    tokens: float = 0  # that count
    waited: float = 0.0  # seconds that this trainer waited for the network
    squares: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.float64)
    )  # of each block of the gradient

    def to_tensor(self, device: torch.device) -> Tensor:
        tensor = torch.zeros(_HEAD + len(self.squares), dtype=torch.float64, device=device)
        tensor[0], tensor[1], tensor[2] = self.loss, self.tokens, self.waited
        tensor[_HEAD:] = self.squares
        return tensor

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> Self:
        loss, tokens, waited = tensor[:_HEAD].tolist()
        return cls(loss, tokens, waited, tensor[_HEAD:])

    def tally(self, gradient_norm: float | None = None) -> Tally:
        """Return what the summed vote says. gradient_norm: given where the vote carries no sums of squares."""
        size = norm(self.squares) if gradient_norm is None else gradient_norm
        return Tally(float(self.loss), self.tokens, size, self.waited)


def sum_lanes(lanes: Sequence[Tensor]) -> Tensor:
    """Return the sum of all lanes' votes, or of their other sums, in the order of lanes: so all members get the same.

    A lane's members have summed its own before. Only the first lane's vote has sums of squares, and zeros are in the
    others' places: their sum is exact.
    """
    first, *others = lanes
    summed = first.clone()
    for other in others:
        summed += other
    return summed


def loss_sums(group: MemberGroup, loss: Tensor | float = 0.0, tokens: int = 0) -> Tensor:
    """Sum an evaluation's loss in nats and its tokens over a lane's members, float64 [2]. Servers add nothing."""
    sums = torch.zeros(2, dtype=torch.float64, device=group.device)
    sums[0], sums[1] = loss, tokens
    group.sum(sums)
    return sums


def mean_loss(lanes: Sequence[Tensor]) -> float:
    """Return the mean loss of an evaluation in nats from the loss_sums() of all lanes."""
    loss, tokens = sum_lanes(lanes).tolist()
    return float(loss / tokens)
