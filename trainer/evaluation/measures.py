"""Measure how good answers are, and compute the baselines to compare them with.

Spaces around an answer are ignored. Exact match, accuracy and token F1 are between 0 and 1. BLEU (Papineni et al. 2002)
and chrF (Popović 2015) are between 0 and 100, as sacrebleu computes them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from trainer.contract.options import Task
from trainer.data.pairs import Pair
from trainer.runs.scores import Baseline, Confusion

MetricValues = dict[str, float]  # name of a metric: its value
MOST_LABELS = 20  # of a confusion table
OTHER = "(other)"


# -- translation -------------------------------------------------------------------------------------------------------


def translation(expected: Sequence[str], answers: Sequence[str]) -> MetricValues:
    """Return exact match, chrF and BLEU."""
    hypotheses, references = [a.strip() for a in answers], [[e.strip() for e in expected]]
    return {
        "exact_match": _matches(expected, answers),
        "chrf": CHRF().corpus_score(hypotheses, references).score,
        "bleu": BLEU().corpus_score(hypotheses, references).score,
    }


def source(prompt: str) -> str:
    """Return the text that a prompt asks to translate.

    This is the prompt's last line that is not empty, without a sign such as = or : at its end.
    """
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    return re.sub(r"[\s=:>|→-]+$", "", lines[-1]) if lines else ""


# -- sentiment ---------------------------------------------------------------------------------------------------------


def sentiment(expected: Sequence[str], answers: Sequence[str]) -> MetricValues:
    """Return the accuracy."""
    return {"accuracy": _matches(expected, answers)}


def majority(completions: Sequence[str]) -> str:
    """Return the most frequent class. Of equally frequent classes, return the first in the alphabet."""
    counts = Counter(completion.strip() for completion in completions)
    return min(counts, key=lambda label: (-counts[label], label))


def confusion(expected: Sequence[str], answers: Sequence[str]) -> Confusion | None:
    """Return a table of how often each class was answered with which class, or None if there are too many classes.

    Answers that are no class share one more column.
    """
    labels = sorted({completion.strip() for completion in expected})
    if len(labels) > MOST_LABELS:
        return None
    counts = Counter((e.strip(), a.strip()) for e, a in zip(expected, answers, strict=True))
    table = [[counts[row, column] for column in labels] for row in labels]
    others = [
        sum(n for (e, _), n in counts.items() if e == row) - sum(row_counts)
        for row, row_counts in zip(labels, table, strict=True)
    ]
    if not any(others):
        return Confusion(labels=labels, predicted=labels, counts=table)
    table = [[*row_counts, other] for row_counts, other in zip(table, others, strict=True)]
    return Confusion(labels=labels, predicted=[*labels, OTHER], counts=table)


# -- questions ---------------------------------------------------------------------------------------------------------


def questions(expected: Sequence[str], answers: Sequence[str]) -> MetricValues:
    """Return exact match and F1 as SQuAD defines them (Rajpurkar et al. 2016): without case, punctuation, articles."""
    both = list(zip(expected, answers, strict=True))
    return {
        "exact_match": fmean(normalized(e) == normalized(a) for e, a in both),
        "f1": fmean(token_f1(e, a) for e, a in both),
    }


def normalized(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single spaces."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def token_f1(expected: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words."""
    expected_words, answer_words = normalized(expected).split(), normalized(answer).split()
    if not expected_words or not answer_words:
        return float(expected_words == answer_words)
    common = sum((Counter(expected_words) & Counter(answer_words)).values())
    return 2 * common / (len(expected_words) + len(answer_words))


def retrieved(prompt: str) -> str:
    """Return an answer from the context alone, without a model.

    Take the sentence of the context that shares most words with the question, and return its words that the question
    lacks. The question is the prompt's last sentence that ends in a question mark, or else its last sentence.
    """
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", prompt) if part.strip()]
    if not sentences:
        return ""
    position = next((i for i in range(len(sentences) - 1, -1, -1) if sentences[i].endswith("?")), len(sentences) - 1)
    question = set(normalized(sentences[position]).split())
    context = sentences[:position]
    if not context:
        return ""
    best = max(context, key=lambda sentence: len(question & set(normalized(sentence).split())))
    return " ".join(word for word in normalized(best).split() if word not in question)


# -- all tasks ---------------------------------------------------------------------------------------------------------

MEASURES: dict[Task, Callable[[Sequence[str], Sequence[str]], MetricValues]] = {
    "translation": translation,
    "sentiment": sentiment,
    "questions": questions,
}


def baseline(task: Task, pairs: Sequence[Pair], trained: Sequence[Pair]) -> Baseline:
    """Return the scores on `pairs` without a model. `trained`: the pairs of the training part, for `sentiment`."""
    expected = [pair.completion for pair in pairs]
    if task == "translation":
        name, answers = "copy of the source", [source(pair.prompt) for pair in pairs]
    elif task == "sentiment":
        label = majority([pair.completion for pair in trained])
        name, answers = f"always {label!r}", [label] * len(pairs)
    else:
        name, answers = "retrieval by overlap", [retrieved(pair.prompt) for pair in pairs]
    return Baseline(name=name, metrics=MEASURES[task](expected, answers))


def _matches(expected: Sequence[str], answers: Sequence[str]) -> float:
    return fmean(e.strip() == a.strip() for e, a in zip(expected, answers, strict=True))
