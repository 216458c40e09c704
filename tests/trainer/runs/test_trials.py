"""Sweeps: the suggestions, and small real sweeps up to the best trial's model."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load

from tests.trainer.conftest import new_run
from tests.trainer.running import Run
from trainer.contract import search_space
from trainer.contract.options import Hyperparameters
from trainer.contract.paths import trial_id
from trainer.contract.sweep_options import Sweep
from trainer.machine import suggest
from trainer.runs.outcome import Outcome
from trainer.runs.records import Record
from trainer.runs.status import read_status
from trainer.runs.trials import Trial, best_trial, early_stop_reason, read_trials, write_trials
from trainer.storage.manifest import verify_manifest

__all__ = ["new_run"]
RATE = {
    "parameterName": "learningRate", "type": "DOUBLE", "minValue": 1e-5, "maxValue": 1e-1,
    "scaleType": "UNIT_LOG_SCALE",
}  # fmt: skip
BATCH = {"parameterName": "batchSize", "type": "DISCRETE", "discreteValues": [4, 8]}
OPTIMIZER = {"parameterName": "optimizer", "type": "CATEGORICAL", "categoricalValues": ["adamw", "sgd"]}


def declared(*params: dict[str, Any], **others: Any) -> Sweep:
    return Sweep.model_validate({"params": list(params), "maxTrials": 4, **others})


def history(of: Sweep, count: int, value: Callable[[dict[str, Any]], float]) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(1, count + 1):
        parameters = suggest.suggest(of, 7, trials)
        trials.append(Trial(number=number, parameters=parameters, state="SUCCEEDED", value=value(parameters)))
    return trials


# -- suggestions -------------------------------------------------------------------------------------------------------


def test_suggestion_is_the_same_for_the_same_history() -> None:
    of = declared(RATE, BATCH, OPTIMIZER)
    first = history(of, 8, lambda p: abs(p["learningRate"] - 0.003))
    assert first == history(of, 8, lambda p: abs(p["learningRate"] - 0.003))
    assert first[7] != history(of, 8, lambda p: -p["learningRate"])[7]  # the suggestion depends on earlier results
    assert len({trial.parameters["learningRate"] for trial in first}) == 8
    for trial in first:
        made = search_space.applied(Hyperparameters(), trial.parameters)
        assert 1e-5 <= made.learning_rate <= 1e-1
        assert made.batch_size in (4, 8)


def test_suggestions_approach_the_best_value() -> None:
    trials = history(declared(RATE), 30, lambda p: abs(math.log10(p["learningRate"]) + 3))
    assert min(trial.value or 9 for trial in trials[15:]) < 0.15


def test_suggestions_on_a_reverse_logarithmic_scale_are_dense_at_its_upper_end() -> None:
    ends = {"parameterName": "beta2", "minValue": 0.001, "maxValue": 0.999, "scaleType": "UNIT_REVERSE_LOG_SCALE"}
    of = declared({**RATE, **ends})
    drawn = [float(trial.parameters["beta2"]) for trial in history(of, 12, lambda p: 1.0)]
    assert all(0.001 <= value <= 0.999 for value in drawn)
    assert sum(value > 0.9 for value in drawn) > 6


def test_categories_are_read_as_the_hyperparameters_type() -> None:
    made = search_space.applied(
        Hyperparameters(), {"compile": "true", "batchSize": "16", "optimizer": "sgd", "steps": 20.0}
    )
    assert (made.compile, made.batch_size, made.optimizer, made.steps) == (True, 16, "sgd", 20)


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ([{**RATE, "parameterName": "learning_rate"}], "did you mean learningRate?"),
        ([RATE, RATE], "learningRate stands twice; remove one"),
        ([{**RATE, "maxValue": 1e-5}], "nothing to vary"),
        ([{**RATE, "minValue": 0}], "a logarithmic scale needs more than 0"),
        ([{**RATE, "maxValue": 20}], "learningRate cannot be 20"),
        ([{**RATE, "minValue": None}], "minValue: missing"),
        ([{**BATCH, "discreteValues": [8]}], "leaves nothing to vary"),
        ([{**BATCH, "discreteValues": [1, 8]}], "batchSize 1.0 is less than the 2 trainers"),
        ([{**OPTIMIZER, "categoricalValues": ["adamw", "adam"]}], "optimizer cannot be adam: must be 'adamw' or 'sgd'"),
        (
            [{**RATE, "parameterName": "batchSize", "minValue": 2, "maxValue": 8}],
            "type: found DOUBLE, and batchSize takes",
        ),
        (
            [{**RATE, "parameterName": "compile", "minValue": 0, "maxValue": 1, "scaleType": "UNIT_LINEAR_SCALE"}],
            "found DOUBLE",
        ),
        ([], "sweep.params: found none, so there is nothing to vary; write for example [{parameterName: "),
        ([{**RATE, "parameterName": "seed"}], "seed, which is no hyperparameter that can be varied"),
    ],
)
def test_search_space_mistakes_are_one_line_with_their_key(params: list[dict[str, Any]], line: str) -> None:
    (found,) = search_space.problems(declared(*params), Hyperparameters(), trainers=2, positions=1024)
    assert found.startswith("sweep.params")
    assert line in found


def test_search_space_without_mistakes_has_no_problems() -> None:
    assert search_space.problems(declared(RATE, BATCH, OPTIMIZER), Hyperparameters(), trainers=2, positions=1024) == []


def outcome(*losses: float) -> Outcome:
    records = [Record(step=10 * n, time=n, attempt=1, validation_loss=loss) for n, loss in enumerate(losses, start=1)]
    return Outcome(None, None, [], records, [], [], [], [])  # type: ignore[arg-type]


def test_trial_worse_than_the_median_is_stopped() -> None:
    of, before = (
        declared(RATE, enableTrialEarlyStopping=True),
        [outcome(3.0, 2.0), outcome(3.5, 2.5), outcome(4.0, 3.0)],
    )
    assert early_stop_reason(of, outcome(3.4), before) is None
    assert early_stop_reason(of, outcome(3.6), before[:2]) is None  # two outcomes are too few for a decision
    reason = early_stop_reason(of, outcome(3.6), before)
    assert reason == "stopped early: validation loss 3.6000 at step 10, and the median of 3 trials is 3.5000"
    assert early_stop_reason(of, outcome(3.6, 2.4), before) is None  # the trial has caught up
    highest = of.model_copy(update={"goal": "MAXIMIZE"})
    assert early_stop_reason(highest, outcome(3.6), before) is None
    assert early_stop_reason(highest, outcome(3.4), before) is not None


# -- real sweeps -------------------------------------------------------------------------------------------------------

SMALL = {
    "hyperparameters": {"steps": 40, "warmupSteps": 5},
    "evaluation": {"every": 20},
    "checkpoints": {"every": 20},
}


@pytest.mark.slow
def test_sweep_whose_machines_are_killed_ends_with_the_best_trials_model(new_run: Callable[..., Run]) -> None:
    run = new_run(**SMALL, cluster={"workers": 1}, sweep=declared(RATE, maxTrials=2).to_json())
    run.start()
    run.until(lambda: (s := run.status()) and s.step >= 1, "the first trial's end")
    second = trial_id(run.spec.run, 2)
    run.until(lambda: (s := read_status(run.storage, second)) and s.step >= 5, "steps of the second trial")
    for name in list(run.machines):  # every machine is lost and comes back
        run.kill(name)
    assert run.start().wait().state == "SUCCEEDED"

    trials = read_trials(run.storage, run.spec.run)
    assert [(trial.number, trial.state, trial.step) for trial in trials] == [(n, "SUCCEEDED", 40) for n in (1, 2)]
    of = run.spec.sweep
    assert of is not None
    for number, trial in enumerate(trials):  # nothing depends on the lost machines
        assert trial.parameters == suggest.suggest(of, run.spec.hyperparameters.seed, trials[:number])
    best = best_trial(of, trials)
    assert best is not None
    assert best.value == min(trial.value or 9 for trial in trials)
    status = run.status()
    assert status is not None
    assert status.reason.startswith(f"best: trial {best.number}, validationLoss {best.value:.4f}, learningRate ")
    model = run.storage.local_path(f"runs/{run.spec.run}/model")
    assert model is not None
    assert verify_manifest(model) == []
    of_trial = run.storage.read(f"runs/{trial_id(run.spec.run, best.number)}/model/model.safetensors")
    assert load(of_trial).keys() == load((model / "model.safetensors").read_bytes()).keys()
    assert of_trial == (model / "model.safetensors").read_bytes()
    page = f"runs/{run.spec.run}/report.html"
    assert [entry.path for entry in run.storage.list(page.rpartition("/")[0]) if entry.path == page], run.machine(
        "master-0"
    )
    assert b"Trials" in run.storage.read(page)


@pytest.mark.slow
def test_sweep_with_three_failed_trials_in_a_row_fails(new_run: Callable[..., Run]) -> None:
    """The data is gone, which no suggestion could mend."""
    run = new_run(**SMALL, sweep=declared(RATE, maxTrials=9).to_json())
    run.storage.delete(run.spec.data.path)
    assert run.start().wait().state == "FAILED"
    trials = read_trials(run.storage, run.spec.run)
    assert [trial.state for trial in trials] == ["FAILED"] * 3
    status = run.status()
    assert status is not None
    assert status.reason.startswith("3 trials in a row failed, the last one: master-0: ")


@pytest.mark.slow
def test_hopeless_trial_is_stopped_early(new_run: Callable[..., Run]) -> None:
    of = declared(RATE, enableTrialEarlyStopping=True, maxTrials=4)
    run = new_run(**{**SMALL, "hyperparameters": {"steps": 100_000, "warmupSteps": 5}}, sweep=of.to_json())
    done: list[Trial] = []
    for number in (1, 2, 3):  # three trials were perfect
        parameters = suggest.suggest(of, run.spec.hyperparameters.seed, done)
        job = suggest.job_of(run.spec, number, parameters)
        run.storage.write(f"runs/{job.run}/job.json", json.dumps(job.to_json()).encode())
        # For all steps: a fast trial is far on when it is looked at first.
        lines = [
            Record(step=step, time=step, attempt=1, validation_loss=0.001).to_json() for step in range(20, 100_001, 20)
        ]
        run.storage.write(
            f"runs/{job.run}/metrics/x.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode()
        )
        done.append(Trial(number=number, parameters=parameters, state="SUCCEEDED", value=0.001))
    write_trials(run.storage, run.spec.run, done)
    run.start()
    run.until(lambda: len(read_trials(run.storage, run.spec.run)) == 4, "the fourth trial's end")
    stopped = read_trials(run.storage, run.spec.run)[3]
    assert stopped.state == "STOPPED"
    assert stopped.reason.startswith("stopped early: validation loss ")
    run.end()
