"""Draw a sweep's trials as a parallel plot: an axis per parameter, one for the metric, and a line per trial."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from trainer.contract.search_space import ParameterValue
from trainer.contract.settings import written
from trainer.contract.sweep_options import Parameter, Sweep
from trainer.report.charts import HEIGHT, WIDTH
from trainer.runs.trials import Trial, best_trial


@dataclass(frozen=True)
class Axis:
    name: str
    high: str  # the label of its upper end
    low: str  # the label of its lower end


@dataclass(frozen=True)
class TrialLine:
    words: str
    kind: str  # "best", "whole", or "broken" if the trial did not train to its end
    points: str  # of an SVG polyline, in units of trainer/report/charts.py


@dataclass(frozen=True)
class Plot:
    axes: list[Axis]
    paths: list[TrialLine]  # the best one last, so that it is drawn above the others


Scale = Callable[[ParameterValue], float]  # returns 0 for the lower end of an axis, 1 for the upper end


def plot(sweep: Sweep, trials: list[Trial]) -> Plot | None:
    """Return the plot, or None if no trial has a value. The better end of the metric's axis is the upper one."""
    values = [trial.value for trial in trials if trial.value is not None]
    if not values:
        return None
    # The axes.
    parameter_axes = [_axis(parameter) for parameter in sweep.params]
    worst, best = max(values), min(values)
    if sweep.goal == "MAXIMIZE":
        worst, best = best, worst
    axes = [axis for axis, _ in parameter_axes]
    axes.append(Axis(sweep.hyperparameter_metric_tag, f"{best:.4f}", f"{worst:.4f}"))
    # A line for each trial with a value.
    winner = best_trial(sweep, trials)
    paths = []
    for trial in sorted((trial for trial in trials if trial.value is not None), key=lambda trial: trial == winner):
        assert trial.value is not None
        heights = [
            scale(trial.parameters[parameter.parameter_name])
            for parameter, (_, scale) in zip(sweep.params, parameter_axes, strict=True)
        ]
        heights.append((trial.value - worst) / (best - worst) if best != worst else 0.5)
        points = " ".join(
            f"{WIDTH * place / (len(heights) - 1):.0f},{HEIGHT * (1 - height):.0f}"
            for place, height in enumerate(heights)
        )
        kind = "best" if trial == winner else "whole" if trial.state == "SUCCEEDED" else "broken"
        parameters = ", ".join(f"{name} {written(value)}" for name, value in trial.parameters.items())
        paths.append(TrialLine(f"trial {trial.number}: {trial.value:.4f} with {parameters}", kind, points))
    return Plot(axes, paths)


def _axis(parameter: Parameter) -> tuple[Axis, Scale]:
    name = parameter.parameter_name
    listed: list[ParameterValue] = [*(parameter.categorical_values or []), *(parameter.discrete_values or [])]
    if listed:
        heights = {value: i / (len(listed) - 1) for i, value in enumerate(listed)}
        return Axis(name, written(listed[-1]), written(listed[0])), lambda value: heights[value]
    low, high = parameter.min_value, parameter.max_value
    assert low is not None
    assert high is not None
    axis = Axis(name, written(high), written(low))
    if parameter.scale_type == "UNIT_LINEAR_SCALE":
        return axis, lambda value: (float(value) - low) / (high - low)
    if parameter.scale_type == "UNIT_LOG_SCALE":
        return axis, lambda value: math.log(float(value) / low) / math.log(high / low)
    return axis, lambda value: 1 - math.log((low + high - float(value)) / low) / math.log(high / low)
