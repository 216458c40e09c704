"""The training loop of a master or worker.

A step is: quorum, gradient of my micro-batches, one sum over all members, one vote, commit. Nothing of a step is kept
until the vote is in, so a lost member costs the others only the time to notice. Micro-batch
i of a step goes to trainer i mod W once the quorum is known, and the summed gradient is divided by the batch's tokens:
the members change neither the global batch nor the order of the data. With pairs, only the tokens of completions count.

The engine (trainer/parallel/) holds parameters and optimizer state, and sums gradients.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.cluster.group import GroupFailed
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.membership import Quorum
from trainer.contract.geometry import micro_batch_rows
from trainer.data.batches import Batches, Examples, Indices, PairBatches, Windows, pieces
from trainer.evaluation.sampler import Sampler
from trainer.model.loss import Loss
from trainer.training.checkpoint import LAST_PARTS
from trainer.training.engine import Engine
from trainer.training.member_context import MemberContext
from trainer.training.progress import Progress, decide
from trainer.training.vote import Vote, loss_sums, mean_loss


@dataclass
class Training:
    """One trainer's part of a run."""

    context: MemberContext
    engine: Engine
    model: torch.nn.Module
    loss: Loss
    zero: Callable[[], object]  # sets the gradients to zero
    batches: Batches | PairBatches
    validation: Windows | Examples
    device: torch.device
    scaled: bool  # fp16, whose loss is scaled
    stopping: Callable[[], bool]
    sampler: Sampler | None = None  # None with fsdp, where no process has the whole model

    def __post_init__(self) -> None:
        self.spec, self.membership, self.journal = self.context.spec, self.context.membership, self.context.journal
        self.leads = False

    @property
    def progress(self) -> Progress:
        return self.engine.progress

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Quorum:
        """Train to the last step and return the last quorum, whose first member finishes the run. Raise Stopping."""
        self.journal.begin()
        while True:
            if self.stopping():
                raise Stopping
            try:
                quorum = self.membership.quorum(self.progress.position, self.engine.announcement)
                if not quorum.enough:  # the leaving member may have led: then this trainer writes what all wait for
                    self.journal.status.set(leads=quorum.rank == 0 and self.progress.step > 0)
                    continue
                self.leads = quorum.rank == 0
                if not self.engine.prepare(quorum):
                    continue
                if self.progress.evaluation_due(self.spec):
                    self._evaluate(quorum)
                elif self.progress.step < self.spec.hyperparameters.steps:
                    self.step(quorum)
                elif self.engine.finish(quorum):
                    return quorum
            except GroupFailed as error:
                self.engine.abandon()
                if self.stopping():  # perhaps this machine itself gave the step up
                    raise Stopping from error
                self.membership.failed()
                self.journal.recovering(self.progress.step, error, leads=self.leads)

    def step(self, quorum: Quorum) -> None:
        """Take one step with these members, or raise GroupFailed and have taken none."""
        engine = self.engine
        engine.start(quorum)
        vote = self.gradient(self.progress.step, quorum, engine.backward_begins)
        engine.backward_ends()
        tally = engine.sum(vote)
        decision = decide(self.spec.hyperparameters, self.progress, tally)
        engine.commit(decision, quorum.key, self.scaled)
        writes, waited = engine.writes and self.leads, tally.waited / len(quorum.trainers)
        self.journal.step(quorum, self.progress, decision, waited, writes=writes)
        if self.progress.step % self.spec.checkpoints.every == 0:
            engine.save(quorum.attempt, leads=self.leads)

    def gradient(self, step: int, quorum: Quorum | None, before_last: Callable[[], None] = lambda: None) -> Vote:
        """Add up the gradients of this trainer's micro-batches of a step, from zero, and return its vote.

        Without a quorum, it computes what the first of all declared trainers would. before_last: called before the
        last backward pass.
        """
        hyper = self.spec.hyperparameters
        declared = quorum.declared if quorum else self.spec.cluster.trainers * self.spec.cluster.processes
        rank, size = (quorum.rank, len(quorum.trainers)) if quorum else (0, declared)
        parts = pieces(hyper.batch_size, hyper.sequence_length, declared, hyper.micro_batch_size)
        self.zero()
        indices = self.batches.batch(step)
        summed, tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        own_indices = range(rank, len(parts), size)
        for i in own_indices:
            if quorum is not None and quorum.group.failed:
                raise GroupFailed("the step was given up")
            inputs, targets = self._rows(self.batches, indices[parts[i]])
            if self.model.training:  # dropout depends on seed, step and index, not on the trainer that computes it
                torch.manual_seed(zlib.crc32(f"{hyper.seed}/{step}/{i}".encode()))
            loss = self.loss(inputs, targets, self.progress.scale)
            if i == own_indices[-1]:
                before_last()
            loss.backward()  # type: ignore[no-untyped-call]
            self.journal.report()  # alive: a step may take long
            summed += loss.detach()
            tokens += self.batches.counted(indices[parts[i]])
        return Vote(summed, tokens)

    def _rows(self, batches: Windows | Examples, indices: Indices) -> tuple[Tensor, Tensor]:
        inputs, targets = (torch.from_numpy(rows) for rows in batches.rows(indices))
        if self.device.type == "cuda":
            inputs, targets = (t.pin_memory().to(self.device, non_blocking=True) for t in (inputs, targets))
        return inputs, targets

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, quorum: Quorum) -> None:
        """Compute the mean loss of the held-out windows or examples, with all other trainers."""
        windows = self.validation.first(self.spec.evaluation.sequences)
        rows = micro_batch_rows(self.spec.hyperparameters.sequence_length)
        parts = [windows[i : i + rows] for i in range(0, len(windows), rows)]
        self.engine.start(quorum)
        self.engine.ready()
        loss, tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for part in parts[quorum.rank :: len(quorum.trainers)]:
                inputs, targets = self._rows(self.validation, part)
                loss += self.loss(inputs, targets, 1.0)
                tokens += self.validation.counted(part)
        self.engine.forward_ends(-(-len(parts) // len(quorum.trainers)))
        if self.sampler is not None and self.leads:  # the others wait here anyway, and no step is timed
            self.sampler.take(self.progress.step)
        self.model.train(training)
        self.progress.evaluated(mean_loss([loss_sums(quorum.group, loss, tokens)]))
        self.journal.evaluation(quorum, self.progress, writes=self.engine.writes and self.leads)

    # -- leaving ---------------------------------------------------------------------------------------------------

    def leave(self, since_told: Callable[[], float]) -> None:
        """Let the others continue; then a checkpoint is written, by this trainer if it leads, or by the servers.

        A Lighthouse that is hosted here stays until then: in a newer attempt the checkpoint would not count.
        """
        step, attempt = self.progress.step, self.membership.attempt
        if self.engine.writes:
            self.membership.silence()
            whole = step > 0 and self.engine.save(attempt, leads=self.leads, wait=True)
        else:
            quorum = self.membership.leave(self.progress.position, self.engine.announcement)
            self.membership.silence()
            if quorum is None or not quorum.servers:
                return
            step, attempt = quorum.servers[0].progress.step, quorum.attempt  # where the servers are
            whole = step > 0 and self.context.checkpoints.becomes_whole(step, attempt, LAST_PARTS - since_told())
        if whole:
            self.journal.notice(step, attempt, since_told())
