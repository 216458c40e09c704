"""AdamW or plain SGD over a flat vector, or over the ranges of it that a server owns; and the global norm."""

import math

import torch
from torch import Tensor

from trainer.contract.options import Hyperparameters
from trainer.model.layout import Layout, Ranges

# Elements whose copies in float64 a norm has at once. On a CPU they stay in its cache, and the allocator keeps their
# memory: with 2**22, pages that were new each time made a norm cost six times as much.
AT_ONCE, CPU_AT_ONCE = 2**22, 2**18
Segments = list[tuple[int, int, bool]]  # start, stop, whether it decays


def squares(vector: Tensor, block: int) -> Tensor:
    """Return the sum of squares of each block of `block` elements, float64; the last block may be shorter.

    Blocks are fixed places of the flat vector and servers own whole ones, so that their sum in order of index, and
    with it clipping, does not depend on how many servers there are.
    """
    whole = len(vector) // block * block
    most = CPU_AT_ONCE if vector.device.type == "cpu" else AT_ONCE
    at_once = max(1, most // block) * block
    parts = torch.split(vector[:whole], at_once)
    norms = [torch.linalg.vector_norm(part.view(-1, block), dim=1, dtype=torch.float64) for part in parts]
    if whole < len(vector):
        norms.append(torch.linalg.vector_norm(vector[whole:], dtype=torch.float64).view(1))
    all_norms = torch.cat(norms)
    return all_norms * all_norms


def norm(block_squares: Tensor) -> float:
    """Return the Euclidean norm of the whole vector; nan if an element is not finite."""
    total = float(block_squares.sum())
    return math.sqrt(total) if math.isfinite(total) else math.nan


def segments(layout: Layout, total: int, ranges: Ranges) -> Segments:
    """Return the tensors of the flat vector, cut by `ranges`, as places in a vector of only these ranges.

    The padding after a tensor counts as a part of it: it is zero and stays zero, and every segment is a multiple of
    64 elements, whose arithmetic is the same however the vector is cut.
    """
    stops = [start for _, start, _, _ in layout[1:]] + [total]
    pieces, offset, first = [], 0, 0
    for begin, end in ranges:
        while first < len(stops) and stops[first] <= begin:
            first += 1
        for (_, start, _, decayed), stop in zip(layout[first:], stops[first:], strict=True):
            if start >= end:
                break
            low, high = max(start, begin), min(stop, end)
            pieces.append((offset + low - begin, offset + high - begin, decayed))
        offset += end - begin
    return pieces


class Optimizer:
    """AdamW or SGD on a flat vector of parameters. Its own state is flat vectors too."""

    def __init__(
        self,
        parameters: Tensor,
        gradients: Tensor,
        parts: Segments,
        hyper: Hyperparameters,
        moments: list[Tensor] | None = None,
    ) -> None:
        """Begin with `moments` where they are given, else with zeros."""
        self._parameters, self._gradients = parameters, gradients
        self._adamw: torch.optim.AdamW | None = None
        self.vectors: list[Tensor] = []  # AdamW: first and second moment, laid out like the parameters; SGD: none
        if hyper.optimizer == "sgd":
            return
        self.vectors = moments or [torch.zeros_like(parameters), torch.zeros_like(parameters)]
        tensors: dict[bool, list[Tensor]] = {True: [], False: []}
        state = {}
        for start, stop, decayed in parts:
            tensor = parameters[start:stop]
            tensor.grad = gradients[start:stop]
            tensors[decayed].append(tensor)
            first, second = (vector[start:stop] for vector in self.vectors)
            state[tensor] = {"step": torch.zeros((), device=tensor.device), "exp_avg": first, "exp_avg_sq": second}
        groups = [
            {"params": tensors[True], "weight_decay": hyper.weight_decay},
            {"params": tensors[False], "weight_decay": 0.0},
        ]
        if not parts:
            return
        used = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(used, lr=0.0, betas=(hyper.beta1, hyper.beta2), eps=1e-8, fused=True)
        self._adamw.state.update(state)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Take one step with the gradients as they are."""
        if self._adamw is None:
            self._parameters.add_(self._gradients, alpha=-rate)
            return
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    @property
    def updates(self) -> int:
        """The number of updates done, on which AdamW's bias correction depends."""
        return int(next(iter(self._adamw.state.values()))["step"]) if self._adamw else 0

    @updates.setter
    def updates(self, value: int) -> None:
        for state in self._adamw.state.values() if self._adamw else ():
            state["step"].fill_(value)
