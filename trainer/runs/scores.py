"""Keep how good a finished model is at its task, in evaluation.json; trainer/evaluation/evaluate.py measures it."""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError

from trainer.contract import paths
from trainer.contract.options import Strict, Task
from trainer.storage.base import Storage

SAMPLES = 8  # predictions that evaluation.json has too; predictions.jsonl has all
# The metrics, and how people call them. Those of SHARES are fractions of 1; BLEU and chrF are between 0 and 100.
NAMES = {
    "perplexity": "perplexity",
    "loss": "loss, nats a token",
    "exact_match": "exact match",
    "chrf": "chrF",
    "bleu": "BLEU",
    "accuracy": "accuracy",
    "f1": "token F1",
}
SHARES = {"exact_match", "accuracy", "f1"}
LOWER = {"perplexity", "loss"}  # a lower value is better


class Prediction(Strict):
    prompt: str
    expected: str
    predicted: str


class Baseline(Strict):
    """A score that can be reached without training."""

    name: str
    metrics: dict[str, float]


class Confusion(Strict):
    """Counts of predictions: how often the label of a row was predicted as that of a column."""

    labels: list[str]  # of the rows
    predicted: list[str]  # of the columns: the labels, and one for any other answer
    counts: list[list[int]]


class Scores(Strict):
    """The content of evaluation.json."""

    version: Literal[1] = 1
    run: str
    task: Task
    split: Literal["validation", "test"]
    examples: int  # pairs, or windows of a text
    metrics: dict[str, float]  # by keys of NAMES, the most important first
    baseline: Baseline
    confusion: Confusion | None = None
    samples: list[Prediction] = Field([])
    truncated: int = 0  # prompts whose beginning was cut off


def read(storage: Storage, run: str) -> Scores | None:
    """Return a run's scores; None if it has none, or those of another version of this project."""
    try:
        return Scores.model_validate_json(storage.read(paths.evaluation(run)))
    except (FileNotFoundError, ValidationError):
        return None


def write(storage: Storage, scores: Scores, predictions: Sequence[Prediction]) -> None:
    """Write scores and predictions. The scores are written last: where they are, the predictions are."""
    lines = "".join(json.dumps(each.to_json(), ensure_ascii=False) + "\n" for each in predictions)
    if predictions:
        storage.write(paths.predictions(scores.run), lines.encode())
    storage.write(paths.evaluation(scores.run), json.dumps(scores.to_json(), ensure_ascii=False, indent=1).encode())


def words(metric: str, value: float | None) -> str:
    """Return a metric's value as people read it."""
    if value is None:
        return "–"
    if metric in SHARES:
        return f"{value:.1%}"
    return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"


def line(scores: Scores) -> str:
    """Return all metrics in one line, each with the baseline's in brackets."""
    metrics = (
        f"{NAMES.get(name, name)} {words(name, value)} ({words(name, scores.baseline.metrics.get(name))})"
        for name, value in scores.metrics.items()
    )
    return f"{', '.join(metrics)}; in brackets {scores.baseline.name}"
