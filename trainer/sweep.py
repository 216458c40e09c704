"""A sweep: what its trials are, which is tried next, which is the best. No torch; Optuna only where one is suggested.

A trial is a run of its own, `<run>/trials/<n>`, with its own job.json, metrics, checkpoints and model. What became of
the trials stands in runs/<run>/sweep.json, in their order. Trial n is drawn by a sampler that is seeded by
hash(seed, n) and was told of the trials before it: the same history gives the same suggestion, on any machine and after
any restart.
"""

import hashlib
import json
import math
from difflib import get_close_matches
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from trainer.outcome import Outcome
from trainer.spec import Hyperparameters, JobSpec, Parameter, Strict, Sweep
from trainer.status import read_status
from trainer.storage import Storage

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str | bool
STARTUP = 4  # trials at random before the sampler models anything
JUDGES = 3  # finished trials that early stopping asks for
FAILURES = 3  # failed trials in a row that fail the sweep
LAST = 20  # steps over which the metric `loss` is a mean
NAMES = {to_camel(name) for name in Hyperparameters.model_fields} - {"seed"}
FRACTIONS = {to_camel(name) for name, field in Hyperparameters.model_fields.items() if field.annotation is float}
EXAMPLE = "{parameterName: learningRate, type: DOUBLE, minValue: 0.0001, maxValue: 0.01}"


class Trial(Strict):
    """A trial that is over."""

    number: int  # from 1
    parameters: dict[str, Value]  # by parameterName
    state: Literal["SUCCEEDED", "FAILED", "STOPPED"]  # STOPPED: early, as it was no good
    value: float | None = None  # of the metric; None if there is none that is finite
    step: int = 0
    launch: int = 1
    reason: str = ""


TABLE = TypeAdapter(list[Trial])


def trial_id(run: str, number: int) -> str:
    return f"{run}/trials/{number}"


def sweep_of(run: str) -> str | None:
    """The run of the sweep that a trial belongs to; None of any other run."""
    of, between, _ = run.rpartition("/trials/")
    return of if between else None


def read(storage: Storage, run: str) -> list[Trial]:
    """The trials that are over, in order."""
    try:
        return TABLE.validate_json(storage.read(f"runs/{run}/sweep.json"))
    except FileNotFoundError:
        return []


def write(storage: Storage, run: str, trials: list[Trial]) -> None:
    body = json.dumps([trial.to_json() for trial in trials], indent=1)
    storage.write(f"runs/{run}/sweep.json", body.encode())


def current(storage: Storage, run: str, launch: int, trials: list[Trial]) -> int:
    """The number of the trial that is to be trained: one that failed in an earlier launch, tried again, else the next.

    Not one that was trained to its end with a metric that is no number: it would be so again.
    """
    for trial in trials:
        if trial.state == "FAILED" and trial.launch < launch:
            status = read_status(storage, trial_id(run, trial.number))
            if status is None or (status.state, status.launch) != ("SUCCEEDED", trial.launch):
                return trial.number
    return len(trials) + 1


def trained(storage: Storage, spec: JobSpec) -> JobSpec:
    """A run as its model was trained: of a sweep, with the best trial's hyperparameters."""
    found = best(spec.sweep, read(storage, spec.run)) if spec.sweep else None
    if found is None:
        return spec
    return spec.model_copy(update={"hyperparameters": applied(spec.hyperparameters, found.parameters)})


def best(sweep: Sweep, trials: list[Trial]) -> Trial | None:
    """The best of those that were trained to their end."""
    whole = [trial for trial in trials if trial.state == "SUCCEEDED" and trial.value is not None]
    return min(whole, key=lambda trial: _worse(sweep, trial.value), default=None)


def _worse(sweep: Sweep, value: float | None) -> float:
    """A number that grows as a value gets worse."""
    assert value is not None
    return value if sweep.goal == "MINIMIZE" else -value


