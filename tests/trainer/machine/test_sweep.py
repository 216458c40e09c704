"""The machine of a sweep, from trial to trial: real files and decisions, with trials that end at once."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.trainer.conftest import new_run
from tests.trainer.running import Run
from tests.trainer.runs.test_trials import RATE, declared
from trainer.contract.paths import trial_id
from trainer.contract.spec import JobSpec
from trainer.machine import suggest, sweep
from trainer.machine.supervisor import Supervisor
from trainer.machine.sweep import SweepMachine
from trainer.report.page import render_page
from trainer.runs import scores
from trainer.runs.outcome import read
from trainer.runs.records import MachineStatus, Record
from trainer.runs.scores import Baseline, Prediction, Scores
from trainer.runs.status import update_status
from trainer.runs.trials import Trial, best_trial, current_trial, read_trials, trained_spec
from trainer.storage.base import Storage, Unavailable

__all__ = ["new_run"]
Ending = Callable[[JobSpec], float | str]  # a trial's validation loss, or the reason why it fails


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the signal handlers that a machine sets, because this process is the tests' own."""
    monkeypatch.setattr(sweep, "POLL", 0.01)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class AtOnce(Supervisor):
    """A machine that reports as a real one does and trains nothing."""

    def __init__(self, storage: Storage, spec: JobSpec, ending: Ending) -> None:
        super().__init__(storage, spec, "master-0", "master", "127.0.0.1")
        self._ending = ending

    def run(self) -> int:
        run, launch = self._spec.run, self._spec.launch
        self.say(state="running", message="training", step=3)
        end = self._ending(self._spec)
        if isinstance(end, str):
            update_status(self._storage, run, launch, state="FAILED", reason=end, finished=2.0)
            self.say(state="failed", message=end)
            return 1
        steps = self._spec.hyperparameters.steps
        line = json.dumps(Record(step=steps, time=2.0, attempt=1, validation_loss=end).to_json())
        self._storage.write(f"runs/{run}/metrics/one.jsonl", f"{line}\n".encode())
        self._storage.write(f"runs/{run}/model/manifest.json", b"{}")
        update_status(self._storage, run, launch, state="SUCCEEDED", step=steps, started=1.0, finished=2.0)
        self.say(state="finished", message="the run is over")
        return 0


def rate(job: JobSpec) -> float:
    return job.hyperparameters.learning_rate


def train(run: Run, ending: Ending = rate) -> int:
    return SweepMachine(run.storage, run.spec, "master", lambda job: AtOnce(run.storage, job, ending)).run()


def sweep_of(new_run: Callable[..., Run], *params: dict[str, Any], trials: int = 3, **others: Any) -> Run:
    return new_run(sweep=declared(*params, maxTrials=trials).to_json(), **others)


def states(run: Run) -> list[str]:
    return [trial.state for trial in read_trials(run.storage, run.spec.run)]


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [("learningRate", ["1e-3", "1E-4", "0.01"]), ("microBatchSize", ["null", "4"]), ("compile", ["false", "true"])],
)
def test_category_of_a_parameter_stays_as_it_is_written(
    new_run: Callable[..., Run], name: str, values: list[str]
) -> None:
    """The trial trains with 0.001, and the next suggestion needs the text "1e-3"."""
    listed = {"parameterName": name, "type": "CATEGORICAL", "categoricalValues": values}
    run = sweep_of(new_run, listed, trials=6)
    train(run, lambda job: 1.0)
    assert states(run) == ["SUCCEEDED"] * 6
    assert {trial.parameters[name] for trial in read_trials(run.storage, run.spec.run)} == set(values)


# -- the sweep's end ---------------------------------------------------------------------------------------------------


