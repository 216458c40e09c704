"""The examples: their data is made the same every time and holds what it says, their stack files fit it, one learns."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples import data
from infra import load
from infra.job import job_spec
from infra.stack.config import ConfigError
from infra.stack.keys import data_format
from tests.trainer.conftest import new_run
from tests.trainer.running import ROOT, Run
from trainer.contract.options import Data
from trainer.contract.spec import JobSpec
from trainer.data.pairs import Pair, part_of
from trainer.data.prepared import find_prepared
from trainer.evaluation.measures import baseline
from trainer.runs import scores

__all__ = ["new_run"]
DATA = Data(path="x", format="pairs")


def parts(name: str) -> tuple[list[Pair], list[Pair]]:
    """Training part and test part."""
    made = data.pairs(name)
    return tuple([p for p in made if part_of(p.prompt, DATA) == part] for part in ("train", "test"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", data.EXAMPLES)
def test_the_same_every_time(name: str) -> None:
    made = data.pairs(name)
    assert made == data.pairs(name)
    assert len(made) == len({pair.prompt for pair in made}) == data.EXAMPLES[name][1]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("translation", lambda pair: pair.completion),  # the day
        ("sentiment", lambda pair: pair.prompt.partition(": ")[0]),  # the name
        ("sentiment", lambda pair: pair.prompt.partition(": ")[2]),  # the statement
        ("questions", lambda pair: pair.prompt),
    ],
)
def test_nothing_of_the_test_part_was_trained_on(name: str, same: Callable[[Pair], str]) -> None:
    trained, test = parts(name)
    assert len(test) > 300
    assert not {same(pair) for pair in trained} & {same(pair) for pair in test}


def test_words_are_held_out_of_negation() -> None:
    """The test part has them negated, the training part only as they are."""

    def negated(pairs: list[Pair]) -> list[str]:
        said = [pair.prompt.partition(": ")[2] for pair in pairs]
        return [line for line in said if any(word in line for word in ("not ", "never ", "anything but ", "Nobody "))]

    def held_out(lines: list[str]) -> list[str]:
        return [line for line in lines if any(re.search(rf"\b{word}\b", line) for word in data.HELD_OUT)]

    trained, test = parts("sentiment")
    assert len(negated(trained)) > 400
    assert held_out(negated(trained)) == []
    assert len(held_out(negated(test))) > 100
    assert all(any(word in pair.prompt for pair in trained) for word in data.HELD_OUT)


def test_what_is_true() -> None:
    for pair in data.pairs("questions"):
        told, asked = pair.prompt.splitlines()
        person = next(name for name in data.PEOPLE.split() if name in asked)
        assert any(person in said and f" {pair.completion}" in said for said in told.split("."))
    spoken = [
        (1900, "nineteen hundred"),
        (2005, "twenty oh five"),
        (1894, "eighteen ninety-four"),
        (1213, "twelve thirteen"),
    ]
    assert [data.year(value) for value, _ in spoken] == [words for _, words in spoken]
    assert [data.ordinal(n) for n in (1, 12, 20, 23, 30, 31)] == [
        "first", "twelfth", "twentieth", "twenty-third", "thirtieth", "thirty-first",
    ]  # fmt: skip


def test_baselines_are_low() -> None:
    for name, metric, most in (
        ("translation", "exact_match", 0.01),
        ("sentiment", "accuracy", 0.6),
        ("questions", "f1", 0.5),
    ):
        trained, test = parts(name)
        assert baseline(name, test, trained).metrics[metric] < most  # type: ignore[arg-type]


# -- stack files -------------------------------------------------------------------------------------------------------


def checkout(folder: Path, name: str) -> Path:
    """What a stack file needs beside it."""
    (folder / "trainer").mkdir()
    (folder / "trainer" / "code.py").write_text("pass\n")
    (folder / "Pulumi.yaml").write_bytes((ROOT / "Pulumi.yaml").read_bytes())
    (folder / f"Pulumi.{name}.yaml").write_bytes((ROOT / f"Pulumi.{name}.yaml").read_bytes())
    if name in data.EXAMPLES:
        data.ensure(name, folder / data.default_path(name))
    else:
        (folder / "data").mkdir()
        (folder / "data" / "default.txt").write_text("some text\n" * 200_000)
    return folder


def declared(folder: Path, name: str) -> JobSpec:
    return job_spec(load.from_file(name, checkout(folder, name)))


@pytest.mark.parametrize("name", ["text", *data.EXAMPLES])
def test_the_stack_file_fits_the_data(tmp_path: Path, name: str) -> None:
    job = declared(tmp_path, name)
    assert job.evaluation.task == name
    assert job.data.format == ("text" if name == "text" else "pairs")


def test_a_task_needs_its_format(tmp_path: Path) -> None:
    folder = checkout(tmp_path, "sentiment")
    stack = folder / "Pulumi.sentiment.yaml"
    for task, given in (("text", "pairs"), ("questions", "text")):
        words = (ROOT / "Pulumi.sentiment.yaml").read_text().replace("task: sentiment", f"task: {task}")
        stack.write_text(words.replace("    tokenizer:", f"    format: {given}\n    tokenizer:"))
        with pytest.raises(ConfigError) as error:
            load.from_file("sentiment", folder)
        (line,) = error.value.problems
        assert f"evaluation.task: found {task}, and data.format is {given}; use " in line


def test_the_sweeps_stack_file_is_one_and_its_mistakes_are_told(tmp_path: Path) -> None:
    job = declared(tmp_path, "sweep")
    assert job.sweep is not None
    assert {parameter.parameter_name for parameter in job.sweep.params} == {"learningRate", "gradientClip"}
    stack = tmp_path / "Pulumi.sweep.yaml"
    stack.write_text(stack.read_text().replace("discreteValues: [0, 1]", "discreteValues: [1]"))
    with pytest.raises(ConfigError) as error:
        load.from_file("sweep", tmp_path)
    assert error.value.problems == [
        "gpt2-training:sweep.params[1].discreteValues: found [1.0]; give two or more, as one leaves nothing to vary"
    ]


# -- training ----------------------------------------------------------------------------------------------------------


def trained(new_run: Callable[..., Run], name: str, content: bytes, model: dict[str, Any], **hyper: Any) -> Run:
    """As its stack file says but for `model` and `hyper`, and by one trainer."""
    file = load.from_file(name).file
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = f"data/{fingerprint}/{name}"
    run = new_run(
        model=file.model.to_json() | model,
        data=file.data.to_json() | {"path": path, "format": data_format(file.data)},
        fingerprint=fingerprint,
        hyperparameters=file.training_input.hyperparameters.to_json() | {"microBatchSize": None} | hyper,
        evaluation={"every": hyper["steps"], "task": name},
    )
    run.storage.write(path, content)
    assert run.start().wait().state == "SUCCEEDED"
    return run


def score(run: Run, metric: str) -> tuple[float, float]:
    """The model's and its baseline's."""
    found = scores.read(run.storage, run.spec.run)
    assert found is not None
    return found.metrics[metric], found.baseline.metrics[metric]


@pytest.mark.slow
def test_sentiment_learns(new_run: Callable[..., Run]) -> None:
    run = trained(new_run, "sentiment", data.lines(data.pairs("sentiment")), {}, steps=300)
    accuracy, majority = score(run, "accuracy")
    assert accuracy > 0.85 > 0.6 > majority


# In some seconds smaller models learn the beginning of it: how texts look, what is asked for.
SMALL: dict[str, Any] = {"learningRate": 0.006, "warmupSteps": 20, "batchSize": 32}


@pytest.mark.slow
def test_text_learns(new_run: Callable[..., Run]) -> None:
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "trainer").rglob("*.py")))
    run = trained(new_run, "text", sources, {"layers": 2}, **SMALL | {"batchSize": 16}, steps=150, sequenceLength=64)
    perplexity, unigram = score(run, "perplexity")
    assert perplexity < 18 < 22 < unigram


@pytest.mark.slow
def test_translation_learns(new_run: Callable[..., Run]) -> None:
    """Dates, though not yet the right ones."""
    content = data.lines(data.pairs("translation", 2000))
    run = trained(new_run, "translation", content, {"layers": 2, "width": 64}, **SMALL, steps=150)
    chrf, copied = score(run, "chrf")
    assert chrf > 10 > 3 > copied


@pytest.mark.slow
def test_questions_learn(new_run: Callable[..., Run]) -> None:
    """A home where a home is asked for, though not yet whose: the loss falls long before answers are right."""
    content = data.lines(data.pairs("questions", 4000))
    run = trained(new_run, "questions", content, {"layers": 2, "width": 64}, **SMALL, steps=200)
    prepared = find_prepared(run.storage, run.spec.data, run.spec.fingerprint)
    assert prepared is not None
    assert run.validation()[-1] < 0.6 * prepared.manifest.validation.unigram_entropy
    kinds = {answer: kind for kind, (_, _, listed) in data.FACTS.items() for answer in listed.split()}
    answers = [json.loads(line) for line in run.storage.read("runs/test-run/predictions.jsonl").splitlines()]
    fitting = sum(kinds.get(answer["predicted"]) == kinds[answer["expected"]] for answer in answers)
    assert fitting > 0.8 * len(answers) > 300
