"""A machine of a sweep: it goes from trial to trial, together with the other machines.

The master suggests, and writes each trial's job.json; every machine then takes part in that trial as in any run, by
trainer/machine/supervisor.py. The machine stays, its computing process is another one for each trial.
"""

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from trainer.contract import paths, search_space
from trainer.contract.settings import written
from trainer.contract.spec import JobSpec
from trainer.machine import suggest
from trainer.machine.supervisor import Supervisor
from trainer.runs import outcome, scores
from trainer.runs.records import Status
from trainer.runs.status import Fenced, is_over, read_spec, update_status
from trainer.runs.trials import (
    Trial,
    best_trial,
    current_trial,
    early_stop_reason,
    metric_value,
    read_trials,
    write_trials,
)
from trainer.storage.base import Conflict, Storage, StorageError

POLL = 0.5  # seconds between two reads of the next trial
LAST_LINES = 40  # of a traceback
# Heartbeats between two reads of a trial that may be stopped early, and the most seconds.
LOOKS, LONGEST_LOOK = 5.0, 30.0
AWAY = (StorageError, OSError)


class SweepMachine:
    """A machine of a sweep, with the interface of a supervisor (google_vm.Supervised)."""

    def __init__(self, storage: Storage, spec: JobSpec, role: str, make: "Callable[[JobSpec], Supervisor]") -> None:
        """make: returns the supervisor of this machine for a run."""
        assert spec.sweep is not None
        self._storage, self._spec, self._sweep, self._master = storage, spec, spec.sweep, role == "master"
        self._make = make
        self._told = threading.Event()
        self._why = ""
        self._machine = make(spec)  # which reports this machine in the sweep's own folder
        self._own = self._machine
        self._listen()

    # -- the interface of a supervisor --------------------------------------------------------------------------------

    @property
    def grace(self) -> float:
        return self._own.grace

    @grace.setter
    def grace(self, seconds: float) -> None:
        self._own.grace = seconds

    @property
    def heartbeat(self) -> float:
        return self._own.heartbeat

    @heartbeat.setter
    def heartbeat(self, seconds: float) -> None:
        self._own.heartbeat = seconds

    def leave(self, why: str) -> None:
        self._why = self._why or why
        self._told.set()
        self._own.leave(why)  # for its history
        self._machine.leave(why)

    def told_to_leave(self, timeout: float) -> bool:
        return self._told.wait(timeout)

    def note(self, line: str) -> None:
        self._machine.note(line)

    def over(self) -> Status | None:
        """Return the status if the sweep is over; None also while the bucket does not answer."""
        try:
            return is_over(self._storage, self._spec.run, self._spec.launch)
        except AWAY:
            return None

    def _listen(self) -> None:
        """Take the signals back: each new supervisor takes them for itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.leave("asked to leave"))
        if self._machine.told_to_leave(0):  # by a signal since it took them
            self.leave("asked to leave")

    # -- from trial to trial ---------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until the sweep is over or this machine must leave, and return the exit code."""
        self._own.begin()
        try:
            over = self._from_trial_to_trial()
        except Exception as error:  # whatever it is: no machine must wait for a sweep that has ended
            self._fail(error)
            raise
        if self._told.is_set():
            self._own.say(state="stopped", message=self._why)
        else:
            self._own.say(state="finished", message="the sweep is over")
        if over is None or not self._master:
            return 0
        self._own.write_report()  # however it ended, also on a machine that became master late
        return 1 if over.state == "FAILED" and not self._told.is_set() else 0

    def _from_trial_to_trial(self) -> Status | None:
        """Take part in trials until the sweep is over or this machine must leave. Return the status if it is over."""
        last_report = 0.0
        while (over := self.over()) is None and not self._told.is_set():
            try:
                trial = self._next()
                if trial is not None:
                    self._take_part(trial)
                    continue
            except AWAY as error:
                self.note(f"the sweep's files cannot be read or written ({error}); trying again")
            except Fenced as error:
                self.note(f"the sweep's status cannot be written: {error}")
            if time.monotonic() > last_report + self.heartbeat:
                last_report = time.monotonic()
                self._own.say(state="running", message="waiting for the next trial")
            self._told.wait(POLL)
        return over

    def _fail(self, error: Exception) -> None:
        """Report an error of this program. A worker's ends itself alone; the master's ends the sweep."""
        reason = f"{type(error).__name__}: {error}"[:500]
        self._own.say(state="failed", message=reason, trainer_pid=None)
        if not self._master:
            return
        lines = traceback.format_exc().splitlines()[-LAST_LINES:]
        with suppress(*AWAY, Fenced):
            update_status(
                self._storage, self._spec.run, self._spec.launch,
                state="FAILED", reason=f"master: {reason}", traceback=lines, finished=time.time(),
            )  # fmt: skip
            self._own.write_report()

    def _next(self) -> JobSpec | None:
        """Return the trial to train now; None while the master has not decided, or once the sweep has ended."""
        run = self._spec.run
        self._spec = read_spec(self._storage, run)  # `up` may have changed the number of machines, or the launch
        trials = read_trials(self._storage, run)
        number = current_trial(self._storage, run, self._spec.launch, trials)
        job = self._job(number)
        if not self._master:
            if job is None or job.launch != self._spec.launch:  # the master has not declared it in this launch
                return None
            return None if is_over(self._storage, job.run, job.launch) else job
        if job is not None and (status := is_over(self._storage, job.run, self._spec.launch)):
            self._record(trials, number, job, status)
            return None
        if (reason := self._failure(trials, number)) is not None:
            update_status(self._storage, run, self._spec.launch, state="FAILED", reason=reason, finished=time.time())
            self.note(f"the sweep has failed: {reason}")
            return None
        if number > self._sweep.max_trials:
            self._finish(trials)
            return None
        job = self._declare(trials, number, job)
        best = best_trial(self._sweep, trials)
        update_status(
            self._storage, run, self._spec.launch, state="RUNNING", step=len(trials), started=time.time(),
            reason=f"trial {number} of {self._sweep.max_trials}"
            + (f", best so far {best.value:.4f} (trial {best.number})" if best and best.value is not None else ""),
        )  # fmt: skip
        return job

    def _job(self, number: int) -> JobSpec | None:
        try:
            return read_spec(self._storage, paths.trial_id(self._spec.run, number))
        except FileNotFoundError:
            return None

    def _declare(self, trials: list[Trial], number: int, job: JobSpec | None) -> JobSpec:
        """Write the job.json of a new trial, or of one whose settings `up` has changed, and return it."""
        if job is None:
            parameters = suggest.suggest(self._sweep, self._spec.hyperparameters.seed, trials)
            self.note(f"trial {number} of {self._sweep.max_trials}: {_words(parameters)}")
            new = suggest.job_of(self._spec, number, parameters)
            # As suggested. In the job they are as they are used, where a category "1e-3" is a number.
            self._storage.write(paths.parameters(new.run), json.dumps(parameters).encode())
        else:
            new = self._renewed(job)
        if new != job:
            self._storage.write(paths.job(new.run), json.dumps(new.to_json(), indent=2).encode())
        return new

    def _renewed(self, job: JobSpec) -> JobSpec:
        """Return a trial's job with the settings that the stack may change during a run."""
        keys = ("launch", "cluster", "evaluation", "checkpoints", "hardware")
        return job.model_copy(update={key: getattr(self._spec, key) for key in keys})

    def _take_part(self, job: JobSpec) -> None:
        machine = self._make(job)
        machine.sweep = self._own
        machine.grace, machine.heartbeat = self.grace, self.heartbeat
        self._machine = machine
        self._listen()
        if self._told.is_set():  # while it was made
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(job, done), daemon=True)
        if self._master:
            watcher.start()
        try:
            machine.run()
        finally:
            done.set()
            self._machine = self._own

    # -- what the master decides -----------------------------------------------------------------------------------

    def _watch(self, job: JobSpec, done: threading.Event) -> None:
        """While a trial is trained, give it the settings that `up` changes, and stop it early if it is bad."""
        before: list[outcome.Outcome] | None = None
        while not done.wait(min(LOOKS * self.heartbeat, LONGEST_LOOK)):
            with suppress(*AWAY, ValidationError, Conflict, Fenced):
                self._spec = read_spec(self._storage, self._spec.run)
                if (new := self._renewed(job)) != job:
                    self._storage.write(paths.job(job.run), json.dumps(new.to_json(), indent=2).encode())
                    job = new
                if not self._sweep.enable_trial_early_stopping:
                    continue
                if before is None:
                    ended = read_trials(self._storage, self._spec.run)
                    whole = [
                        paths.trial_id(self._spec.run, trial.number) for trial in ended if trial.state == "SUCCEEDED"
                    ]
                    before = [outcome.read(self._storage, run) for run in whole]
                if reason := early_stop_reason(self._sweep, outcome.read(self._storage, job.run), before):
                    self.note(reason)
                    update_status(
                        self._storage, job.run, job.launch, state="STOPPED", reason=reason, finished=time.time()
                    )

    def _record(self, trials: list[Trial], number: int, job: JobSpec, status: Status) -> None:
        """Add a trial that is over to the table."""
        trial_outcome = outcome.read(self._storage, job.run)
        value, state = metric_value(self._sweep, trial_outcome), status.state
        assert state in ("SUCCEEDED", "FAILED", "STOPPED")
        reason = status.reason
        if state == "SUCCEEDED" and value is None:
            state, reason = "FAILED", f"its {self._sweep.hyperparameter_metric_tag} is not a finite number"
        parameters = json.loads(self._storage.read(paths.parameters(job.run)))
        trial = Trial(
            number=number,
            parameters=parameters,
            state=state,
            value=value,
            step=trial_outcome.step,
            launch=status.launch,
            reason=reason,
        )
        write_trials(self._storage, self._spec.run, [*trials[: number - 1], trial, *trials[number:]])
        shown = "no value" if value is None else f"{self._sweep.hyperparameter_metric_tag} {value:.4f}"
        self.note(f"trial {number} of {self._sweep.max_trials} {state}: {shown} {reason}".rstrip())

    def _failure(self, trials: list[Trial], number: int) -> str | None:
        """Return why the sweep fails: the last trials of this launch all failed, or every trial of all launches did."""
        last = [trial for trial in trials if trial.launch == self._spec.launch][-suggest.FAILURES :]
        if len(last) == suggest.FAILURES and all(trial.state == "FAILED" for trial in last):
            return f"{suggest.FAILURES} trials in a row failed, the last one: {last[-1].reason}"
        if number > self._sweep.max_trials and best_trial(self._sweep, trials) is None:
            return f"none of {len(trials)} trials came to its end"
        return None

    def _finish(self, trials: list[Trial]) -> None:
        """Copy the best trial's model into the sweep's folder, its manifest last, and end the sweep."""
        best = best_trial(self._sweep, trials)
        assert best is not None
        run, source = self._spec.run, f"{paths.model(paths.trial_id(self._spec.run, best.number))}/"
        names = sorted(entry.path.removeprefix(source) for entry in self._storage.list(source.rstrip("/")))
        with TemporaryDirectory(prefix="model-") as folder:
            for name in [*(name for name in names if name != paths.MANIFEST), paths.MANIFEST]:
                copy = Path(folder) / "file"
                self._storage.download(source + name, copy)
                self._storage.upload(copy, paths.model_file(run, name))
                copy.unlink()
        self._copy_scores(run, paths.trial_id(run, best.number))
        update_status(
            self._storage, run, self._spec.launch, state="SUCCEEDED", step=len(trials), finished=time.time(),
            reason=f"best: trial {best.number}, {self._sweep.hyperparameter_metric_tag} {best.value:.4f},"
            f" {_words(best.parameters)}",
        )  # fmt: skip
        self.note(f"finished: trial {best.number} is the best, its model is at {self._storage.url}/{paths.model(run)}")

    def _copy_scores(self, run: str, trial: str) -> None:
        """Copy the best trial's evaluation.json and predictions.jsonl, if it was evaluated."""
        trial_scores = scores.read(self._storage, trial)
        if trial_scores is None:
            return
        predictions = []
        with suppress(FileNotFoundError):  # text has none
            lines = self._storage.read(paths.predictions(trial)).splitlines()
            predictions = [scores.Prediction.model_validate_json(line) for line in lines]
        scores.write(self._storage, trial_scores.model_copy(update={"run": run}), predictions)


def _words(parameters: dict[str, search_space.ParameterValue]) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in parameters.items())
