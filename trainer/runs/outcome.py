"""What a run left in its bucket, read back for its report. No torch here."""

from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, median

from pydantic import ValidationError

from trainer.contract import paths
from trainer.contract.spec import JobSpec, Role
from trainer.runs import history, samples, scores
from trainer.runs.metrics_reader import Attempt, read_metrics
from trainer.runs.records import Event, MachineStatus, Record, Status
from trainer.runs.samples import Sample
from trainer.runs.scores import Scores
from trainer.runs.status import read_spec, read_status
from trainer.storage.base import Storage

ROLES: tuple[Role, ...] = ("master", "worker", "ps")
RECENT = 50  # steps: the last loss is a mean over so many, as one step's is noise
NEWEST_FILES = 2  # of a run that is only compared with: metrics come in files of 256 KiB
OTHERS = 20  # runs in a comparison, the newest


@dataclass(frozen=True)
class Outcome:
    """A run as its files tell it."""

    spec: JobSpec
    status: Status | None
    steps: list[Record]  # by step; those that a resume undid are left out
    evaluations: list[Record]  # likewise
    notices: list[Record]
    attempts: list[Attempt]
    machines: list[MachineStatus]  # master first
    samples: list[Sample]
    scores: Scores | None = None

    @property
    def state(self) -> str:
        return self.status.state if self.status else "PROVISIONING"

    @property
    def step(self) -> int:
        return max(self.status.step if self.status else 0, self.steps[-1].step if self.steps else 0)

    @property
    def began(self) -> float | None:
        """The earliest moment that is known."""
        known = [event.time for machine in self.machines for event in machine.history]
        known += [machine.started for machine in self.machines] + [attempt.began for attempt in self.attempts]
        return min(known, default=None)

    @property
    def ended(self) -> float | None:
        """The latest."""
        if self.status and self.status.finished:
            return self.status.finished
        known = [machine.heartbeat for machine in self.machines] + [attempt.ended for attempt in self.attempts]
        return max(known, default=None)

    @property
    def seconds(self) -> float | None:
        """From the first step of this launch to its end, None before."""
        if self.status is None or self.status.started is None or self.ended is None:
            return None
        return max(self.ended - self.status.started, 0.0)

    @property
    def loss(self) -> float | None:
        """Mean over the last steps, in nats a token."""
        known = [record.loss for record in self.steps[-RECENT:] if record.loss is not None]
        return fmean(known) if known else None

    @property
    def validation(self) -> float | None:
        return self.evaluations[-1].validation_loss if self.evaluations else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median step's."""
        known = [record.tokens_per_second for record in self.steps if record.tokens_per_second]
        return median(known) if known else None

    @property
    def mfu(self) -> float | None:
        known = [record.mfu for record in self.steps if record.mfu is not None]
        return median(known) if known else None


@dataclass(frozen=True)
class Cost:
    """What a role's machines, or one machine, cost by the list; without a price, dollars is None."""

    hours: float
    dollars: float | None


def read(storage: Storage, run: str, files: int | None = None) -> Outcome:
    """A run; with `files`, no machines, samples and scores, and only so many of its newest files of metrics.

    Raises FileNotFoundError if nothing declares it, ValidationError for another version's job.json.
    """
    spec, status = read_spec(storage, run), read_status(storage, run)
    metrics = read_metrics(storage, run, files)
    whole = files is None
    return Outcome(
        spec=spec,
        status=status,
        steps=metrics.steps,
        evaluations=metrics.evaluations,
        notices=metrics.notices,
        attempts=metrics.attempts,
        machines=_machines(storage, run) if whole else [],
        samples=samples.read(storage, run) if whole else [],
        scores=scores.read(storage, run) if whole else None,
    )


def others(storage: Storage, run: str) -> list[Outcome]:
    """The newest other runs in the bucket that left anything, each by its newest files."""
    updated = {}
    for entry in storage.list(paths.RUNS):
        other = paths.run_of_status(entry.path)
        if other not in (None, run) and paths.sweep_of(other) is None:
            updated[other] = entry.updated
    found = []
    for other in sorted(updated, key=lambda name: -updated[name])[:OTHERS]:
        with suppress(FileNotFoundError, ValidationError):  # of another version
            found.append(read(storage, other, NEWEST_FILES))
    return [outcome for outcome in found if outcome.steps]


def _machines(storage: Storage, run: str) -> list[MachineStatus]:
    found = []
    for entry in storage.list(paths.machines(run)):
        with suppress(FileNotFoundError, ValidationError):
            found.append(MachineStatus.model_validate_json(storage.read(entry.path)))
    return sorted(found, key=lambda machine: (ROLES.index(machine.role), len(machine.name), machine.name))


def cost(spec: JobSpec, machine: MachineStatus) -> Cost:
    """List price times the time for which a machine was heard."""
    hours = history.present(machine) / 3600
    hardware = spec.hardware.get(machine.role)
    price = hardware.usd_per_hour if hardware else None
    return Cost(hours, None if price is None else price * hours)


def stays(machine: MachineStatus) -> list[tuple[float, float]]:
    """(from, to) of each boot of a machine: when it was there, as far as its history goes back."""
    found: list[tuple[float, float]] = []
    since: float | None = None
    last = machine.history[0].time if machine.history else machine.started
    for event in machine.history or [Event(kind="started", time=machine.started)]:
        if event.kind in ("started", "back"):
            since = event.time
        elif event.kind in ("lost", "left"):
            found.append((last if since is None else since, event.time))
            since = None
        last = event.time
    if since is not None or not found:
        found.append((last if since is None else since, max(machine.heartbeat, last)))
    return found
