"""A sweep's trials as a parallel plot: an axis for each parameter and one for the metric, a line for each trial."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from trainer.contract.search_space import ParameterValue
from trainer.contract.settings import written
from trainer.contract.spec import Parameter, Sweep
from trainer.report.charts import HEIGHT, WIDTH
from trainer.runs.trials import Trial, best_trial


@dataclass(frozen=True)
class Axis:
    name: str
    high: str  # what its upper end is
    low: str


@dataclass(frozen=True)
class Path:
    words: str
    kind: str  # "best", "whole" or "broken": not trained to its end
    points: str  # of an SVG's polyline, in units of trainer/report/charts.py


@dataclass(frozen=True)
class Plot:
    axes: list[Axis]
    paths: list[Path]  # the best one last, above the others


Scale = Callable[[ParameterValue], float]  # 0, the lower end, to 1


def plot(sweep: Sweep, trials: list[Trial]) -> Plot | None:
    """None if no trial has a value. The metric's better end is the upper one."""
    values = [trial.value for trial in trials if trial.value is not None]
    if not values:
        return None
    made = [_axis(parameter) for parameter in sweep.params]
    worst, finest = max(values), min(values)
    if sweep.goal == "MAXIMIZE":
        worst, finest = finest, worst
    axes = [axis for axis, _ in made]
    axes.append(Axis(sweep.hyperparameter_metric_tag, f"{finest:.4f}", f"{worst:.4f}"))
    first = best_trial(sweep, trials)
    paths = []
    for trial in sorted((trial for trial in trials if trial.value is not None), key=lambda trial: trial == first):
        assert trial.value is not None
        heights = [
            scale(trial.parameters[parameter.parameter_name])
            for parameter, (_, scale) in zip(sweep.params, made, strict=True)
        ]
        heights.append((trial.value - worst) / (finest - worst) if finest != worst else 0.5)
        points = " ".join(
            f"{WIDTH * place / (len(heights) - 1):.0f},{HEIGHT * (1 - height):.0f}"
            for place, height in enumerate(heights)
        )
        kind = "best" if trial == first else "whole" if trial.state == "SUCCEEDED" else "broken"
        varied = ", ".join(f"{name} {written(value)}" for name, value in trial.parameters.items())
        paths.append(Path(f"trial {trial.number}: {trial.value:.4f} with {varied}", kind, points))
    return Plot(axes, paths)


def _axis(parameter: Parameter) -> tuple[Axis, Scale]:
    name = parameter.parameter_name
    listed: list[ParameterValue] = [*(parameter.categorical_values or []), *(parameter.discrete_values or [])]
    if listed:
        places = {value: place / (len(listed) - 1) for place, value in enumerate(listed)}
        return Axis(name, written(listed[-1]), written(listed[0])), lambda value: places[value]
    low, high = parameter.min_value, parameter.max_value
    assert low is not None
    assert high is not None
    axis = Axis(name, written(high), written(low))
    if parameter.scale_type == "UNIT_LINEAR_SCALE":
        return axis, lambda value: (float(value) - low) / (high - low)
    if parameter.scale_type == "UNIT_LOG_SCALE":
        return axis, lambda value: math.log(float(value) / low) / math.log(high / low)
    return axis, lambda value: 1 - math.log((low + high - float(value)) / low) / math.log(high / low)
