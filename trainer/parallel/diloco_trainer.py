"""A trainer that takes several steps alone and then meets the others at the parameter servers: diloco_server.py.

It is a machine that is alone: its processes share each step, and update their lanes.
"""

import dataclasses
import math
from collections.abc import Callable

import torch

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.quorum import Quorum
from trainer.parallel.ownership import norm_block
from trainer.parallel.ps_trainer import PsTrainer, _AllOf
from trainer.parallel.shard import Shard, own_squares
from trainer.training.loop import Training
from trainer.training.member_context import MemberContext
from trainer.training.optimizer import Optimizer, segments
from trainer.training.progress import Decision, decide, decide_meeting
from trainer.training.vote import Vote


class DilocoTrainer(PsTrainer):
    """The engine of a trainer that pulls parameters and AdamW's moments before its steps, and pushes them after."""

    def __init__(
        self, context: MemberContext, shard: Shard, begin: Callable[[], object], announcement: Announcement
    ) -> None:
        super().__init__(context, shard, begin, announcement)
        total = self._ownership.total
        self._interleaved = False
        parts = segments(shard.layout, total, list(shard.lane.ranges))
        self._optimizer = Optimizer(shard.parameters, shard.gradients, parts, self._spec.hyperparameters)
        self._before = torch.zeros_like(shard.parameters)
        self._block = norm_block(total)

    def _pull_vectors(self, arrived: _AllOf) -> None:
        with arrived:
            self._exchange.pull(self._shard.parameters, arrived)
            for vector in self._optimizer.vectors:
                self._exchange.pull(vector)

    def begin(self) -> None:
        """Wait for all vectors, and begin to take steps alone."""
        self.ready()
        self._holds = -1  # its parameters differ from the servers' from here
        self._before.copy_(self._shard.parameters)
        self._optimizer.updates = self.progress.updates

    def tally(self, vote: Vote, passes: int) -> Tally:
        """Add up a step's gradients over this machine's processes, and return its tally.

        Raise GroupFailed in all of them if one has lost its lane: then the meeting cannot take place.
        """
        self._shard.backward_ends(passes)
        for bucket in range(len(self._shard.buckets)):
            self._shard.reduce(bucket)
        squares = own_squares(self._shard, self._block)
        assert self._group is not None
        votes = dataclasses.replace(vote, squares=squares).to_tensor(squares.device)
        return Vote.from_tensor(self._group.conclude(votes)).tally()

    def update(self, decision: Decision) -> None:
        """Take a step alone."""
        self._shard.gradients.mul_(decision.factor)
        self._optimizer.update(decision.rate)
        self._gather()

    def push(self, weight: float) -> None:
        """Send how far the parameters moved, and the moments, times `weight`: this machine's share of the tokens."""
        moved = torch.sub(self._before, self._shard.parameters, out=self._shard.gradients).mul_(weight)
        vectors = [moved, *(moment.mul_(weight) for moment in self._optimizer.vectors)]

        def send() -> None:
            with self._all_of([], lambda _: None):
                for vector in vectors:
                    self._exchange.push(vector)

        self._mover.begin(send)
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
        loss, tokens, tokens_here = 0.0, 0.0, 0.0  # of all these steps: of this process, and of its machine
        for step in range(start, start + steps):
            if self.stopping():  # the others take these steps without this trainer
                raise GroupFailed("this machine is leaving")
            vote = self.gradient(step, quorum)
            loss, tokens = loss + float(vote.loss), tokens + vote.tokens
            now = dataclasses.replace(self.progress, step=step)
            tally = engine.tally(vote, self._passes(quorum))
            tokens_here += tally.tokens
            if tally.tokens:
                decision = decide(hyper, now, tally)
                if decision.finite:
                    engine.update(decision)
                else:
                    loss = math.nan  # all skip these steps
        tokens_of_all = sum(self.batches.counted(self.batches.batch(step)) for step in range(start, start + steps))
        engine.push(tokens_here / tokens_of_all)
        tally = engine.sum(Vote(loss, tokens))
        decision = decide_meeting(hyper, start + steps - 1, tally)
        self.progress.commit(decision, quorum.key, self.scaled, steps)
        waited = tally.waited / (len(quorum.trainers) * self.processes.size)
        self.journal.step(quorum, self.progress, decision, waited, writes=False, steps=steps)
