"""Keep the trials of a sweep that are over, in sweep.json; decide which trial is next and which is the best.

A trial is a run of its own, `<run>/trials/<n>`, with its own job.json, metrics, checkpoints and model. Trial n is drawn
by a sampler that is seeded by hash(seed, n) and knows the trials before it (trainer/machine/suggest.py): the same
history gives the same suggestion, on any machine and after any restart.
"""

import json
import math
from statistics import fmean, median
from typing import Literal

from pydantic import TypeAdapter

from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.contract.search_space import ParameterValue, applied
from trainer.contract.spec import JobSpec
from trainer.contract.sweep_options import Sweep
from trainer.runs.outcome import Outcome
from trainer.runs.status import read_status
from trainer.storage.base import Storage

LEAST_TRIALS = 3  # finished trials that early stopping needs to compare with
LAST_STEPS = 20  # steps over which the metric `loss` is a mean


class Trial(Strict):
    """A trial that is over."""

    number: int  # from 1
    parameters: dict[str, ParameterValue]  # by parameterName
    state: Literal["SUCCEEDED", "FAILED", "STOPPED"]  # STOPPED: early, by early_stop_reason()
    value: float | None = None  # of the metric; None if it has no finite value
    step: int = 0
    launch: int = 1
    reason: str = ""


TABLE = TypeAdapter(list[Trial])


def read_trials(storage: Storage, run: str) -> list[Trial]:
    """Return the trials that are over, in order."""
    try:
        return TABLE.validate_json(storage.read(paths.sweep(run)))
    except FileNotFoundError:
        return []


def write_trials(storage: Storage, run: str, trials: list[Trial]) -> None:
    body = json.dumps([trial.to_json() for trial in trials], indent=1)
    storage.write(paths.sweep(run), body.encode())


def current_trial(storage: Storage, run: str, launch: int, trials: list[Trial]) -> int:
    """Return the number of the trial to train now.

    That is a trial that failed in an earlier launch, which is tried again, or else the next one. A trial that was
    trained to its end, with a metric that is not a number, is not tried again: it would end so again.
    """
    for trial in trials:
        if trial.state == "FAILED" and trial.launch < launch:
            status = read_status(storage, paths.trial_id(run, trial.number))
            if status is None or (status.state, status.launch) != ("SUCCEEDED", trial.launch):
                return trial.number
    return len(trials) + 1


def trained_spec(storage: Storage, spec: JobSpec) -> JobSpec:
    """Return a run as its model was trained: a sweep with the hyperparameters of its best trial."""
    best = best_trial(spec.sweep, read_trials(storage, spec.run)) if spec.sweep else None
    if best is None:
        return spec
    return spec.model_copy(update={"hyperparameters": applied(spec.hyperparameters, best.parameters)})


def best_trial(sweep: Sweep, trials: list[Trial]) -> Trial | None:
    """Return the best of the trials that were trained to their end; None without any."""
    whole = [trial for trial in trials if trial.state == "SUCCEEDED" and trial.value is not None]
    return min(whole, key=lambda trial: _worse(sweep, trial.value), default=None)


def _worse(sweep: Sweep, value: float | None) -> float:
    """Return a number that grows as the value of the metric gets worse."""
    assert value is not None
    return value if sweep.goal == "MINIMIZE" else -value


def metric_value(sweep: Sweep, outcome: Outcome) -> float | None:
    """Return the metric of a trial at the last step that it took; None if it has no finite value."""
    if sweep.hyperparameter_metric_tag == "validationLoss":
        value = outcome.evaluations[-1].validation_loss if outcome.evaluations else None
    else:
        losses = [record.loss for record in outcome.steps[-LAST_STEPS:]]
        value = None if not losses or None in losses else fmean(loss for loss in losses if loss is not None)
    return value if value is not None and math.isfinite(value) else None


def early_stop_reason(sweep: Sweep, now: Outcome, before: list[Outcome]) -> str | None:
    """Return why a trial should be stopped early, None if it should not.

    It should be if its validation loss is worse than the median of the trials before it at the same step. Worse is
    higher, or lower where the goal is MAXIMIZE.
    """
    if not now.evaluations:
        return None
    step, value = now.evaluations[-1].step, now.evaluations[-1].validation_loss
    others = [record.validation_loss for trial in before for record in trial.evaluations if record.step == step]
    other_values = [other for other in others if other is not None]
    if value is None or len(other_values) < LEAST_TRIALS or _worse(sweep, value) <= _worse(sweep, median(other_values)):
        return None
    return (
        f"stopped early: validation loss {value:.4f} at step {step:,}, and the median of {len(other_values)} trials is"
        f" {median(other_values):.4f}"
    )
