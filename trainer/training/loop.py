"""The training loop of a master or worker.

Every process of a machine runs it. A step is: quorum, gradient of my micro-batches, one sum over all processes, one
vote, commit. Nothing of a step is kept until the vote is in, so a lost member costs the others only the time to notice.
The rows of a batch are dealt to the processes once the quorum is known, and the summed gradient is divided by the
batch's tokens: the members change neither the global batch nor the order of the data. With pairs, only the tokens of
completions count.

The engine (trainer/parallel/) holds parameters and optimizer state, and sums gradients.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.cluster.group import GroupFailed
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.quorum import Quorum
from trainer.contract.geometry import piece_rows
from trainer.data.batches import Batches, Dealing, Examples, Indices, PairBatches, Windows
from trainer.evaluation.sampler import Sampler
from trainer.model.loss import Loss
from trainer.training.checkpoint import LAST_PARTS
from trainer.training.engine import Engine
from trainer.training.member_context import MemberContext
from trainer.training.prefetch import Prefetch, read
from trainer.training.progress import Progress, decide
from trainer.training.vote import Vote, mean_loss


@dataclass
class Training:
    """One trainer's part of a run."""

    context: MemberContext
    engine: Engine
    model: torch.nn.Module
    loss: Loss
    zero: Callable[[int], object]  # sets the gradients to zero for a step, whose busiest process has so many passes
    batches: Batches | PairBatches
    validation: Windows | Examples
    device: torch.device
    micro_batch_rows: int  # sequences of a micro-batch, at most
    scaled: bool  # fp16, whose loss is scaled
    stopping: Callable[[], bool]
    sampler: Sampler | None = None  # of the first process; with fsdp no process has the whole model

    def __post_init__(self) -> None:
        self.spec, self.membership, self.journal = self.context.spec, self.context.membership, self.context.journal
        self.processes = self.context.processes
        self.leads = False  # whether this machine is the first member
        self._dropout = self.model.training
        self._scale = torch.ones((), device=self.device)  # of the loss: a tensor, so that compiled code keeps it open
        self._prefetch = Prefetch(self.batches, self.device)

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
                    writes = quorum.rank == 0 and self.processes.rank == 0
                    self.journal.status.set(leads=writes and self.progress.step > 0)
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
                if self.processes.rank == 0:
                    self.journal.recovering(self.progress.step, error, leads=self.leads)

    @property
    def writes(self) -> bool:
        """Return whether this process writes the run's records and status."""
        return self.engine.writes and self.leads and self.processes.rank == 0

    def step(self, quorum: Quorum) -> None:
        """Take one step with these members, or raise GroupFailed and have taken none."""
        engine = self.engine
        engine.start(quorum)
        vote = self.gradient(self.progress.step, quorum, engine.backward_begins)
        engine.backward_ends(self._passes(quorum))
        tally = engine.sum(vote)
        decision = decide(self.spec.hyperparameters, self.progress, tally)
        engine.commit(decision, quorum.key, self.scaled)
        waited = tally.waited / (len(quorum.trainers) * self.processes.size)
        self.journal.step(quorum, self.progress, decision, waited, writes=self.writes)
        if self.progress.step % self.spec.checkpoints.every == 0:
            engine.save(quorum.attempt, leads=self.leads)

    def gradient(self, step: int, quorum: Quorum | None, before_last: Callable[[], None] = lambda: None) -> Vote:
        """Add up the gradients of this process's micro-batches of a step, from zero, and return its vote.

        Without a quorum, it computes what it would on the first of all declared machines. before_last: called before
        the last backward pass.
        """
        seed, (number, processes) = self.spec.hyperparameters.seed, self._place(quorum)
        dealing = self._dealing(quorum)
        parts, fewest = (dealing.micro_batches(n, processes) for n in (number, processes - 1))
        self.zero(dealing.passes(processes))
        scale = self._scale.fill_(self.progress.scale) if self.scaled else None
        summed, tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for i, micro_batch in enumerate(self._prefetch.take(step, parts)):
            if quorum is not None and i < len(fewest):  # as often as all other processes of the machine
                quorum.group.check()
            rows = micro_batch.to(self.device)
            if self._dropout:  # it depends on seed, step and place in the batch, not on the process that computes it
                torch.manual_seed(zlib.crc32(f"{seed}/{step}/{parts[i].start}".encode()))
            loss = self.loss(rows.inputs, rows.targets, scale, rows.counted)
            if i == len(parts) - 1:
                before_last()
            loss.backward()  # type: ignore[no-untyped-call]
            self.journal.report()  # alive: a step may take long
            summed += loss.detach()
            tokens += rows.tokens
        return Vote(summed, tokens)

    def _place(self, quorum: Quorum | None) -> tuple[int, int]:
        """Return this process's number among the processes that compute, and how many these are."""
        if quorum is None:
            return self.processes.rank, self._declared(quorum)
        each = self.processes.size
        return quorum.rank * each + self.processes.rank, len(quorum.trainers) * each

    def _declared(self, quorum: Quorum | None) -> int:
        """Return how many processes the run declares to compute."""
        return (quorum.declared if quorum else self.spec.cluster.trainers) * self.processes.size

    def _dealing(self, quorum: Quorum | None) -> Dealing:
        """Return how a step's batch is dealt to the processes."""
        hyper = self.spec.hyperparameters
        piece = piece_rows(hyper, self._declared(quorum)) if self._dropout else None
        return Dealing(hyper.batch_size, self.micro_batch_rows, piece)

    def _passes(self, quorum: Quorum | None) -> int:
        """Return how many micro-batches of a step the busiest process has."""
        return self._dealing(quorum).passes(self._place(quorum)[1])

    def warm_up(self) -> None:
        """Compute a step and a part of an evaluation that do not count, before others wait for this machine.

        Compiling and allocating are slow, and each of the two compiles its own code.
        """
        self.gradient(0, None)
        self.engine.backward_ends(self._passes(None))
        number, processes = self._place(None)
        windows = self.validation.first(self.micro_batch_rows * processes)
        self._validate(windows, number, processes)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, quorum: Quorum) -> None:
        """Compute the mean loss of the held-out windows or examples, with all other trainers."""
        self.engine.start(quorum)
        self.engine.ready()
        windows = self.validation.first(self.spec.evaluation.sequences)
        loss, tokens = self._validate(windows, *self._place(quorum))
        if self.sampler is not None and self.leads:  # the others wait here anyway, and no step is timed
            self.sampler.take(self.progress.step)
        sums = torch.stack([loss, torch.full_like(loss, tokens)]).to(quorum.lane.device)
        self.progress.evaluated(mean_loss([quorum.group.sum(sums)]))
        self.journal.evaluation(quorum, self.progress, writes=self.writes)

    @torch.no_grad()
    def _validate(self, windows: Indices, number: int, processes: int) -> tuple[Tensor, int]:
        """Return the summed loss of this process's part of some held-out rows, and how many targets count."""
        dealing = Dealing(len(windows), self.micro_batch_rows)
        dealing = replace(dealing, piece=dealing.rows(processes))  # adjacent examples have similar lengths
        loss, tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0
        self.model.eval()
        for part in dealing.micro_batches(number, processes):
            rows = read(self.validation, windows[part], pinned=self.device.type == "cuda").to(self.device)
            loss += self.loss(rows.inputs, rows.targets, counted=rows.counted)
            tokens += rows.tokens
        self.engine.forward_ends(dealing.passes(processes))
        self.model.train(self._dropout)
        return loss, tokens

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
            if quorum is None or not quorum.servers or self.processes.rank > 0:
                return
            step, attempt = quorum.servers[0].progress.step, quorum.attempt  # where the servers are
            whole = step > 0 and self.context.checkpoints.becomes_whole(step, attempt, LAST_PARTS - since_told())
        if whole and self.processes.rank == 0:
            self.journal.notice(step, attempt, since_told())
