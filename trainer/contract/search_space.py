"""Check the hyperparameters that a sweep varies, and apply a trial's values."""

import json
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from trainer.contract.options import Hyperparameters
from trainer.contract.sweep_options import Parameter, Sweep

ParameterValue = float | int | str | bool
NAMES = {to_camel(name) for name in Hyperparameters.model_fields} - {"seed"}
FRACTIONS = {to_camel(name) for name, field in Hyperparameters.model_fields.items() if field.annotation is float}
EXAMPLE = "{parameterName: learningRate, type: DOUBLE, minValue: 0.0001, maxValue: 0.01}"


def applied(hyperparameters: Hyperparameters, parameters: dict[str, ParameterValue]) -> Hyperparameters:
    """Return the hyperparameters of a trial. Raise ValidationError."""
    values = {key: _typed(value) for key, value in parameters.items()}
    return Hyperparameters.model_validate(hyperparameters.to_json() | values)


def _typed(value: ParameterValue) -> ParameterValue:
    """Return a value with its type. A category is a text, of which "16" is a number; whole numbers are integers."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def problems(sweep: Sweep, hyperparameters: Hyperparameters, trainers: int, positions: int) -> list[str]:
    """Return the problems of a sweep, one line each, starting with the key."""
    lines: list[str] = []
    seen: set[str] = set()
    if not sweep.params:
        lines.append(f"sweep.params: found none, so there is nothing to vary; write for example [{EXAMPLE}]")
    for number, parameter in enumerate(sweep.params):
        key, name = f"sweep.params[{number}]", parameter.parameter_name
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(NAMES))}"
            lines.append(f"{key}.parameterName: found {name}, which is no hyperparameter that can be varied; {meant}")
        elif name in seen:
            lines.append(f"{key}.parameterName: {name} stands twice; remove one")
        else:
            seen.add(name)
            lines += [f"{key}.{line}" for line in _range_problems(parameter)]
            if not lines:
                lines += _value_problems(key, parameter, hyperparameters, trainers, positions)
    if not lines and sweep.hyperparameter_metric_tag == "loss" and sweep.enable_trial_early_stopping:
        lines.append(
            "sweep.enableTrialEarlyStopping: compares validation losses; use hyperparameterMetricTag: validationLoss,"
            " or remove it"
        )
    if sweep.max_parallel_trials > 1:
        lines.append(
            f"sweep.maxParallelTrials: found {sweep.max_parallel_trials}, but all machines train one trial after the"
            " other; use 1, or remove it"
        )
    return lines


def _range_problems(parameter: Parameter) -> list[str]:
    """Return the problems of a parameter's range, each starting with its key."""
    kind, listed = parameter.type, {"DISCRETE": "discreteValues", "CATEGORICAL": "categoricalValues"}
    if kind in listed:
        values: Any = parameter.discrete_values if kind == "DISCRETE" else parameter.categorical_values
        if len(set(values or [])) < 2:
            return [f"{listed[kind]}: found {values or 'none'}; give two or more, as one leaves nothing to vary"]
        if len(set(values)) < len(values):
            return [f"{listed[kind]}: found {values}, with one value twice; remove it"]
        return []
    low, high = parameter.min_value, parameter.max_value
    if kind == "DOUBLE" and parameter.parameter_name not in FRACTIONS:  # both ends may be legal, and no value between
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
    """Return the values that are not legal: the ends of the range, or those that are listed."""
    ends: list[Any] = [parameter.min_value, parameter.max_value]
    if parameter.type == "INTEGER":
        ends = [int(end) for end in ends]
    listed: dict[str, Any] = {"DISCRETE": parameter.discrete_values, "CATEGORICAL": parameter.categorical_values}
    name, lines = parameter.parameter_name, []
    for value in listed.get(parameter.type) or ends:
        try:
            made = applied(hyperparameters, {name: value})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Input should be ")
            lines.append(f"{key}.parameterName: {name} cannot be {value}: must be {why}")
            continue
        if made.batch_size < trainers:
            lines.append(f"{key}: batchSize {value} is less than the {trainers} trainers; use at least {trainers}")
        if made.sequence_length > positions:
            lines.append(f"{key}: sequenceLength {value} is longer than model.positions, {positions}; shorten it")
        if made.warmup_steps > made.steps:
            lines.append(
                f"{key}: with {name} {value} there are {made.warmup_steps} warmupSteps of {made.steps} steps; use fewer"
            )
    return lines
