"""Data parallel: each process computes with all parameters, and updates its lane of them (ZeRO-1).

With one process a machine, the lane is the whole flat vector, and nothing is copied.
"""

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.cluster.processes import Processes
from trainer.model.flat import Flat, layout_of
from trainer.model.layout import total
from trainer.model.loss import Loss
from trainer.parallel.ownership import BUCKET_ELEMENTS, cut_buckets, lanes
from trainer.parallel.readiness import Readiness

LEAST_BUCKETS = 4  # in which a gradient travels, without servers


class Replica:
    """One process's copy of the model, and its lane.

    Rajbhandari et al. 2020, "ZeRO", stage 1: optimizer state is divided among the processes of a machine.
    """

    whole = True

    def __init__(
        self,
        model: GPT2LMHeadModel,
        loss: Loss,
        device: torch.device,
        processes: Processes,
        *,
        hooks: bool,
        pulls: bool,
    ) -> None:
        """Take `model` over: its parameters become views of a flat vector.

        Args:
            model: on `device`.
            loss: of the model.
            device: of this process.
            processes: of this machine.
            hooks: whether the model calls hooks in its passes, so that buckets travel meanwhile.
            pulls: whether parameters come from parameter servers during the forward pass.
        """
        self._processes, self.device, self._loss = processes, device, loss
        elements = total(layout_of(model))
        # Servers cut the same buckets. Without them, small models have some too, of which only the last one is late.
        most = None if pulls else min(BUCKET_ELEMENTS, elements // LEAST_BUCKETS)
        every = lanes(elements, processes.size, most)
        self.lane = every[processes.rank]
        self.length = max(lane.ranges[-1][1] for lane in every)
        self.flat = Flat(model, device, self.length)
        self.layout, self.total = self.flat.layout, total(self.flat.layout)
        self.buckets = cut_buckets(self.total, processes.size, most)
        self.readiness, self.waits = Readiness(self.buckets, device), hooks and pulls
        if hooks:
            self.readiness.hook_gradients(self.flat)
        if self.waits:
            self.readiness.hook_modules(self.flat)
        self.parameters, self.gradients = self.flat.parameters, self.flat.gradients
        if processes.size > 1:
            self.parameters = torch.cat([self.flat.parameters[start:stop] for start, stop in self.lane.ranges])
            self.gradients = torch.zeros_like(self.parameters)

    @torch.no_grad()
    def take(self, model: GPT2LMHeadModel) -> None:
        self.flat.parameters.copy_(Flat(model, torch.device("cpu"), self.length).parameters)
        if self._processes.size > 1:
            self.parameters.copy_(torch.cat([self.flat.parameters[start:stop] for start, stop in self.lane.ranges]))

    @property
    def loss(self) -> Loss:
        return self._loss

    def zero(self, passes: int) -> None:
        self.flat.gradients.zero_()

    def backward_begins(self) -> None:
        self.readiness.watch()

    def backward_ends(self, passes: int) -> None:
        self.readiness.finish()

    def forward_ends(self, passes: int) -> None:
        """Do nothing: each process evaluates on its own."""

    def reduce(self, bucket: int) -> None:
        self.readiness.until_final(bucket)
        if self._processes.size > 1:
            self._processes.reduce(self._of_all(self.flat.gradients, bucket), self._own(self.gradients, bucket))

    def gather(self, bucket: int) -> None:
        if self._processes.size > 1:
            self._processes.gather(self._of_all(self.flat.parameters, bucket), self._own(self.parameters, bucket))

    def exported(self) -> GPT2LMHeadModel | None:
        return self.flat.model if self._processes.rank == 0 else None

    def _own(self, vector: Tensor, bucket: int) -> Tensor:
        """Return the lane's part of a bucket, of one of the lane's own vectors."""
        start, stop = self.lane.place(*self._reach(bucket))
        return vector[start:stop]

    def _of_all(self, vector: Tensor, bucket: int) -> Tensor:
        """Return a bucket of the flat vector, with the padding that makes all lanes' parts equally long."""
        start, stop = self._reach(bucket)
        return vector[start:stop]

    def _reach(self, bucket: int) -> tuple[int, int]:
        start, stop = self.buckets[bucket]
        return start, stop if bucket + 1 < len(self.buckets) else len(self.flat.parameters)
