"""The training loop: what master and workers compute, together and exactly.

A step is: quorum, gradient of my micro-batches, one sum over all members, one vote, commit. Nothing of a step is kept
until the vote is in, so a member that is lost in between costs the others nothing but the time to notice. Micro-batch
i of a step goes to member i mod W once the quorum is known, and the summed gradient is divided by the batch's tokens:
who is there changes neither the global batch nor the order of the data.
"""

import gc
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from trainer.batches import PIECE_TOKENS, Batches, Indices, Windows, pieces
from trainer.checkpoint import Checkpoints, Progress
from trainer.cluster import Cluster, GroupFailed, Quorum, Stopping
from trainer.metrics import Metrics
from trainer.model import Flat, Loss
from trainer.optimizer import Optimizer, learning_rate, norm
from trainer.spec import InputError, JobSpec, Record
from trainer.status import StatusWriter

NOT_FINITE = {False: 10, True: 40}  # steps in a row without a finite gradient that end a run; True: in fp16
FP16_SCALE = 2.0**16 / PIECE_TOKENS  # of the loss, at first; the loss is a sum over a micro-batch's tokens
LOG_EVERY = 10.0  # seconds


@dataclass
class Training:
    """One member's part of a run. All state that a step changes is in `flat`, `optimizer` and `progress`."""

    spec: JobSpec
    flat: Flat
    loss: Loss
    optimizer: Optimizer
    batches: Batches
    validation: Windows
    cluster: Cluster
    checkpoints: Checkpoints
    metrics: Metrics
    status: StatusWriter
    device: torch.device
    scaled: bool  # fp16, whose loss is scaled
    peak_speed: float | None  # tokens/s at the device's peak, None if unknown
    log: Callable[[str], None]
    report: Callable[..., None]
    stopping: Callable[[], bool]

    def __post_init__(self) -> None:
        self.progress = Progress(scale=FP16_SCALE if self.scaled else 1.0)
        self.vectors: dict[str, Tensor] = {"parameters": self.flat.parameters}
        self.vectors |= {f"moment{i + 1}": vector for i, vector in enumerate(self.optimizer.vectors)}
        self.saved = (0, 0)  # step and attempt of the newest checkpoint
        self.leads = False
        self.last_step, self.started, self.last_line = time.monotonic(), time.time(), 0.0

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Quorum:
        """Train to the last step, or raise Stopping. Returns the last quorum: its first member finishes the run."""
        steps = self.spec.hyperparameters.steps
        self.last_step, self.started = time.monotonic(), time.time()
        while True:
            if self.stopping():
                raise Stopping
            try:
                quorum = self.cluster.quorum(self._identity())
                self.leads = quorum.rank == 0
                self._agree(quorum)
                if self._evaluation_due():
                    self._evaluate(quorum)
                elif self.progress.step >= steps:
                    return quorum
                else:
                    self.step(quorum)
            except GroupFailed as error:
                self.log(f"step {self.progress.step}: a member was lost ({error}); going on with those that are left")
                self.report(message="a member was lost: forming a new group")
                self.status.set(state="RECOVERING", reason="a member was lost: forming a new group")

    def _identity(self) -> tuple[int, int, int]:
        return self.progress.step, self.progress.evaluations, self.progress.lineage

    def _agree(self, quorum: Quorum) -> None:
        """Bring members that are behind (new, or restored from a checkpoint) to the state of the furthest one."""
        states = [member.progress for member in quorum.members]
        if len(set(states)) == 1 and states[0][0] >= 0:
            return
        root = max(range(quorum.size), key=lambda rank: (states[rank][:2], -rank))
        if states[root][0] < 0:  # the only whole copies were lost in the middle of a transfer
            self.restore()
            raise GroupFailed("no member has a whole state; back to the newest checkpoint")
        if states[0] != states[root] == states[quorum.rank]:
            self.metrics.fill_in()
        if quorum.rank != root:
            self.progress.step = -1  # until all of it has come, this copy is worth nothing
        progress = self.cluster.broadcast_json(asdict(self.progress), root, quorum.rank)
        for vector in self.vectors.values():
            self.cluster.broadcast(vector, root)
        self.progress = Progress(**progress)
        self.optimizer.updates = self.progress.updates
        if quorum.rank != root:
            self.log(f"took over the state of {quorum.members[root].name} at step {self.progress.step}")

    def step(self, quorum: Quorum) -> None:
        """Take one step with these members, or raise GroupFailed and have taken none."""
        step = self.progress.step
        vote = self.gradient(step, quorum.rank, quorum.size, quorum.declared)
        self.cluster.sum(self.flat.gradients)
        self.cluster.sum(vote)
        self._commit(quorum, loss=float(vote[0]), tokens=int(vote[1]))

    def gradient(self, step: int, rank: int, size: int, declared: int) -> Tensor:
        """flat.gradients = the summed gradient of my micro-batches. Returns float64 [summed loss, tokens]."""
        hyper = self.spec.hyperparameters
        parts = pieces(hyper.batch_size, hyper.sequence_length, declared, hyper.micro_batch_size)
        self.flat.gradients.zero_()
        indices = self.batches.batch(step)
        vote = torch.zeros(2, dtype=torch.float64, device=self.device)
        for i in range(rank, len(parts), size):
            inputs, targets = self._rows(self.batches, indices[parts[i]])
            if hyper.dropout:  # a function of seed, step and index too, so that it does not depend on who computes it
                torch.manual_seed(zlib.crc32(f"{hyper.seed}/{step}/{i}".encode()))
            loss = self.loss(inputs, targets, self.progress.scale)
            loss.backward()  # type: ignore[no-untyped-call]
            self.report()  # alive: a step may take long
            vote[0] += loss.detach()
            vote[1] += targets.numel()
        return vote

    def _rows(self, batches: Windows, indices: Indices) -> tuple[Tensor, Tensor]:
        inputs, targets = (torch.from_numpy(rows) for rows in batches.rows(indices))
        if self.device.type == "cuda":
            inputs, targets = (t.pin_memory().to(self.device, non_blocking=True) for t in (inputs, targets))
        return inputs, targets

    def _commit(self, quorum: Quorum, loss: float, tokens: int) -> None:
        """Everyone has the same sum, so everyone decides the same and gets the same parameters."""
        hyper, progress = self.spec.hyperparameters, self.progress
        divisor = tokens * progress.scale
        gradient_norm = norm(self.flat.gradients) / divisor
        finite = math.isfinite(gradient_norm) and math.isfinite(loss)
        rate = learning_rate(hyper, progress.step)
        if finite:
            clip = min(1.0, hyper.gradient_clip / (gradient_norm + 1e-6)) if hyper.gradient_clip else 1.0
            self.flat.gradients.mul_(clip / divisor)
            self.optimizer.update(rate)
        progress.count(finite, self.scaled)
        if progress.skipped >= NOT_FINITE[self.scaled]:
            raise InputError(
                f"the gradient was not finite for {progress.skipped} steps in a row up to step {progress.step};"
                " lower hyperparameters.learningRate or raise warmupSteps"
            )
        progress.lineage = zlib.crc32(f"{progress.lineage}/{quorum.key}/{progress.step}".encode())
        self._after_step(quorum, loss / tokens, rate, gradient_norm, tokens, finite)

    def _after_step(
        self, quorum: Quorum, loss: float, rate: float, gradient_norm: float, tokens: int, finite: bool
    ) -> None:
        progress, leads = self.progress, quorum.rank == 0
        now = time.monotonic()
        seconds, self.last_step = now - self.last_step, now
        self.cluster.stepped(seconds)
        if progress.updates == 1:
            gc.collect()
            gc.freeze()  # nothing older than the first step is garbage: no long collections in the middle of a step
        speed = tokens / seconds
        self.report(step=progress.step, message="training")
        attempt = self.cluster.attempt
        self.status.set(
            leads=leads, state="RUNNING", reason="", step=progress.step, attempt=attempt, started=self.started
        )
        self.metrics.add(
            Record(
                step=progress.step,
                time=time.time(),
                attempt=attempt,
                loss=loss if math.isfinite(loss) else None,
                learning_rate=rate,
                gradient_norm=gradient_norm if finite else None,
                step_seconds=seconds,
                tokens_per_second=speed,
                mfu=speed / (self.peak_speed * quorum.size) if self.peak_speed else None,
                trainers=quorum.size,
                skipped=None if finite else True,
            ),
            leads=leads,
        )
        if leads and now - self.last_line > LOG_EVERY:
            self.last_line = now
            self.log(f"step {progress.step}: loss {loss:.4f}, {speed:,.0f} tokens/s, {quorum.size} trainers")
        if leads and progress.step % self.spec.checkpoints.every == 0:
            self.save(wait=False)

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        step = self.progress.step
        due = step % self.spec.evaluation.every == 0 or step == self.spec.hyperparameters.steps
        return step > 0 and due and self.progress.evaluations < step

    def _evaluate(self, quorum: Quorum) -> None:
        """Mean loss of the held-out windows, in nats, computed by all members together."""
        windows = self.validation.first(self.spec.evaluation.sequences)
        rows = max(1, PIECE_TOKENS // self.spec.hyperparameters.sequence_length)
        parts = [windows[i : i + rows] for i in range(0, len(windows), rows)]
        vote = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.flat.model.eval()
        with torch.no_grad():
            for part in parts[quorum.rank :: quorum.size]:
                inputs, targets = self._rows(self.validation, part)
                vote[0] += self.loss(inputs, targets, 1.0)
                vote[1] += targets.numel()
        self.flat.model.train(self.spec.hyperparameters.dropout > 0)
        self.cluster.sum(vote)
        progress, mean = self.progress, float(vote[0] / vote[1])
        progress.evaluations, progress.validation_loss = progress.step, mean
        progress.lineage = zlib.crc32(f"{progress.lineage}/{quorum.key}/evaluated".encode())
        self.last_step = time.monotonic()  # so that the next step's speed is its own
        record = Record(step=progress.step, time=time.time(), attempt=self.cluster.attempt, validation_loss=mean)
        self.metrics.add(record, leads=quorum.rank == 0)
        if quorum.rank == 0:
            self.log(f"step {progress.step}: validation loss {mean:.4f}, perplexity {math.exp(min(mean, 20)):.1f}")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, *, wait: bool) -> None:
        """Of this step, once. `wait`: return when it is written, else it is written while training goes on."""
        if wait:
            self.checkpoints.wait()
        if self.saved != (self.progress.step, self.cluster.attempt):
            self.saved = (self.progress.step, self.cluster.attempt)
            self.checkpoints.save(self.vectors, self.progress, self.saved[1], self.flat.layout, self.metrics.flush)
        if wait:
            self.checkpoints.wait()

    def restore(self) -> None:
        """The newest whole checkpoint, if there is one; else the state that the seed gives."""
        progress = self.checkpoints.restore(self.vectors, self.flat.layout)
        if progress is not None:
            self.progress = progress
            self.optimizer.updates = progress.updates
            self.log(f"restored the checkpoint of step {progress.step}")
        elif self.progress.step < 0:
            raise RuntimeError("no whole copy of the parameters is left and no checkpoint: start again from the seed")
