"""All processes that take a step together, as one of them sees them: its lane, and its machine's other processes.

A lane is the group of the processes of one local rank of all machines. It may fail at any time. The processes of a
machine never lose each other, because one that dies ends all. So a lane's failure in one process becomes a failure of
all processes of the machine at one place: where they next agree. Until then each takes part in all that the others
of its machine wait for.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.processes import Processes


class StepGroup:
    """One process's lane and machine."""

    def __init__(self, lane: MemberGroup, processes: Processes, *, slow: bool = False) -> None:
        """slow: whether steps take seconds, so that the machine's processes ask each other within a step."""
        self.lane, self.processes, self._slow = lane, processes, slow

    @property
    def failed(self) -> bool:
        """Return whether this process may give the step up at once, because its lane failed and nobody waits for it."""
        return self.lane.failed and self.processes.size == 1

    def check(self) -> None:
        """Raise GroupFailed, in all processes of the machine, if a lane has failed and the step may be given up.

        All processes must call it equally often, before any of them waits for the others' gradients.
        """
        if self.failed or (self._slow and self.processes.any(self.lane.failed)):
            raise GroupFailed("the step was given up")

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Let all processes of the machine raise GroupFailed if one of them raises it inside.

        Inside, only collectives of the lane are allowed: the processes of the machine would wait for each other.
        """
        if self.processes.size == 1:
            yield
            return
        error: GroupFailed | None = None
        try:
            yield
        except GroupFailed as failure:
            error = failure
        if self.processes.any(error is not None):
            raise error or GroupFailed("another process of this machine lost its group")

    def sum(self, tensor: Tensor, own: Tensor | None = None) -> Tensor:
        """Return on the CPU the sum of `tensor` over all processes of all machines, followed by that of `own`.

        It decides a step: either all processes of this machine get the sums, or all raise GroupFailed.

        Args:
            tensor: float64 [n], on the lane's device.
            own: float64 [m], which is summed over this machine's processes only.
        """
        with suppress(GroupFailed):
            self.lane.sum(tensor)
        return self.conclude(tensor, own)

    def conclude(self, tensor: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the same for a `tensor` that the lane has summed already, or has failed to."""
        if self.processes.size == 1:
            self.lane.check()
            return (tensor if own is None else torch.cat([tensor, own.to(tensor.device)])).cpu()
        failed = tensor.new_full((1,), float(self.lane.failed))
        sums = torch.cat([tensor, failed] if own is None else [tensor, own.to(tensor.device), failed])
        self.processes.sum(sums)
        sums = sums.cpu()
        if float(sums[-1]):
            self.lane.check()
            raise GroupFailed("another process of this machine lost its group")
        return sums[:-1]
