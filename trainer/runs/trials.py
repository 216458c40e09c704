"""A sweep: what its trials are, which is tried next, which is the best. No torch; Optuna only where one is suggested.

A trial is a run of its own, `<run>/trials/<n>`, with its own job.json, metrics, checkpoints and model. What became of
the trials stands in runs/<run>/sweep.json, in their order. Trial n is drawn by a sampler that is seeded by
hash(seed, n) and was told of the trials before it: the same history gives the same suggestion, on any machine and after
any restart.
"""

import json
import math
from statistics import fmean, median
from typing import Literal

from pydantic import TypeAdapter

from trainer.contract import paths
from trainer.contract.search_space import ParameterValue, applied
from trainer.contract.spec import JobSpec, Strict, Sweep
from trainer.runs.outcome import Outcome
from trainer.runs.status import read_status
from trainer.storage.base import Storage

JUDGES = 3  # finished trials that early stopping asks for
LAST = 20  # steps over which the metric `loss` is a mean


class Trial(Strict):
    """A trial that is over."""

    number: int  # from 1
    parameters: dict[str, ParameterValue]  # by parameterName
    state: Literal["SUCCEEDED", "FAILED", "STOPPED"]  # STOPPED: early, as it was no good
    value: float | None = None  # of the metric; None if there is none that is finite
    step: int = 0
    launch: int = 1
    reason: str = ""


TABLE = TypeAdapter(list[Trial])


def read_trials(storage: Storage, run: str) -> list[Trial]:
    """The trials that are over, in order."""
    try:
        return TABLE.validate_json(storage.read(paths.sweep(run)))
    except FileNotFoundError:
        return []


def write_trials(storage: Storage, run: str, trials: list[Trial]) -> None:
    body = json.dumps([trial.to_json() for trial in trials], indent=1)
    storage.write(paths.sweep(run), body.encode())


def current_trial(storage: Storage, run: str, launch: int, trials: list[Trial]) -> int:
    """The number of the trial that is to be trained: one that failed in an earlier launch, tried again, else the next.

    Not one that was trained to its end with a metric that is no number: it would be so again.
    """
    for trial in trials:
        if trial.state == "FAILED" and trial.launch < launch:
            status = read_status(storage, paths.trial_id(run, trial.number))
            if status is None or (status.state, status.launch) != ("SUCCEEDED", trial.launch):
                return trial.number
    return len(trials) + 1


def trained_spec(storage: Storage, spec: JobSpec) -> JobSpec:
    """A run as its model was trained: of a sweep, with the best trial's hyperparameters."""
    found = best_trial(spec.sweep, read_trials(storage, spec.run)) if spec.sweep else None
    if found is None:
        return spec
    return spec.model_copy(update={"hyperparameters": applied(spec.hyperparameters, found.parameters)})


def best_trial(sweep: Sweep, trials: list[Trial]) -> Trial | None:
    """The best of those that were trained to their end."""
    whole = [trial for trial in trials if trial.state == "SUCCEEDED" and trial.value is not None]
    return min(whole, key=lambda trial: _worse(sweep, trial.value), default=None)


def _worse(sweep: Sweep, value: float | None) -> float:
    """A number that grows as a value gets worse."""
    assert value is not None
    return value if sweep.goal == "MINIMIZE" else -value


def metric_value(sweep: Sweep, outcome: Outcome) -> float | None:
    """The metric of a trial, as far as it came."""
    if sweep.hyperparameter_metric_tag == "validationLoss":
        found = outcome.evaluations[-1].validation_loss if outcome.evaluations else None
    else:
        losses = [record.loss for record in outcome.steps[-LAST:]]
        found = None if not losses or None in losses else fmean(loss for loss in losses if loss is not None)
    return found if found is not None and math.isfinite(found) else None


def early_stop_reason(sweep: Sweep, now: Outcome, before: list[Outcome]) -> str | None:
    """Why a trial is to be stopped early: its validation loss is worse than the median of those before at that step.

    Worse is higher, or lower where the goal is MAXIMIZE.
    """
    if not now.evaluations:
        return None
    step, value = now.evaluations[-1].step, now.evaluations[-1].validation_loss
    others = [r.validation_loss for one in before for r in one.evaluations if r.step == step]
    known = [other for other in others if other is not None]
    if value is None or len(known) < JUDGES or _worse(sweep, value) <= _worse(sweep, median(known)):
        return None
    return (
        f"stopped early: validation loss {value:.4f} at step {step:,}, and the median of {len(known)} trials is"
        f" {median(known):.4f}"
    )
