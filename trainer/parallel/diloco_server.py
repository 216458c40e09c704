"""A parameter server for trainers that take several steps alone (`synchronization: local`).

After DiLoCo (Douillard et al. 2023): the distance that trainers moved the parameters is the gradient of an outer
optimizer, SGD with Nesterov momentum, which runs here. Unlike in DiLoCo, trainers keep nothing between meetings:
AdamW's moments travel too and are averaged, so that trainers may come and go, a checkpoint holds the whole state, and
a run resumes exactly. Three vectors each way in a meeting every H steps are 3/H of what synchronous steps send.

Memory: 28 bytes a parameter of its part, and 16 for the copy from which checkpoints are written.
"""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.quorum import Quorum
from trainer.model.layout import Layout, Ranges
from trainer.parallel.ps_server import PsServer
from trainer.parallel.served_lanes import ServedLane
from trainer.training.progress import Decision, decide_meeting

UNWRITTEN = 60.0  # seconds without a checkpoint after which the next meeting writes one
OUTER_RATE, MOMENTUM = 0.7, 0.9  # DiLoCo's for language models


class DilocoServer(PsServer):
    """One parameter server whose step is a meeting."""

    _written = math.inf  # when this server last began to write a checkpoint, or when it started

    def run(self) -> Quorum:
        self._written = time.monotonic()
        return super().run()

    @property
    def _steps(self) -> int:
        """The steps to the next meeting: the last meeting may come earlier."""
        return self._spec.parallel.meeting(self.progress.step, self._spec.hyperparameters.steps)

    def _make_room(self, layout: Layout) -> tuple[dict[str, Tensor], Ranges]:
        super()._make_room(layout)
        self._momentum = torch.zeros_like(self._parameters)
        self._moments = [torch.zeros_like(self._parameters) for _ in self._optimizer.vectors]  # as trainers send them
        self._vectors["momentum"] = self._momentum
        return self._vectors, self._ranges

    def _announcement(self) -> Announcement:
        return replace(super()._announcement(), unwritten=time.monotonic() - self._written > UNWRITTEN)

    def _checkpoint_due(self, quorum: Quorum) -> bool:
        """Return whether to write a checkpoint: also where the last one is old, because meetings are far apart.

        Until the next meeting trainers hear of no notice that a server gets. The first server's clock decides, so that
        all servers write one, or none does.
        """
        due = super()._checkpoint_due(quorum) or quorum.servers[0].announced.unwritten
        self._written = time.monotonic() if due else self._written
        return due

    def _serve(self, lane: ServedLane) -> None:
        for vector in (self._parameters, *self._optimizer.vectors):
            lane.exchange.serve(vector)

    def _collect(self, lane: ServedLane) -> None:
        for vector in (self._gradients, *self._moments):
            lane.exchange.collect(vector)

    def _decide(self, tally: Tally) -> Decision:
        return decide_meeting(self._spec.hyperparameters, self.progress.step + self._steps - 1, tally)

    def _apply(self, decision: Decision) -> None:
        self._momentum.mul_(MOMENTUM).add_(self._gradients)
        self._parameters.sub_(self._gradients.add_(self._momentum, alpha=MOMENTUM), alpha=OUTER_RATE)
        for vector, sent in zip(self._optimizer.vectors, self._moments, strict=True):
            vector.copy_(sent)