def value_of(sweep: Sweep, outcome: Outcome) -> float | None:
    """The metric of a trial, as far as it came."""
    if sweep.hyperparameter_metric_tag == "validationLoss":
        found = outcome.evaluations[-1].validation_loss if outcome.evaluations else None
    else:
        losses = [record.loss for record in outcome.steps[-LAST:]]
        found = None if not losses or None in losses else fmean(loss for loss in losses if loss is not None)
    return found if found is not None and math.isfinite(found) else None


def hopeless(sweep: Sweep, now: Outcome, before: list[Outcome]) -> str | None:
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


# -- suggestions -------------------------------------------------------------------------------------------------------


def suggest(sweep: Sweep, seed: int, trials: list[Trial]) -> dict[str, Value]:
    """The parameters of the next trial, after these."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = hashlib.sha256(f"{seed} {len(trials) + 1}".encode()).digest()
    sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4]), n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler, direction="minimize" if sweep.goal == "MINIMIZE" else "maximize")
    space = {parameter.parameter_name: _distribution(parameter) for parameter in sweep.params}
    for trial in trials:
        known = trial.value is not None
        study.add_trial(
            optuna.trial.create_trial(
                params={p.parameter_name: _mirrored(p, trial.parameters[p.parameter_name]) for p in sweep.params},
                distributions=space,
                value=trial.value,
                state=optuna.trial.TrialState.COMPLETE if known else optuna.trial.TrialState.FAIL,
            )
        )
    drawn = study.ask(space).params
    return {p.parameter_name: _plain(p, _mirrored(p, drawn[p.parameter_name])) for p in sweep.params}


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.type == "CATEGORICAL":
        return CategoricalDistribution(parameter.categorical_values or [])
    if parameter.type == "DISCRETE":
        return CategoricalDistribution(parameter.discrete_values or [])
    assert parameter.min_value is not None
    assert parameter.max_value is not None
    log = parameter.scale_type != "UNIT_LINEAR_SCALE"
    if parameter.type == "INTEGER":
        return IntDistribution(int(parameter.min_value), int(parameter.max_value), log=log)
    return FloatDistribution(parameter.min_value, parameter.max_value, log=log)


def _mirrored(parameter: Parameter, value: Any) -> Any:
    """On a reverse logarithmic scale the sampler sees the range from its other end."""
    if parameter.scale_type != "UNIT_REVERSE_LOG_SCALE" or parameter.type not in ("DOUBLE", "INTEGER"):
        return value
    assert parameter.min_value is not None
    assert parameter.max_value is not None
    kind = int if parameter.type == "INTEGER" else float
    low, high = kind(parameter.min_value), kind(parameter.max_value)
    return min(max(low + high - value, low), high)


def _plain(parameter: Parameter, value: Any) -> Value:
    """For a person's eyes: no more digits than anybody would write."""
    if parameter.type != "DOUBLE":
        return value  # type: ignore[no-any-return]
    assert parameter.min_value is not None
    assert parameter.max_value is not None
    return min(max(float(f"{value:.4g}"), parameter.min_value), parameter.max_value)


def applied(hyperparameters: Hyperparameters, parameters: dict[str, Value]) -> Hyperparameters:
    """The hyperparameters of a trial. Raises ValidationError."""
    values = {key: _typed(value) for key, value in parameters.items()}
    return Hyperparameters.model_validate(hyperparameters.to_json() | values)


def _typed(value: Value) -> Value:
    """A category is a text: "16", "true" and "adamw" are what they look like. Whole numbers are integers."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def job_of(spec: JobSpec, number: int, parameters: dict[str, Value]) -> JobSpec:
    """The trial's own job. Raises ValidationError."""
    hyperparameters = applied(spec.hyperparameters, parameters)
    update = {"run": trial_id(spec.run, number), "hyperparameters": hyperparameters, "sweep": None}
    return JobSpec.model_validate(spec.model_copy(update=update).to_json())


# -- mistakes ----------------------------------------------------------------------------------------------------------


