"""Declare the options of a sweep, in AI Platform's words: a stack file and job.json share these models."""

from typing import Literal

from pydantic import Field

from trainer.contract.options import Strict


class Parameter(Strict):
    """One hyperparameter that a sweep varies, in the words of AI Platform's ParameterSpec."""

    parameter_name: str = Field(
        description="The key of trainingInput.hyperparameters to vary; any but seed.",
    )
    type: Literal["DOUBLE", "INTEGER", "DISCRETE", "CATEGORICAL"] = Field(
        description="DOUBLE and INTEGER search from minValue to maxValue, DISCRETE the numbers of discreteValues,"
        " CATEGORICAL the words of categoricalValues."
    )
    min_value: float | None = Field(None, description="The lowest value, for DOUBLE and INTEGER.")
    max_value: float | None = Field(None, description="The highest value, for DOUBLE and INTEGER.")
    scale_type: Literal["UNIT_LINEAR_SCALE", "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"] = Field(
        "UNIT_LINEAR_SCALE",
        description="How DOUBLE and INTEGER are searched: evenly, or on a logarithmic scale that is finer at the lower"
        " (UNIT_LOG_SCALE) or at the upper end. Logarithmic scales need a minValue above 0.",
    )
    discrete_values: list[float] | None = Field(None, description="The numbers to try, for DISCRETE; two or more.")
    categorical_values: list[str] | None = Field(
        None,
        description="The values to try, for CATEGORICAL, each in quotes; two or more. A number or true is read as"
        " what it looks like.",
    )


class Sweep(Strict):
    """A run of many trials, in the words of AI Platform's HyperparameterSpec. One trial is trained after the other."""

    goal: Literal["MINIMIZE", "MAXIMIZE"] = Field(
        "MINIMIZE", description="Whether the best trial is the one with the lowest or with the highest metric."
    )
    hyperparameter_metric_tag: Literal["validationLoss", "loss"] = Field(
        "validationLoss",
        description="The metric by which trials are compared: the validation loss of the last evaluation, or the mean"
        " training loss of the last 20 steps.",
    )
    max_trials: int = Field(10, ge=1, le=1000, description="The number of trials.")
    max_parallel_trials: int = Field(
        1, ge=1, description="Must be 1, as all machines train one trial after the other. AI Platform's files have it."
    )
    enable_trial_early_stopping: bool = Field(
        False,
        description="Stop a trial whose validation loss is worse than the median of the finished trials at the same"
        " step.",
    )
    params: list[Parameter] = Field(description="The hyperparameters to vary, each with its range or its values.")
