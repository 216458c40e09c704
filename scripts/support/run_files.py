"""Read a run's files repeatedly and cheaply, for scripts.watch.

Only objects whose generation has changed are read, and only their new lines are parsed.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from pydantic import ValidationError

from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.contract.spec import ROLES, JobSpec
from trainer.runs.metrics_reader import MetricsReader
from trainer.runs.placement import Launched, Placement, placement_of
from trainer.runs.records import FINAL_STATES, MachineStatus, Record, State, Status
from trainer.runs.trials import Trial, current_trial, read_trials
from trainer.storage.base import Entry, Storage

FileModel = TypeVar("FileModel", bound=Strict)
RECENT_STEPS = 50  # speed and time left are taken over so many


class UnreadableRun(Exception):
    """This version cannot read a file of the run. The message is one line for a person."""


@dataclass(frozen=True)
class Patience:
    """The seconds without a sign of life that are normal."""

    late: float  # since a machine was last heard: three heartbeats are missing, which is worth a word
    heartbeat: float  # likewise, until it is taken for gone; on gs:// it also covers clocks that differ
    boot: float  # from the declaration of a run to the first heartbeat
    watched: float  # since the watch began: an `up` that changed no file may have started machines just now
    step: float  # between two steps, unless they take long


# Here, machines are processes. On Google Cloud a preempted machine comes back by itself within minutes.
PATIENCE = {
    "file": Patience(late=15, heartbeat=60, boot=30, watched=10, step=60),
    "gs": Patience(late=60, heartbeat=600, boot=900, watched=300, step=180),
}


@dataclass(frozen=True)
class WatchedMachine:
    """A machine's own report, and how old it is."""

    status: MachineStatus
    age: float  # seconds since the last heartbeat
    late: bool = False  # it is at work, and should have been heard by now

    @property
    def at_work(self) -> bool:
        return self.status.state not in ("finished", "failed", "stopped")


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    run: str
    now: float  # seconds since the epoch
    spec: JobSpec
    status: Status | None  # None until a machine wrote it for the declared launch
    machines: list[WatchedMachine]
    steps: list[Record]  # by step; those that a resume undid are left out
    evaluations: list[Record]  # likewise
    unreadable: int  # lines of metrics that this version does not understand
    heard: bool  # whether a machine that is at work was heard of late
    alive: bool  # heard, or declared so shortly ago that no machine can have been
    missing: list[str]  # machines by name that were never heard; where names are made by Google, nobody knows them
    named: bool  # whether names are known before machines are heard
    there: int  # machines at work that were heard of late
    quiet: float | None  # seconds without a step, told only when they are too many
    placement: Placement | None = None  # where the launch is, on Google Cloud
    trials: list[Trial] = field(default_factory=list)  # of a sweep: those that are over
    trial: "Snapshot | None" = None  # of a sweep: the one that is trained now

    @property
    def state(self) -> State:
        return self.status.state if self.status else "PROVISIONING"

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def step(self) -> int:
        """Steps done, or trials of a sweep. Metrics are often ahead of the status, unless a newer attempt went back."""
        if self.spec.sweep is not None:
            return len(self.trials)
        step, attempt = (self.status.step, self.status.attempt) if self.status else (0, 0)
        if self.steps and self.steps[-1].attempt >= attempt:
            step = max(step, self.steps[-1].step)
        return step

    @property
    def total(self) -> int:
        """All steps of the run, or all trials of a sweep."""
        return self.spec.sweep.max_trials if self.spec.sweep else self.spec.hyperparameters.steps

    @property
    def elapsed(self) -> float | None:
        """Seconds since the first step began, or None before it."""
        if self.status is None or self.status.started is None:
            return None
        return max((self.status.finished or self.now) - self.status.started, 0.0)

    @property
    def remaining(self) -> float | None:
        """Seconds that the remaining steps take at the pace of the recent ones, or None if that is not known."""
        if self.state != "RUNNING" or not self.steps:
            return None
        attempt = self.steps[-1].attempt
        recent = [r for r in self.steps[-RECENT_STEPS:] if r.attempt == attempt]
        steps = recent[-1].step - recent[0].step
        if steps < 1:
            return None
        pace = max(recent[-1].time - recent[0].time, 0.0) / steps  # evaluations and checkpoints included
        return pace * max(self.spec.hyperparameters.steps - self.step, 0)

    @property
    def speed(self) -> float | None:
        """Tokens per second over the recent steps, or None if that is not known."""
        speeds = [r.tokens_per_second for r in self.steps[-RECENT_STEPS:] if r.tokens_per_second]
        return len(speeds) / sum(1 / s for s in speeds) if speeds else None

    @property
    def mfu(self) -> float | None:
        shares = [r.mfu for r in self.steps[-RECENT_STEPS:] if r.mfu is not None]
        return sum(shares) / len(shares) if shares else None


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


