"""Read what a run left in its bucket, for its report and for the trials of a sweep."""

from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean, median

from pydantic import ValidationError

from trainer.contract import paths
from trainer.contract.spec import ROLES, JobSpec
from trainer.runs import history, samples, scores
from trainer.runs.metrics_reader import Attempt, read_metrics
from trainer.runs.placement import Placement, read_placement
from trainer.runs.records import Event, MachineStatus, Record, Status
from trainer.runs.samples import Sample
from trainer.runs.scores import Scores
from trainer.runs.status import read_spec, read_status
from trainer.storage.base import Refused, Storage

RECENT = 50  # the last loss is a mean over so many steps, because the loss of one step is noisy
NEWEST_FILES = 2  # metrics files, of 256 KiB each, that are read of a run which others are only compared with
OTHERS = 20  # the newest runs, in a comparison


@dataclass(frozen=True)
class Outcome:
    """A run as its files describe it."""

    spec: JobSpec
    status: Status | None
    steps: list[Record]  # in order; steps that a resume undid are left out
    evaluations: list[Record]  # likewise
    notices: list[Record]
    attempts: list[Attempt]
    machines: list[MachineStatus]  # master first
    samples: list[Sample]
    scores: Scores | None = None
    placement: Placement | None = None  # where the launch is, on Google Cloud

    @property
    def state(self) -> str:
        return self.status.state if self.status else "PROVISIONING"

    @property
    def step(self) -> int:
        return max(self.status.step if self.status else 0, self.steps[-1].step if self.steps else 0)

    @property
    def began(self) -> float | None:
        """The earliest known moment, in seconds since the epoch."""
        times = [event.time for machine in self.machines for event in machine.history]
        times += [machine.started for machine in self.machines] + [attempt.began for attempt in self.attempts]
        return min(times, default=None)

    @property
    def ended(self) -> float | None:
        """The end of the run, or else the latest known moment, in seconds since the epoch."""
        if self.status and self.status.finished:
            return self.status.finished
        times = [machine.heartbeat for machine in self.machines] + [attempt.ended for attempt in self.attempts]
        return max(times, default=None)

    @property
    def seconds(self) -> float | None:
        """Seconds from the first step of this launch to its end; None before that step."""
        if self.status is None or self.status.started is None or self.ended is None:
            return None
        return max(self.ended - self.status.started, 0.0)

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last steps, in nats a token."""
        losses = [record.loss for record in self.steps[-RECENT:] if record.loss is not None]
        return fmean(losses) if losses else None

    @property
    def validation(self) -> float | None:
        return self.evaluations[-1].validation_loss if self.evaluations else None

    @property
    def tokens_per_second(self) -> float | None:
        """The median over the steps."""
        speeds = [record.tokens_per_second for record in self.steps if record.tokens_per_second]
        return median(speeds) if speeds else None

    @property
    def mfu(self) -> float | None:
        shares = [record.mfu for record in self.steps if record.mfu is not None]
        return median(shares) if shares else None


@dataclass(frozen=True)
class MachineCost:
    """The list price of the machines of a role, or of one machine."""

    hours: float
    dollars: float | None  # None if no price is known


def read(storage: Storage, run: str, files: int | None = None) -> Outcome:
    """Return a run's outcome so far.

    Args:
        storage: The bucket.
        run: The run's id.
        files: Read only so many of the newest metrics files, and no machines, samples or scores; None reads all.

    Raises:
        FileNotFoundError: There is no job.json.
        ValidationError: The job.json is of another version of this project.
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
        placement=_placement(storage, spec) if whole else None,
    )


def others(storage: Storage, run: str) -> list[Outcome]:
    """Return the newest other runs in the bucket that took a step, each from its newest metrics files alone.

    A machine on Google Cloud may read no other run, so it gets none.
    """
    try:
        entries = storage.list(paths.RUNS)
    except Refused:
        return []
    updated: dict[str, float] = {}
    for entry in entries:
        other = paths.run_of_status(entry.path)
        if other is not None and other != run and paths.sweep_of(other) is None:
            updated[other] = entry.updated
    outcomes = []
    for other in sorted(updated, key=lambda name: -updated[name])[:OTHERS]:
        with suppress(FileNotFoundError, ValidationError):  # its job.json is gone or of another version
            outcomes.append(read(storage, other, NEWEST_FILES))
    return [outcome for outcome in outcomes if outcome.steps]


def _placement(storage: Storage, spec: JobSpec) -> Placement | None:
    with suppress(ValueError):  # a record of another version
        return read_placement(storage, spec.run, spec.launch)
    return None


def _machines(storage: Storage, run: str) -> list[MachineStatus]:
    machines = []
    for entry in storage.list(paths.machines(run)):
        with suppress(FileNotFoundError, ValidationError):
            if paths.is_machine(entry.path, run):
                machines.append(MachineStatus.model_validate_json(storage.read(entry.path)))
    return sorted(machines, key=lambda machine: (ROLES.index(machine.role), len(machine.name), machine.name))


def cost(spec: JobSpec, machine: MachineStatus) -> MachineCost:
    """Return what a machine cost: its list price, for the time in which it sent heartbeats."""
    hours = history.seconds_present(machine) / 3600
    hardware = spec.hardware.get(machine.role)
    price = hardware.usd_per_hour if hardware else None
    return MachineCost(hours, None if price is None else price * hours)


def boots(machine: MachineStatus) -> list[tuple[float, float]]:
    """Return (start, end) of each boot of a machine, in seconds since the epoch, as far as its history goes back."""
    intervals: list[tuple[float, float]] = []
    since: float | None = None
    last = machine.history[0].time if machine.history else machine.started
    for event in machine.history or [Event(kind="started", time=machine.started)]:
        if event.kind in ("started", "back"):
            since = event.time
        elif event.kind in ("lost", "left"):
            intervals.append((last if since is None else since, event.time))
            since = None
        last = event.time
    if since is not None or not intervals:
        intervals.append((last if since is None else since, max(machine.heartbeat, last)))
    return intervals
