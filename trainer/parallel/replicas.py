"""Data parallel: every trainer holds all parameters and optimizer state, and gradients are summed by all-reduce."""

import time
from dataclasses import replace

from torch import Tensor

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.membership import Quorum
from trainer.contract.spec import Hyperparameters
from trainer.model.flat import Flat
from trainer.parallel.ownership import norm_block
from trainer.training.checkpoint import Checkpoints
from trainer.training.journal import Journal
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class Replicas:
    """One trainer's copy. A trainer alone is the smallest case."""

    writes = True  # the first trainer writes records and status

    def __init__(
        self,
        flat: Flat,
        hyper: Hyperparameters,
        checkpoints: Checkpoints,
        journal: Journal,
        progress: Progress,
        announcement: Announcement,
    ) -> None:
        self.progress, self.announcement = progress, announcement
        self._flat, self._checkpoints, self._journal = flat, checkpoints, journal
        total = len(flat.parameters)
        self._block = norm_block(total)
        self._optimizer = Optimizer(flat.parameters, flat.gradients, segments(flat.layout, total, [(0, total)]), hyper)
        self._vectors: dict[str, Tensor] = {"parameters": flat.parameters}
        self._vectors |= {f"moment{i + 1}": vector for i, vector in enumerate(self._optimizer.vectors)}
        self._saved = -1  # step of the newest checkpoint

    def prepare(self, quorum: Quorum) -> bool:
        """Bring members that are behind (new, or restored from a checkpoint) to the state of the furthest one."""
        self._group = quorum.group
        states = [member.progress for member in quorum.members]
        if len(set(states)) == 1 and states[0][0] >= 0:
            return True
        root = max(range(len(states)), key=lambda rank: (states[rank][:2], -rank))
        if states[root][0] < 0:  # the only whole copies were lost in the middle of a transfer
            self.restore()
            raise GroupFailed("no member has a whole state; back to the newest checkpoint")
        if quorum.rank == root:  # if it is lost right after, the others go on from here and have no records of before
            self._journal.metrics.fill_in()
        if quorum.rank != root:
            self.progress.step = -1  # until all of it has come, this copy is worth nothing
        progress = quorum.group.broadcast_json(self.progress.to_json(), root)
        for vector in self._vectors.values():
            quorum.group.broadcast(vector, root)
        self.progress = Progress(**progress)
        self._optimizer.updates = self.progress.updates
        if quorum.rank != root:
            self._journal.log(f"took over the state of {quorum.members[root].name} at step {self.progress.step}")
        return True

    def start(self, quorum: Quorum) -> None:
        """The parameters are here."""

    def ready(self) -> None:
        """They are."""

    def backward_begins(self) -> None:
        """Nothing travels before all is ready."""

    def backward_ends(self) -> None:
        """See sum()."""

    def forward_ends(self, passes: int) -> None:
        """Trainers evaluate on their own."""

    def sum(self, vote: Vote) -> Tally:
        """Sum the gradients and the votes over all members."""
        begun = time.monotonic()
        self._group.sum(self._flat.gradients)
        votes = replace(vote, waited=time.monotonic() - begun).to_tensor(self._flat.gradients.device)
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
        """The step failed; nothing of it was kept."""

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """The leader's checkpoint of this step, once. `wait`: return when it is written, and whether it is whole."""
        if leads:
            if wait:
                self._checkpoints.wait()
            if self._saved != self.progress.step:
                flush, layout = self._journal.metrics.flush, self._flat.layout
                if self._checkpoints.save(self._vectors, self.progress, attempt, layout, before=flush):
                    self._saved = self.progress.step
            if wait:
                self._checkpoints.wait()
        return leads and self._checkpoints.whole(self.progress.step, attempt)

    def finish(self, quorum: Quorum) -> bool:
        """The last checkpoint is written, and the leader has the whole model."""
        self.save(quorum.attempt, leads=quorum.rank == 0, wait=True)
        return True

    def restore(self) -> None:
        """The newest whole checkpoint, if there is one; else the state that the seed gives."""
        restored = self._checkpoints.restore(self._vectors, layout=self._flat.layout)
        if restored is not None:
            self.progress, self._saved = restored.progress, restored.progress.step
            self._optimizer.updates = self.progress.updates
            self._journal.log(f"restored the checkpoint of step {self.progress.step}")
        elif self.progress.step < 0:
            raise RuntimeError("no whole copy of the parameters is left and no checkpoint: start again from the seed")
