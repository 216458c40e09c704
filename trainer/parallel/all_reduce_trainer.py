"""Trainers without parameter servers: each lane sums its gradients by all-reduce, and every process updates its own.

Gradients are added up bucket by bucket while the backward pass makes the next ones: inside the machine first, so that
each process holds the sum of its lane's part, then over the lane. A member that is lost costs the others nothing but
the step: each machine has all parameters and all optimizer state.
"""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

import torch
from torch import Tensor

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.quorum import Quorum
from trainer.cluster.step_group import StepGroup
from trainer.parallel.mover import Mover
from trainer.parallel.ownership import norm_block
from trainer.parallel.protocol import WIRE
from trainer.parallel.restoring import restore_alike
from trainer.parallel.shard import Shard, own_squares
from trainer.training.checkpoint import CheckpointShard
from trainer.training.member_context import MemberContext
from trainer.training.optimizer import Optimizer, segments
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class AllReduceTrainer:
    """The engine of one process of a trainer, in a run without parameter servers."""

    writes = True  # the first trainer writes records and status

    def __init__(self, context: MemberContext, shard: Shard, announcement: Announcement) -> None:
        self.progress, self.announcement = Progress.at_start(announcement.scaled), announcement
        self._shard, self._checkpoints, self._journal = shard, context.checkpoints, context.journal
        self._processes = context.processes
        self._group: StepGroup | None = None
        self._mover = Mover(shard.device)
        self._votes: SimpleQueue[Tensor | None] = SimpleQueue()  # of the step, for the mover; None if it is given up
        self._wire = WIRE[context.spec.parallel.wire]
        self._places = [shard.lane.place(*bucket) for bucket in shard.buckets]
        self._block = norm_block(shard.total)
        parts = segments(shard.layout, shard.total, list(shard.lane.ranges))
        self._optimizer = Optimizer(shard.parameters, shard.gradients, parts, context.spec.hyperparameters)
        self._vectors: dict[str, Tensor] = {"parameters": shard.parameters}
        self._vectors |= {f"moment{i + 1}": vector for i, vector in enumerate(self._optimizer.vectors)}
        self._saved = -1  # step of the newest checkpoint

    def prepare(self, quorum: Quorum) -> bool:
        """Give members that are behind (new, or restored from a checkpoint) the state of the furthest one."""
        self._group = quorum.group
        states = [member.progress for member in quorum.members]
        if len(set(states)) == 1 and states[0][0] >= 0:
            return True
        root = max(range(len(states)), key=lambda rank: (states[rank][:2], -rank))
        if states[root][0] < 0:  # the only whole copies were lost in the middle of a transfer
            self.restore()
            raise GroupFailed("no member has a whole state; back to the newest checkpoint")
        if quorum.rank != root:
            self.progress.step = -1  # until all of it has arrived, this copy does not count
        if quorum.rank == root and self._processes.rank == 0:
            self._journal.metrics.fill_in()  # if it is lost right after, the others have no earlier records
        with quorum.group.agreed():
            progress = quorum.lane.broadcast_json(self.progress.to_json(), root)
            for vector in self._vectors.values():
                quorum.lane.broadcast(vector, root)
        self._gather()
        self.progress = Progress(**progress)
        self._optimizer.updates = self.progress.updates
        if quorum.rank != root and self._processes.rank == 0:
            self._journal.log(f"took over the state of {quorum.members[root].name} at step {self.progress.step}")
        return True

    def start(self, quorum: Quorum) -> None:
        """Do nothing: the parameters are here."""

    def ready(self) -> None:
        """Do nothing: the parameters are here."""

    # -- a step ----------------------------------------------------------------------------------------------------

    def backward_begins(self) -> None:
        self._shard.backward_begins()
        assert self._group is not None
        if self._group.lane.size > 1 or self._processes.size > 1:
            self._votes = SimpleQueue()
            self._mover.begin(partial(self._reduce, self._group.lane, self._votes))

    def backward_ends(self, passes: int) -> None:
        """Send the rest: all gradients of this process are final. Before the first quorum nothing is sent."""
        if self._group is not None and not self._mover.busy:  # it had no part in this step's batch
            self.backward_begins()
        self._shard.backward_ends(passes)

    def forward_ends(self, passes: int) -> None:
        self._shard.forward_ends(passes)

    def _reduce(self, lane: MemberGroup, voted: "SimpleQueue[Tensor | None]") -> None:
        """Add up all buckets, over the machine and then over the lane, and last the vote.

        If the lane fails, the machine's processes still wait for each other's buckets.
        """
        sums = []
        for bucket, (start, stop) in enumerate(self._places):
            self._shard.reduce(bucket)
            part = self._shard.gradients[start:stop]
            sent = part if lane.size == 1 else part.to(self._wire)  # itself where the wire is fp32
            with suppress(GroupFailed):
                sums.append((part, sent, lane.begin_sum(sent)))
        votes = voted.get()
        if votes is None:  # the step was given up
            return
        with suppress(GroupFailed):
            voting = lane.begin_sum(votes)
            for part, sent, pending in sums:
                pending.wait()
                if sent is not part:
                    part.copy_(sent)
            voting.wait()

    def sum(self, vote: Vote) -> Tally:
        """Sum the gradients and the votes over all processes of all members, and wait for both together."""
        assert self._group is not None
        votes = replace(vote, waited=self._mover.waited).to_tensor(self._group.lane.device)  # in its last step
        self._mover.waited = 0.0
        if self._mover.busy:
            self._mover.follow()
            self._votes.put(votes)
            self._mover.wait()
            with suppress(GroupFailed):
                self._group.lane.settle()
        return Vote.from_tensor(self._group.conclude(votes, own_squares(self._shard, self._block))).tally()

    @torch.no_grad()
    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        """Take the step. Everyone has the same sums and decides the same, so everyone gets the same parameters."""
        if decision.finite:
            self._shard.gradients.mul_(decision.factor)
            self._optimizer.update(decision.rate)
            self._gather()
        self.progress.commit(decision, key, scaled)

    def _gather(self) -> None:
        for bucket in range(len(self._places)):
            self._shard.gather(bucket)

    def abandon(self) -> None:
        """Forget what is on its way: nothing of a failed step was kept."""
        if self._group is not None:
            self._group.lane.close()
        self._shard.readiness.finish()
        if self._mover.busy:
            self._votes.put(None)
        self._mover.forget()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """Write this process's part of this step's checkpoint once, if this machine leads.

        wait: return only when all parts are written. Return whether the checkpoint is known to be whole.
        """
        if leads:
            if wait:
                self._checkpoints.wait()
            if self._saved != self.progress.step:
                self._save(attempt)
            if wait:
                self._checkpoints.wait()
                self._processes.any(False)  # the others have written their parts too
        return leads and self._checkpoints.whole(self.progress.step, attempt)

    def _save(self, attempt: int) -> None:
        """Write this process's part in the background, unless a process still writes: a part alone is of no use."""
        step, part = self.progress.step, self._processes.rank
        if self._processes.any(self._checkpoints.busy):
            if part == 0:
                self._journal.log(f"no checkpoint at step {step}: the one before is still being written")
            return
        ranges = list(self._shard.lane.ranges)
        shard = CheckpointShard(self._vectors, self._shard.layout, ranges, part, self._processes.size)
        flush = self._journal.metrics.flush if part == 0 else lambda: None  # one writes for all
        self._checkpoints.save(shard, self.progress, attempt, before=flush)
        self._saved = step

    def finish(self, quorum: Quorum) -> bool:
        """Write the last checkpoint. Every trainer, so the leader too, has the whole model."""
        self.save(quorum.attempt, leads=quorum.rank == 0, wait=True)
        return True

    def restore(self) -> None:
        """Take the newest whole checkpoint, if there is one; else keep the state that the seed gave."""
        restored = restore_alike(self._checkpoints, self._vectors, self._shard, self._processes)
        if restored is not None:
            self._gather()
            self.progress, self._saved = restored.progress, restored.progress.step
            self._optimizer.updates = self.progress.updates
            if self._processes.rank == 0:
                self._journal.log(f"restored the checkpoint of step {self.progress.step}")
        elif self.progress.step < 0:
            raise RuntimeError("no whole copy of the parameters is left and no checkpoint: start again from the seed")
