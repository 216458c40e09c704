"""How good answers are, and the baselines that they are measured against.

An answer counts without the spaces around it. Exact match, accuracy and token F1 are shares of 1; BLEU (Papineni et
al. 2002) and chrF (Popović 2015) go from 0 to 100, as sacrebleu computes them.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from trainer.contract.spec import Task
from trainer.data.pairs import Pair
from trainer.runs.scores import Baseline, Confusion

Metrics = dict[str, float]
LABELS = 20  # most that a confusion table has
OTHER = "(other)"


# -- translation -------------------------------------------------------------------------------------------------------


def translation(expected: Sequence[str], answers: Sequence[str]) -> Metrics:
    from sacrebleu.metrics.bleu import BLEU  # takes a moment, and other tasks do without
    from sacrebleu.metrics.chrf import CHRF

    hypotheses, references = [a.strip() for a in answers], [[e.strip() for e in expected]]
    return {
        "exact_match": _matches(expected, answers),
        "chrf": CHRF().corpus_score(hypotheses, references).score,
        "bleu": BLEU().corpus_score(hypotheses, references).score,
    }


def source(prompt: str) -> str:
    """What is to be translated: the prompt's last line that is not empty, without a sign such as = or : at its end."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    return re.sub(r"[\s=:>|→-]+$", "", lines[-1]) if lines else ""


# -- sentiment ---------------------------------------------------------------------------------------------------------


def sentiment(expected: Sequence[str], answers: Sequence[str]) -> Metrics:
    return {"accuracy": _matches(expected, answers)}


def majority(completions: Sequence[str]) -> str:
    """The most frequent class; of equals, the first in the alphabet."""
    counts = Counter(completion.strip() for completion in completions)
    return min(counts, key=lambda label: (-counts[label], label))


def confusion(expected: Sequence[str], answers: Sequence[str]) -> Confusion | None:
    """None if there are too many classes for a table."""
    labels = sorted({each.strip() for each in expected})
    if len(labels) > LABELS:
        return None
    counts = Counter((e.strip(), a.strip()) for e, a in zip(expected, answers, strict=True))
    table = [[counts[row, column] for column in labels] for row in labels]
    rest = [
        sum(n for (e, _), n in counts.items() if e == row) - sum(found)
        for row, found in zip(labels, table, strict=True)
    ]
    if not any(rest):
        return Confusion(labels=labels, predicted=labels, counts=table)
    table = [[*found, more] for found, more in zip(table, rest, strict=True)]
    return Confusion(labels=labels, predicted=[*labels, OTHER], counts=table)


# -- questions ---------------------------------------------------------------------------------------------------------


def questions(expected: Sequence[str], answers: Sequence[str]) -> Metrics:
    """As SQuAD counts (Rajpurkar et al. 2016): without case, punctuation and articles."""
    both = list(zip(expected, answers, strict=True))
    return {
        "exact_match": fmean(normalized(e) == normalized(a) for e, a in both),
        "f1": fmean(token_f1(e, a) for e, a in both),
    }


def normalized(text: str) -> str:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def token_f1(expected: str, answer: str) -> float:
    """The harmonic mean of precision and recall of an answer's words."""
    wanted, found = normalized(expected).split(), normalized(answer).split()
    if not wanted or not found:
        return float(wanted == found)
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / (len(wanted) + len(found))


def retrieved(prompt: str) -> str:
    """From the sentence of the context that shares most words with the question, those that the question lacks.

    The question is the prompt's last sentence that ends in a question mark, or its last one.
    """
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", prompt) if part.strip()]
    if not sentences:
        return ""
    asked = next((i for i in range(len(sentences) - 1, -1, -1) if sentences[i].endswith("?")), len(sentences) - 1)
    question = set(normalized(sentences[asked]).split())
    context = sentences[:asked]
    if not context:
        return ""
    best = max(context, key=lambda each: len(question & set(normalized(each).split())))
    return " ".join(word for word in normalized(best).split() if word not in question)


# -- which for which task ----------------------------------------------------------------------------------------------

MEASURES: dict[Task, Callable[[Sequence[str], Sequence[str]], Metrics]] = {
    "translation": translation,
    "sentiment": sentiment,
    "questions": questions,
}


def baseline(task: Task, pairs: Sequence[Pair], trained: Sequence[Pair]) -> Baseline:
    """The scores on `pairs` without a model. trained: the pairs of the training part."""
    expected = [pair.completion for pair in pairs]
    if task == "translation":
        name, answers = "copy of the source", [source(pair.prompt) for pair in pairs]
    elif task == "sentiment":
        most = majority([pair.completion for pair in trained])
        name, answers = f"always {most!r}", [most] * len(pairs)
    else:
        name, answers = "retrieval by overlap", [retrieved(pair.prompt) for pair in pairs]
    return Baseline(name=name, metrics=MEASURES[task](expected, answers))


def _matches(expected: Sequence[str], answers: Sequence[str]) -> float:
    return fmean(e.strip() == a.strip() for e, a in zip(expected, answers, strict=True))
