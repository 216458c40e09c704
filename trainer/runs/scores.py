"""runs/<run>/evaluation.json: how good a finished model is at its task. trainer/evaluation/evaluate.py makes it."""

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError

from trainer.contract import paths
from trainer.contract.spec import Strict, Task
from trainer.storage.base import Storage

SAMPLES = 8  # predictions that stand in evaluation.json too; predictions.jsonl has all
# What people call them, and which are percentages; BLEU and chrF go from 0 to 100, perplexity and loss from above.
NAMES = {
    "perplexity": "perplexity",
    "loss": "loss, nats a token",
    "exact_match": "exact match",
    "chrf": "chrF",
    "bleu": "BLEU",
    "accuracy": "accuracy",
    "f1": "token F1",
}
SHARES = {"exact_match", "accuracy", "f1"}  # of 1
LOWER = {"perplexity", "loss"}  # is better


class Prediction(Strict):
    prompt: str
    expected: str
    predicted: str


class Baseline(Strict):
    """What takes no training to reach."""

    name: str
    metrics: dict[str, float]


class Confusion(Strict):
    """How often (row) was taken for (column)."""

    labels: list[str]  # of the rows
    predicted: list[str]  # of the columns: the labels, and what is none of them
    counts: list[list[int]]


class Scores(Strict):
    version: Literal[1] = 1
    run: str
    task: Task
    split: Literal["validation", "test"]
    examples: int  # pairs; of text, windows
    metrics: dict[str, float]  # keys of NAMES, the most telling first
    baseline: Baseline
    confusion: Confusion | None = None
    samples: list[Prediction] = Field([])
    truncated: int = 0  # prompts whose beginning was cut off


def read(storage: Storage, run: str) -> Scores | None:
    """What was written; None if nothing was, or by another version."""
    try:
        return Scores.model_validate_json(storage.read(paths.evaluation(run)))
    except (FileNotFoundError, ValidationError):
        return None


def write(storage: Storage, scores: Scores, predictions: Sequence[Prediction]) -> None:
    """The scores last: with them the predictions are there."""
    lines = "".join(json.dumps(each.to_json(), ensure_ascii=False) + "\n" for each in predictions)
    if predictions:
        storage.write(paths.predictions(scores.run), lines.encode())
    storage.write(paths.evaluation(scores.run), json.dumps(scores.to_json(), ensure_ascii=False, indent=1).encode())


def words(metric: str, value: float | None) -> str:
    """A value for people."""
    if value is None:
        return "–"
    if metric in SHARES:
        return f"{value:.1%}"
    return f"{value:.2f}" if value < 10_000 else f"{value:.2e}"


def line(scores: Scores) -> str:
    """All metrics, beside the baseline's, in one line."""
    found = (
        f"{NAMES.get(name, name)} {words(name, value)} ({words(name, scores.baseline.metrics.get(name))})"
        for name, value in scores.metrics.items()
    )
    return f"{', '.join(found)}; in brackets {scores.baseline.name}"