def problems(sweep: Sweep, hyperparameters: Hyperparameters, trainers: int, positions: int) -> list[str]:
    """What is wrong with a sweep, one line each, starting with the key."""
    found: list[str] = []
    seen: set[str] = set()
    if not sweep.params:
        found.append(f"sweep.params: found none, so there is nothing to vary; write for example [{EXAMPLE}]")
    for number, parameter in enumerate(sweep.params):
        key, name = f"sweep.params[{number}]", parameter.parameter_name
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(NAMES))}"
            found.append(f"{key}.parameterName: found {name}, which is no hyperparameter that can be varied; {meant}")
        elif name in seen:
            found.append(f"{key}.parameterName: {name} stands twice; remove one")
        else:
            seen.add(name)
            found += [f"{key}.{line}" for line in _range_problems(parameter)]
            if not found:
                found += _value_problems(key, parameter, hyperparameters, trainers, positions)
    if not found and sweep.hyperparameter_metric_tag == "loss" and sweep.enable_trial_early_stopping:
        found.append(
            "sweep.enableTrialEarlyStopping: compares validation losses; use hyperparameterMetricTag: validationLoss,"
            " or remove it"
        )
    return found


def _range_problems(parameter: Parameter) -> list[str]:
    """Each starts with the key below the parameter's."""
    kind, listed = parameter.type, {"DISCRETE": "discreteValues", "CATEGORICAL": "categoricalValues"}
    if kind in listed:
        values: Any = parameter.discrete_values if kind == "DISCRETE" else parameter.categorical_values
        if len(set(values or [])) < 2:
            return [f"{listed[kind]}: found {values or 'none'}; give two or more, as one leaves nothing to vary"]
        if len(set(values)) < len(values):
            return [f"{listed[kind]}: found {values}, with one value twice; remove it"]
        return []
    low, high = parameter.min_value, parameter.max_value
    if kind == "DOUBLE" and parameter.parameter_name not in FRACTIONS:  # both ends may be legal, and nothing between
        return [
            f"type: found DOUBLE, and {parameter.parameter_name} takes no fractions; use INTEGER, or list its values"
        ]
    if low is None or high is None:
        return [f"{'minValue' if low is None else 'maxValue'}: missing; {kind} needs minValue and maxValue"]
    if low >= high:
        varied = "nothing to vary" if low == high else "not a range"
        return [f"maxValue: found {high:g}, and minValue is {low:g}: {varied}; use a larger maxValue"]
    if kind == "INTEGER" and not (low.is_integer() and high.is_integer()):
        return [f"minValue: found {low:g} to {high:g}; INTEGER needs whole numbers"]
    if low <= 0 and parameter.scale_type != "UNIT_LINEAR_SCALE":
        return [f"minValue: found {low:g}, and a logarithmic scale needs more than 0; use UNIT_LINEAR_SCALE, or more"]
    return []


def _value_problems(
    key: str, parameter: Parameter, hyperparameters: Hyperparameters, trainers: int, positions: int
) -> list[str]:
    """Values at the ends of the range, and all that are listed, must be legal alone."""
    ends: list[Any] = [parameter.min_value, parameter.max_value]
    if parameter.type == "INTEGER":
        ends = [int(end) for end in ends]
    listed: dict[str, Any] = {"DISCRETE": parameter.discrete_values, "CATEGORICAL": parameter.categorical_values}
    name, found = parameter.parameter_name, []
    for value in listed.get(parameter.type) or ends:
        try:
            made = applied(hyperparameters, {name: value})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Input should be ")
            found.append(f"{key}.parameterName: {name} cannot be {value}: must be {why}")
            continue
        if made.batch_size < trainers:
            found.append(f"{key}: batchSize {value} is less than the {trainers} trainers; use at least {trainers}")
        if made.sequence_length > positions:
            found.append(f"{key}: sequenceLength {value} is longer than model.positions, {positions}; shorten it")
        if made.warmup_steps > made.steps:
            found.append(
                f"{key}: with {name} {value} there are {made.warmup_steps} warmupSteps of {made.steps} steps; use fewer"
            )
    return found
