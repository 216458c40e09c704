"""Suggest the hyperparameters of a sweep's next trial, with Optuna."""

import hashlib
from typing import TYPE_CHECKING, Any

from trainer.contract import paths
from trainer.contract.search_space import ParameterValue, applied
from trainer.contract.spec import JobSpec
from trainer.contract.sweep_options import Parameter, Sweep
from trainer.runs.trials import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


STARTUP = 4  # trials at random before the sampler models anything
FAILURES = 3  # failed trials in a row that fail the sweep


def suggest(sweep: Sweep, seed: int, trials: list[Trial]) -> dict[str, ParameterValue]:
    """Return the parameters of the trial after `trials`."""
    import optuna  # 0.1 s, and the master alone suggests

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = hashlib.sha256(f"{seed} {len(trials) + 1}".encode()).digest()
    sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4]), n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler, direction="minimize" if sweep.goal == "MINIMIZE" else "maximize")
    space = {parameter.parameter_name: _distribution(parameter) for parameter in sweep.params}
    for trial in trials:
        has_value = trial.value is not None
        study.add_trial(
            optuna.trial.create_trial(
                params={p.parameter_name: _mirrored(p, trial.parameters[p.parameter_name]) for p in sweep.params},
                distributions=space,
                value=trial.value,
                state=optuna.trial.TrialState.COMPLETE if has_value else optuna.trial.TrialState.FAIL,
            )
        )
    drawn = study.ask(space).params
    return {p.parameter_name: _plain(p, _mirrored(p, drawn[p.parameter_name])) for p in sweep.params}


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # as in suggest()

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
    """On a reverse logarithmic scale, the sampler sees the range from its other end."""
    if parameter.scale_type != "UNIT_REVERSE_LOG_SCALE" or parameter.type not in ("DOUBLE", "INTEGER"):
        return value
    assert parameter.min_value is not None
    assert parameter.max_value is not None
    kind = int if parameter.type == "INTEGER" else float
    low, high = kind(parameter.min_value), kind(parameter.max_value)
    return min(max(low + high - value, low), high)


def _plain(parameter: Parameter, value: Any) -> ParameterValue:
    """Round for a person's eyes: no more digits than anybody would write."""
    if parameter.type != "DOUBLE":
        return value  # type: ignore[no-any-return]
    assert parameter.min_value is not None
    assert parameter.max_value is not None
    return min(max(float(f"{value:.4g}"), parameter.min_value), parameter.max_value)


def job_of(spec: JobSpec, number: int, parameters: dict[str, ParameterValue]) -> JobSpec:
    """Return the trial's own job. Raise ValidationError."""
    hyperparameters = applied(spec.hyperparameters, parameters)
    update = {"run": paths.trial_id(spec.run, number), "hyperparameters": hyperparameters, "sweep": None}
    return JobSpec.model_validate(spec.model_copy(update=update).to_json())
