"""Stack files whose data are pairs: the choice of the format, and mistakes that are found before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.job import job_spec
from infra.stack.config import ConfigError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "code.py").write_text("pass\n")
    write(tmp_path, [{"prompt": f"{i}?", "completion": str(i)} for i in range(200)])
    return tmp_path


def write(root: Path, lines: list[Any], name: str = "my.jsonl") -> None:
    (root / "data" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def job(root: Path, **data: Any) -> Any:
    values = {
        "trainingInput": {"hyperparameters": {"batchSize": 8, "sequenceLength": 16}},
        "model": {"size": "tiny"},
        "data": {"path": "data/my.jsonl", "tokenizer": "byte", **data},
    }
    return job_spec(load.load(values, "local", root))


def problem(root: Path, **data: Any) -> str:
    with pytest.raises(ConfigError) as error:
        job(root, **data)
    (line,) = error.value.problems
    return str(line)


def test_format_is_taken_from_the_files_name_unless_it_is_given(root: Path) -> None:
    (root / "data" / "my.txt").write_text("a text\n" * 500)
    (root / "data" / "pairs.txt").write_bytes((root / "data" / "my.jsonl").read_bytes())
    assert job(root).data.format == "pairs"
    assert job(root, path="data/my.txt").data.format == "text"
    assert job(root, path="data/pairs.txt", format="pairs").data.format == "pairs"
    as_text = job(root, format="text")
    assert as_text.data.format == "text"
    assert as_text.run != job(root).run
    assert len({job(root, **data).run for data in ({}, {"testFraction": 0.2}, {"skipBadLines": 1})}) == 3


@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff"])
def test_file_of_pairs_with_another_name_is_refused_until_the_format_is_given(root: Path, before: str) -> None:
    content = before + (root / "data" / "my.jsonl").read_text() * 20
    (root / "data" / "my.json").write_text(content, encoding="utf-8")
    assert problem(root, path="data/my.json") == (
        "gpt2-training:data.path: data/my.json begins with a pair of prompt and completion, and would be read as text;"
        " set data.format: pairs, or format: text if that is meant"
    )
    assert job(root, path="data/my.json", format="text").data.format == "text"
    (root / "data" / "my.json").write_text('{"prompt": "of a text that begins so", "other": 1}\n' * 200)
    assert job(root, path="data/my.json").data.format == "text"


def test_task_that_is_misspelled_or_does_not_fit_the_data_is_refused(root: Path) -> None:
    values: dict[str, Any] = {"trainingInput": {}, "model": {"size": "tiny"}}

    def line(task: str, path: str) -> str:
        with pytest.raises(ConfigError) as error:
            load.load({**values, "data": {"path": path}, "evaluation": {"task": task}}, "local", root)
        (found,) = error.value.problems
        return found

    said = line("sentimental", "data/my.jsonl")
    tasks = "text, translation, sentiment, questions"
    assert said.startswith(f"gpt2-training:evaluation.task: found 'sentimental', must be one of {tasks}; did you mean ")
    assert line("questions", "data/my.json").endswith("or remove it, or set data.format: pairs")


def test_keys_of_pairs_are_refused_for_text(root: Path) -> None:
    for key, value in (("testFraction", 0.2), ("skipBadLines", 3)):
        said = problem(root, format="text", **{key: value})
        assert said.startswith(f"gpt2-training:data.{key}: belongs to format pairs")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "a", "completion": ""}], "data/my.jsonl:1: completion is empty: fix 1 bad line, or raise"),
        ([{"prompt": "a"}, {}], "data/my.jsonl:1: no completion (and line 2: no prompt): fix 2 bad lines, or raise"),
        ([{"prompt": "a", "completion": "b" * 16}], "data/my.jsonl:1: the completion has 17 tokens with end-of-text"),
        ([{"prompt": "a", "completion": "b"}] * 100, "part needs"),
    ],
)
def test_file_of_pairs_that_cannot_be_trained_on_is_refused(root: Path, lines: list[Any], said: str) -> None:
    write(root, lines)
    found = problem(root)
    assert found.startswith("gpt2-training:data.path: data/my.jsonl:")
    assert said in found
    assert "\n" not in found


def test_bad_lines_within_the_limit_are_accepted(root: Path) -> None:
    with (root / "data" / "my.jsonl").open("a") as file:
        file.write("oops\n")
    assert "not JSON" in problem(root)
    assert job(root, skipBadLines=1).data.skip_bad_lines == 1