@dataclass
class RunFiles:
    """The files of one run. `read` returns a new Snapshot and reads only files that have changed."""

    storage: Storage
    run: str
    clock: Callable[[], float] = time.time
    _parsed_files: dict[str, tuple[int, Strict]] = field(default_factory=dict)
    _heard: dict[str, tuple[float, float]] = field(default_factory=dict)  # heartbeat, when we first saw it
    _metrics: MetricsReader = field(init=False)
    _moved: tuple[int, float] = (0, 0.0)  # the newest step, when we first saw it
    _trial: "RunFiles | None" = None  # of a sweep: the trial that is trained now

    def __post_init__(self) -> None:
        self._metrics = MetricsReader(self.storage, self.run)

    @property
    def named(self) -> bool:
        """Return whether the spec knows the machines' names. On Google Cloud, the group of machines chooses them."""
        return not self.storage.url.startswith("gs://")

    @property
    def patience(self) -> Patience:
        return PATIENCE["file" if self.named else "gs"]

    def read(self) -> Snapshot:
        """Return the run as it is now.

        Raise FileNotFoundError if the run is not declared, UnreadableRun if another version wrote its files.
        """
        now = self.clock()
        entries = {entry.path: entry for entry in self.storage.list(paths.run(self.run))}
        job, state = paths.job(self.run), paths.status(self.run)
        if job not in entries:
            raise FileNotFoundError(job)
        spec = self._parsed(JobSpec, entries[job])
        status = self._parsed(Status, entries[state]) if state in entries else None
        if status and status.state in FINAL_STATES and status.state != "SUCCEEDED" and status.launch < spec.launch:
            status = None  # how the launch before this one ended
        machines = self._machines(entries, spec, status, now)
        self._metrics.read(entries.values())
        working = sum(m.at_work and m.age <= self.patience.heartbeat for m in machines)
        names = {m.status.name for m in machines}
        snapshot = Snapshot(
            run=self.run,
            now=now,
            spec=spec,
            status=status,
            machines=machines,
            steps=self._metrics.steps,
            evaluations=self._metrics.evaluations,
            unreadable=self._metrics.unreadable,
            heard=working > 0,
            alive=working > 0 or now - entries[job].updated < self.patience.boot,
            missing=[name for name, _ in spec.cluster.machines() if self.named and name not in names],
            named=self.named,
            there=working,
            quiet=None,
            placement=self._placement(entries, spec.launch),
        )
        if spec.sweep is not None:
            trials = read_trials(self.storage, self.run)
            number = current_trial(self.storage, self.run, spec.launch, trials)
            snapshot = replace(snapshot, trials=trials, trial=None if snapshot.final else self._now(number))
        return replace(snapshot, quiet=self._quiet(snapshot))

    def _placement(self, entries: dict[str, Entry], launch: int) -> Placement | None:
        """Return where a launch is; None for a run on this machine."""
        started, placed = (entries.get(path(self.run, launch)) for path in (paths.launch, paths.placement))
        if started is None:
            return None
        return placement_of(self._parsed(Launched, started), self._parsed(Placement, placed) if placed else None)

    def _now(self, number: int) -> Snapshot | None:
        """Return the trial with that number, or None if it is not declared yet."""
        run = paths.trial_id(self.run, number)
        if self._trial is None or self._trial.run != run:
            self._trial = RunFiles(self.storage, run, self.clock)
        try:
            return self._trial.read()
        except FileNotFoundError:
            return None

    def _quiet(self, snapshot: Snapshot) -> float | None:
        """Return for how many seconds a run has taken no step, or None if that is not unusually long."""
        if snapshot.state != "RUNNING" or not snapshot.steps:
            return None
        last = snapshot.steps[-1]
        if self._moved[0] != last.step:  # judged as heartbeats are
            self._moved = last.step, min(last.time, snapshot.now) if not self._moved[0] else snapshot.now
        quiet = snapshot.now - self._moved[1]
        return quiet if quiet > max(self.patience.step, 10 * (last.step_seconds or 0)) else None

    def _parsed(self, model: type[FileModel], entry: Entry) -> FileModel:
        """Return a file as a model. Read it only if it changed."""
        cached = self._parsed_files.get(entry.path)
        if cached and cached[0] == entry.generation:
            return cast(FileModel, cached[1])
        data, generation = self.storage.read_generation(entry.path)
        try:
            parsed = model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UnreadableRun(
                f"{entry.path}: {where}: {first['msg']}; was this run declared by another version of this project?"
            ) from None
        self._parsed_files[entry.path] = generation, parsed
        return parsed

    def _machines(
        self, entries: dict[str, Entry], spec: JobSpec, status: Status | None, now: float
    ) -> list[WatchedMachine]:
        machines = []
        for path, entry in entries.items():
            if not paths.is_machine(path, self.run):
                continue
            machine = self._parsed(MachineStatus, entry)
            beat, seen = self._heard.get(machine.name, (None, now))
            if beat != machine.heartbeat:
                # The first one is judged by its own clock, later ones by when they came: clocks may differ.
                seen = min(machine.heartbeat, now) if beat is None else now
                self._heard[machine.name] = machine.heartbeat, seen
            watched = WatchedMachine(machine, now - seen)
            machines.append(replace(watched, late=watched.at_work and watched.age > self.patience.late))
        order = {name: i for i, (name, _) in enumerate(spec.cluster.machines())}
        # Others than the declared ones are shown while they are there, and those that were there at the end of a run.
        since = now - status.updated if status and status.state in FINAL_STATES else 0.0
        present = [m for m in machines if m.status.name in order or m.age - max(since, 0.0) <= self.patience.heartbeat]
        if not self.named:  # a launch before this one had machines of other names
            declared = entries[paths.job(self.run)].updated
            present = [m for m in present if m.at_work or m.status.heartbeat >= declared]
        return sorted(
            present, key=lambda m: (ROLES.index(m.status.role), order.get(m.status.name, len(order)), m.status.name)
        )


def declared_run(storage: Storage) -> str | None:
    """Return the run that the stack declares, or None. Raise UnreadableRun if current.json does not name a run."""
    try:
        current = json.loads(storage.read(paths.CURRENT))
        return str(current["run"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UnreadableRun(f"{paths.CURRENT}: no run is named in it; `pulumi up` writes it again") from None
