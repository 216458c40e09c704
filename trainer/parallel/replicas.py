"""Data parallel: every trainer holds all parameters and optimizer state, and gradients are summed by all-reduce."""

import time
from dataclasses import replace

from torch import Tensor

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.membership import Quorum
from trainer.model.flat import Flat
from trainer.parallel.ownership import norm_block
from trainer.training.checkpoint import CheckpointShard
from trainer.training.member_context import MemberContext
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class Replicas:
    """One trainer's copy of all parameters. A run of one trainer has one."""

    writes = True  # the first trainer writes records and status

    def __init__(self, context: MemberContext, flat: Flat, announcement: Announcement) -> None:
        self.progress, self.announcement = Progress.at_start(announcement.scaled), announcement
        self._flat, self._checkpoints, self._journal = flat, context.checkpoints, context.journal
        total = len(flat.parameters)
        self._block = norm_block(total)
        self._optimizer = Optimizer(
            flat.parameters, flat.gradients, segments(flat.layout, total, [(0, total)]), context.spec.hyperparameters
        )
        self._vectors: dict[str, Tensor] = {"parameters": flat.parameters}
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
        if quorum.rank == root:  # if it is lost right after, the others continue here and have no earlier records
            self._journal.metrics.fill_in()
        if quorum.rank != root:
            self.progress.step = -1  # until all of it has arrived, this copy does not count
        progress = quorum.group.broadcast_json(self.progress.to_json(), root)
        for vector in self._vectors.values():
            quorum.group.broadcast(vector, root)
        self.progress = Progress(**progress)
        self._optimizer.updates = self.progress.updates
        if quorum.rank != root:
            self._journal.log(f"took over the state of {quorum.members[root].name} at step {self.progress.step}")
        return True

    def start(self, quorum: Quorum) -> None:
        """Do nothing: the parameters are here."""

    def ready(self) -> None:
        """Do nothing: the parameters are here."""

    def backward_begins(self) -> None:
        """Do nothing: gradients are summed once all are final."""

    def backward_ends(self) -> None:
        """Do nothing: sum() sends the gradients."""

    def forward_ends(self, passes: int) -> None:
        """Do nothing: each trainer evaluates on its own."""

    def sum(self, vote: Vote) -> Tally:
        """Sum the gradients and the votes over all members."""
        started = time.monotonic()
        self._group.sum(self._flat.gradients)
        votes = replace(vote, waited=time.monotonic() - started).to_tensor(self._flat.gradients.device)
        self._group.sum(votes)
        gradient_norm = norm(squares(self._flat.gradients, self._block))
        return Vote.from_tensor(votes).tally(gradient_norm)

    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        """Take the step. Everyone has the same sums and decides the same, so everyone gets the same parameters."""
        if decision.finite:
            self._flat.gradients.mul_(decision.factor)
            self._optimizer.update(decision.rate)
        self.progress.commit(decision, key, scaled)

    def abandon(self) -> None:
        """Do nothing: nothing of a failed step was kept."""

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """Write this step's checkpoint once, if this member leads. Return whether it is known to be whole.

        wait: return only when it is written.
        """
        if leads:
            if wait:
                self._checkpoints.wait()
            if self._saved != self.progress.step:
                shard, flush = CheckpointShard(self._vectors, self._flat.layout), self._journal.metrics.flush
                if self._checkpoints.save(shard, self.progress, attempt, before=flush):
                    self._saved = self.progress.step
            if wait:
                self._checkpoints.wait()
        return leads and self._checkpoints.whole(self.progress.step, attempt)

    def finish(self, quorum: Quorum) -> bool:
        """Write the last checkpoint. Every trainer, so the leader too, has the whole model."""
        self.save(quorum.attempt, leads=quorum.rank == 0, wait=True)
        return True

    def restore(self) -> None:
        """Take the newest whole checkpoint, if there is one; else keep the state that the seed gave."""
        restored = self._checkpoints.restore(self._vectors, layout=self._flat.layout)
        if restored is not None:
            self.progress, self._saved = restored.progress, restored.progress.step
            self._optimizer.updates = self.progress.updates
            self._journal.log(f"restored the checkpoint of step {self.progress.step}")
        elif self.progress.step < 0:
            raise RuntimeError("no whole copy of the parameters is left and no checkpoint: start again from the seed")