def test_error_of_the_sweeps_master_ends_the_sweep(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep_of(new_run, RATE)
    monkeypatch.setattr(suggest, "suggest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(run)
    status = run.status()
    assert status is not None
    assert (status.state, status.reason) == ("FAILED", "master: ZeroDivisionError: division by zero")
    assert status.traceback is not None
    assert "FAILED" in run.storage.read("runs/test-run/report.html").decode()
    assert run.machine("master-0").state == "failed"


def test_failed_sweep_has_a_report_and_continues_in_the_next_launch(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE, trials=4)
    assert train(run, lambda job: rate(job) if job.run.endswith("/1") else "no memory") == 1
    assert states(run) == ["SUCCEEDED", "FAILED", "FAILED", "FAILED"]
    before = read_trials(run.storage, run.spec.run)
    page = run.storage.read("runs/test-run/report.html").decode()
    assert "3 trials in a row failed, the last one: no memory" in page
    assert train(run) == 1  # in the same launch the sweep has ended

    run.relaunch()
    asked: list[str] = []

    def now(job: JobSpec) -> float:
        asked.append(job.run)
        return rate(job)

    assert train(run, now) == 0
    assert asked == [trial_id("test-run", number) for number in (2, 3, 4)]
    after = read_trials(run.storage, run.spec.run)
    assert [trial.state for trial in after] == ["SUCCEEDED"] * 4
    assert [trial.parameters for trial in after] == [trial.parameters for trial in before]
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.launch) == ("SUCCEEDED", 4, 2)
    assert "SUCCEEDED" in run.storage.read("runs/test-run/report.html").decode()


def test_worker_of_a_sweep_waits_for_the_trial_that_the_master_declares(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE, trials=2)
    worker = SweepMachine(run.storage, run.spec, "worker", lambda job: AtOnce(run.storage, job, rate))
    assert worker._next() is None
    declared: list[str | None] = []

    def seen(job: JobSpec) -> float | str:
        found = worker._next()
        declared.append(found.run if found else None)
        return "no memory" if run.spec.launch == 1 else rate(job)

    train(run, seen)
    assert worker._next() is None
    run.relaunch()
    assert worker._next() is None  # the failed trial's job is of the launch before
    train(run, seen)
    assert declared == 2 * [trial_id("test-run", number) for number in (1, 2)]


def test_sweep_whose_trials_all_failed_is_tried_again_in_the_next_launch(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE, trials=2)
    train(run, lambda job: "no memory")
    status = run.status()
    assert status is not None
    assert status.reason == "none of 2 trials came to its end"
    run.relaunch()
    assert train(run) == 0
    assert states(run) == ["SUCCEEDED"] * 2


def test_trial_with_a_loss_that_is_not_finite_is_not_tried_again(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE, trials=2)
    table = [Trial(number=1, parameters={"learningRate": 0.1}, state="FAILED", reason="not a finite number")]
    update_status(run.storage, trial_id("test-run", 1), 1, state="SUCCEEDED")
    assert current_trial(run.storage, "test-run", 2, table) == 2
    update_status(run.storage, trial_id("test-run", 2), 1, state="FAILED")
    table.append(table[0].model_copy(update={"number": 2, "reason": "no memory"}))
    assert current_trial(run.storage, "test-run", 1, table) == 3
    assert current_trial(run.storage, "test-run", 2, table) == 2


def test_stopped_sweep_has_a_report(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE)

    def stopped(job: JobSpec) -> float:
        update_status(run.storage, "test-run", 1, state="STOPPED", reason="destroyed; its files are kept")
        return 1.0

    assert train(run, stopped) == 0
    assert "STOPPED" in run.storage.read("runs/test-run/report.html").decode()


@pytest.mark.parametrize("number", [0, 1])
def test_notice_while_a_machine_is_made_ends_the_sweep(new_run: Callable[..., Run], number: int) -> None:
    """The signal reaches the supervisor of the sweep's own machine, or of a trial's, before the sweep listens again."""
    run = sweep_of(new_run, RATE)
    asked: list[str] = []
    made: list[str] = []

    def make(job: JobSpec) -> AtOnce:
        machine = AtOnce(run.storage, job, lambda of: asked.append(of.run) or 1.0)  # type: ignore[func-returns-value]
        made.append(job.run)
        if len(made) == 1 + number:
            os.kill(os.getpid(), signal.SIGTERM)
        return machine

    assert SweepMachine(run.storage, run.spec, "master", make).run() == 0
    assert (len(made), asked) == (1 + number, [])
    assert run.machine("master-0").state == "stopped"


def test_trial_that_an_outage_ends_is_resumed(new_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = sweep_of(new_run, RATE, trials=2)
    asked: list[str] = []

    def ending(job: JobSpec) -> float:
        asked.append(job.run)
        if len(asked) == 1:
            raise Unavailable("the bucket does not answer")
        return rate(job)

    assert train(run, ending) == 0
    assert asked == [trial_id("test-run", number) for number in (1, 1, 2)]
    assert states(run) == ["SUCCEEDED"] * 2
    assert "(the bucket does not answer); trying again" in capsys.readouterr().out


# -- the sweep's folder ------------------------------------------------------------------------------------------------


def test_cost_of_a_sweep_counts_earlier_boots_of_its_machine(new_run: Callable[..., Run]) -> None:
    """A trial's machine is the sweep's: in the sweep's folder its time counts over all trials and boots."""
    run = sweep_of(new_run, RATE)
    own = "runs/test-run/machines/master-0.json"
    lost = MachineStatus(
        name="master-0", role="master", state="running", started=1000.0, heartbeat=4600.0, pid=1, before=60.0
    )
    run.storage.write(own, json.dumps(lost.to_json()).encode())
    told: list[MachineStatus] = []

    def look(job: JobSpec) -> float:
        told.append(run.machine("master-0"))
        return rate(job)

    train(run, look)
    assert [(one.state, one.message, one.step, one.before) for one in told] == [("running", "training", 3, 3660.0)] * 3
    last = run.machine("master-0")
    assert (last.state, last.before) == ("finished", 3660.0)
    assert [event.kind for event in last.history] == ["lost", "back", "left"]
    page = run.storage.read("runs/test-run/report.html").decode()
    assert "1.02" in page  # these hours include the boot that was lost
    of_trial = read(run.storage, trial_id("test-run", 2)).machines
    assert [machine.before for machine in of_trial] == [0.0]


def test_scores_of_a_sweep_are_those_of_its_best_trial(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE)

    def scored(job: JobSpec) -> float:
        found = Scores(
            run=job.run, task="questions", split="test", examples=1, metrics={"f1": rate(job)},
            baseline=Baseline(name="none", metrics={}),
        )  # fmt: skip
        answer = Prediction(prompt=job.run, expected="a", predicted="b")
        scores.write(run.storage, found, [answer])
        return rate(job)

    train(run, scored)
    best = best_trial(declared(RATE), read_trials(run.storage, "test-run"))
    assert best is not None
    found = scores.read(run.storage, "test-run")
    assert found is not None
    assert (found.run, found.metrics) == ("test-run", {"f1": best.parameters["learningRate"]})
    (line,) = run.storage.read("runs/test-run/predictions.jsonl").decode().splitlines()
    assert json.loads(line)["prompt"] == trial_id("test-run", best.number)


def test_report_of_a_sweep_draws_a_line_for_each_trial(new_run: Callable[..., Run]) -> None:
    run = sweep_of(new_run, RATE)
    train(run)
    page = render_page(run.storage, "test-run")
    plot = page.partition("Each trial's parameters and its value")[2].partition("</svg>")[0]
    assert plot.count("<polyline") == 3
    assert plot.count('class="best"') == 1


def test_trained_spec_of_a_sweep_has_the_best_trials_hyperparameters(new_run: Callable[..., Run]) -> None:
    length = {"parameterName": "sequenceLength", "type": "DISCRETE", "discreteValues": [8, 16]}
    run = sweep_of(new_run, length)
    assert trained_spec(run.storage, run.spec).hyperparameters.sequence_length == 32  # no trial is done
    train(run, lambda job: float(job.hyperparameters.sequence_length))
    assert trained_spec(run.storage, run.spec).hyperparameters.sequence_length == 8
