"""A trainer that takes several steps alone and then meets the others at the parameter servers: diloco_server.py."""

import dataclasses
import math
from collections.abc import Callable

import torch

from trainer.cluster.announcement import Announcement
from trainer.cluster.group import GroupFailed
from trainer.cluster.membership import Quorum
from trainer.model.flat import Flat
from trainer.parallel.ownership import norm_block
from trainer.parallel.ps_trainer import PsTrainer
from trainer.training.loop import Training
from trainer.training.member_context import MemberContext
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Decision, decide, decide_meeting
from trainer.training.vote import Vote


class DilocoTrainer(PsTrainer):
    """The engine of a trainer that pulls parameters and AdamW's moments before its steps, and pushes them after."""

    def __init__(
        self, context: MemberContext, flat: Flat, begin: Callable[[], object], announcement: Announcement
    ) -> None:
        super().__init__(context, flat, begin, announcement)
        total = self._ownership.total
        self._interleaved = False
        parts = segments(flat.layout, total, [(0, total)])
        self._optimizer = Optimizer(flat.parameters, flat.gradients, parts, self._spec.hyperparameters)
        self._before = torch.zeros_like(flat.parameters)

    def _pull(self) -> None:
        super()._pull()
        for vector in self._optimizer.vectors:
            self._exchange.pull(vector)

    def begin(self) -> None:
        """Wait for all vectors, and begin to take steps alone."""
        self.ready()
        self._holds = -1  # its parameters differ from the servers' from here
        self._before.copy_(self._flat.parameters)
        self._optimizer.updates = self.progress.updates

    def norm(self) -> float:
        """Return the norm of this trainer's gradient."""
        return norm(squares(self._flat.gradients, norm_block(self._ownership.total)))

    def update(self, decision: Decision) -> None:
        """Take a step alone."""
        self._flat.gradients.mul_(decision.factor)
        self._optimizer.update(decision.rate)

    def push(self, weight: float) -> None:
        """Send how far the parameters moved, and the moments, times `weight`: this trainer's share of the tokens."""
        moved = torch.sub(self._before, self._flat.parameters, out=self._flat.gradients).mul_(weight)
        vectors = [moved, *(moment.mul_(weight) for moment in self._optimizer.vectors)]

        def send() -> None:
            for vector in vectors:
                self._exchange.push(vector)

        self._move(send)
        self._pushed()


class DilocoTraining(Training):
    """The loop of a trainer whose step is a meeting."""

    engine: DilocoTrainer

    def step(self, quorum: Quorum) -> None:
        """Take the steps to the next meeting and meet; or raise GroupFailed and have taken none."""
        engine, hyper, start = self.engine, self.spec.hyperparameters, self.progress.step
        steps = self.spec.parallel.meeting(start, hyper.steps)
        engine.start(quorum)
        engine.begin()
        loss, tokens = 0.0, 0.0  # of all these steps
        for step in range(start, start + steps):
            if self.stopping():  # the others take these steps without this trainer
                raise GroupFailed("this machine is leaving")
            vote = self.gradient(step, quorum)
            loss, tokens = loss + float(vote.loss), tokens + vote.tokens
            if vote.tokens:
                now = dataclasses.replace(self.progress, step=step)
                decision = decide(hyper, now, vote.tally(engine.norm()))
                if not decision.finite:
                    loss = math.nan  # all skip these steps
                engine.update(decision)
        tokens_of_all = sum(self.batches.counted(self.batches.batch(step)) for step in range(start, start + steps))
        engine.push(tokens / tokens_of_all)
        tally = engine.sum(Vote(loss, tokens))
        decision = decide_meeting(hyper, start + steps - 1, tally)
        self.progress.commit(decision, quorum.key, self.scaled, steps)
        waited = tally.waited / len(quorum.trainers)
        self.journal.step(quorum, self.progress, decision, waited, writes=False, steps=steps)
