"""A trainer that goes several steps alone and then meets the others at the parameter servers: see outer.py."""

import dataclasses
import math

import torch

from trainer.cluster.group import GroupFailed
from trainer.cluster.membership import Quorum
from trainer.parallel.ownership import norm_block
from trainer.parallel.ps_trainer import Served
from trainer.training.loop import Training
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Decision, decide, decide_meeting
from trainer.training.vote import Vote


class LocalServed(Served):
    """Parameters and AdamW's moments come at a meeting's beginning and go at its end."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        flat, total = self._flat, self._shards.total
        self._interleaved = False
        parts = segments(flat.layout, total, [(0, total)])
        self._optimizer = Optimizer(flat.parameters, flat.gradients, parts, self._spec.hyperparameters)
        self._before = torch.zeros_like(flat.parameters)

    def _pull(self) -> None:
        super()._pull()
        for vector in self._optimizer.vectors:
            self._trade.pull(vector)

    def begin(self) -> None:
        """All is here: from now on this trainer is alone."""
        self.ready()
        self._holds = -1  # of what the servers have
        self._before.copy_(self._flat.parameters)
        self._optimizer.updates = self.progress.updates

    def norm(self) -> float:
        """Of this trainer's gradient."""
        return norm(squares(self._flat.gradients, norm_block(self._shards.total)))

    def update(self, decision: Decision) -> None:
        """A step alone."""
        self._flat.gradients.mul_(decision.factor)
        self._optimizer.update(decision.rate)

    def push(self, weight: float) -> None:
        """Send how far the parameters moved, and the moments, each times this trainer's share of the tokens."""
        moved = torch.sub(self._before, self._flat.parameters, out=self._flat.gradients).mul_(weight)
        vectors = [moved, *(moment.mul_(weight) for moment in self._optimizer.vectors)]

        def send() -> None:
            for vector in vectors:
                self._trade.push(vector)

        self._move(send)
        self._pushed()


class LocalTraining(Training):
    engine: LocalServed

    def step(self, quorum: Quorum) -> None:
        """The steps to the next meeting, and the meeting; or raise GroupFailed and have taken none."""
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
