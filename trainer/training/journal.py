"""Write down how the run goes: records, status.json, this machine's own report, and a line now and then."""

import gc
import math
import time

from trainer.cluster.host import Host
from trainer.cluster.membership import Membership
from trainer.cluster.quorum import Quorum
from trainer.runs.metrics import Metrics
from trainer.runs.records import Record
from trainer.runs.status import StatusWriter
from trainer.training.progress import Decision, Progress

LOG_EVERY = 10.0  # seconds


class Journal:
    """The journal of one process. One member writes for the run: a trainer, or the first of the parameter servers.

    The first process of a machine speaks for all of them.
    """

    def __init__(
        self, metrics: Metrics, status: StatusWriter, membership: Membership, host: Host, *, speaks: bool = True
    ) -> None:
        """speaks: whether this process is the first of its machine."""
        self._speaks = speaks
        self.metrics, self.status, self._membership = metrics, status, membership
        self.log, self.report = host.log, host.report
        self._last_step, self._started, self._last_line = time.monotonic(), time.time(), 0.0
        self._steps = 0

    def step(
        self, quorum: Quorum, progress: Progress, decision: Decision, waited: float, *, writes: bool, steps: int = 1
    ) -> None:
        """Record a committed step, or several that were committed at once.

        Args:
            quorum: the members that took it.
            progress: after the step.
            decision: the outcome of its vote.
            waited: mean seconds that trainers waited for the network.
            writes: whether this member writes for the run.
            steps: how many steps were committed.
        """
        now = time.monotonic()
        seconds, self._last_step = now - self._last_step, now
        self._membership.stepped(seconds)
        self._steps += 1
        if self._steps == 1:
            gc.collect()
            gc.freeze()  # nothing older than the first step is garbage: no long collections in the middle of a step
        if not self._speaks:
            return
        speed = decision.tokens / seconds
        trainers = len(quorum.trainers)
        peaks = [member.announced.peak for member in quorum.trainers if member.announced.peak]
        self.report(step=progress.step, message="training")
        missing = self._membership.missing
        self.status.set(
            leads=writes, state="RUNNING", reason=f"going on without {missing}" if missing else "",
            step=progress.step, attempt=quorum.attempt, started=self._started,
        )  # fmt: skip
        self.metrics.add(
            Record(
                step=progress.step,
                time=time.time(),
                attempt=quorum.attempt,
                loss=decision.loss if math.isfinite(decision.loss) else None,
                learning_rate=decision.rate,
                gradient_norm=decision.gradient_norm if decision.finite else None,
                step_seconds=seconds / steps,
                tokens_per_second=speed,
                mfu=speed / sum(peaks) if peaks and len(peaks) == trainers else None,
                trainers=trainers,
                communication_seconds=waited / steps,
                skipped=None if decision.finite else True,
            ),
            leads=writes,
        )
        if (writes or quorum.rank == 0) and now - self._last_line > LOG_EVERY:
            self._last_line = now
            network = f", {waited / steps:.3f} s a step for the network" if waited else ""
            self.log(
                f"step {progress.step}: loss {decision.loss:.4f}, {speed:,.0f} tokens/s, {trainers} trainers{network}"
            )

    def evaluation(self, quorum: Quorum, progress: Progress, *, writes: bool) -> None:
        """Record the newest validation loss. writes: whether this member writes for the run."""
        mean = progress.validation_loss
        assert mean is not None
        self._last_step = time.monotonic()  # so that the next step's speed is its own
        if not self._speaks:
            return
        record = Record(step=progress.step, time=time.time(), attempt=quorum.attempt, validation_loss=mean)
        self.metrics.add(record, leads=writes)
        if writes or quorum.rank == 0:
            self.log(f"step {progress.step}: validation loss {mean:.4f}, perplexity {math.exp(min(mean, 20)):.1f}")

    def notice(self, step: int, attempt: int, seconds: float) -> None:
        """Record how many seconds after this machine's notice a checkpoint was whole."""
        self.log(f"the checkpoint of step {step} was whole {seconds:.1f} s after the notice")
        self.metrics.add(Record(step=step, time=time.time(), attempt=attempt, notice_seconds=seconds), leads=True)
        self.metrics.flush()

    def recovering(self, step: int, error: Exception, *, leads: bool) -> None:
        """Report that a member was lost.

        leads: this member says so for the run. The first trainer and the first server do, as one may be lost.
        """
        self.log(f"step {step}: a member was lost ({error}); going on with those that are left")
        self.report(message="a member was lost: forming a new group")
        self.status.set(leads=leads, state="RECOVERING", reason="a member was lost: forming a new group")

    def begin(self) -> None:
        """Time steps from now on."""
        self._last_step, self._started = time.monotonic(), time.time()
