"""scripts.evaluate on runs that left a model: its output, when it evaluates, and the requests that it refuses."""

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts import evaluate as script
from scripts.support.common import UserError
from scripts.support.writing import trained_length
from tests.scripts.tiny_model import tiny_model
from trainer.contract.options import Data
from trainer.contract.spec import JobSpec
from trainer.contract.sweep_options import Sweep
from trainer.data.prepare import prepare
from trainer.runs.scores import Baseline, Scores, read, write
from trainer.runs.trials import Trial, write_trials
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage


@pytest.fixture
def bucket(tmp_path: Path) -> Storage:
    """Make two runs of the same pairs, whose models are random, and one of text."""
    storage = open_storage(str(tmp_path))
    pairs = [{"prompt": f"{i} is ", "completion": "even" if i % 2 == 0 else "odd"} for i in range(120)]
    contents = {
        "my.jsonl": "".join(json.dumps(pair) + "\n" for pair in pairs).encode(),
        "my.txt": b"a text to read\n" * 400,
    }
    for run, name in (("one", "my.jsonl"), ("two", "my.jsonl"), ("of-text", "my.txt")):
        mark = hashlib.sha256(contents[name]).hexdigest()[:16]
        storage.write(f"data/{mark}/{name}", contents[name])
        data = {"path": f"data/{mark}/{name}", "format": "pairs" if name == "my.jsonl" else "text", "tokenizer": "byte"}
        job = {
            "run": run, "model": {"layers": 1, "heads": 2, "width": 16, "positions": 32}, "data": data,
            "fingerprint": mark, "code": "test", "hyperparameters": {"sequenceLength": 32},
            "evaluation": {"task": "sentiment"} if run == "one" else {},
        }  # fmt: skip
        storage.write(f"runs/{run}/job.json", json.dumps(JobSpec.model_validate(job).to_json()).encode())
        tiny_model(tmp_path / "runs" / run / "model")
        prepare(storage, Data.model_validate(data), mark)
    return storage


def call(bucket: Storage, *arguments: str) -> None:
    script.main([*arguments, "--bucket", bucket.url])


def test_evaluation_is_made_once_and_then_shown(bucket: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    call(bucket, "one")
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "baseline: always 'even'" in shown or "baseline: always 'odd'" in shown
    assert "some answers" in shown
    marked = bucket.read("runs/one/evaluation.json").replace(b'"examples": ', b'"examples": 9')
    bucket.write("runs/one/evaluation.json", marked)
    call(bucket, "one", "--json")
    assert str(json.loads(capsys.readouterr().out)["examples"]).startswith("9")  # this is the result that is there
    call(bucket, "one", "--again", "--json")
    assert json.loads(capsys.readouterr().out)["examples"] < 90
    call(bucket, "one", "--task", "questions", "--json")
    assert set(json.loads(capsys.readouterr().out)["metrics"]) == {"exact_match", "f1"}


def test_evaluation_of_another_task_leaves_the_runs_own_result(
    bucket: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    call(bucket, "one")
    call(bucket, "two", "--task", "sentiment")
    own = {run: bucket.read(f"runs/{run}/evaluation.json") for run in ("one", "two")}
    capsys.readouterr()
    call(bucket, "one", "--task", "questions", "--compare", "two")
    shown = capsys.readouterr()
    assert "token F1" in shown.out
    assert "two is for sentiment, and keeps the results of that: these are only shown" in shown.err
    assert {run: bucket.read(f"runs/{run}/evaluation.json") for run in own} == own
    assert b'"predicted": ' in bucket.read("runs/one/predictions.jsonl")


def test_comparison_notes_other_parts_of_the_same_data(bucket: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    call(bucket, "one", "--compare", "two")
    assert "not of the same examples" not in capsys.readouterr().err
    job = JobSpec.model_validate_json(bucket.read("runs/two/job.json"))
    job = job.model_copy(update={"data": job.data.model_copy(update={"test_fraction": 0.3})})
    bucket.write("runs/two/job.json", json.dumps(job.to_json()).encode())
    prepare(bucket, job.data, job.fingerprint)
    call(bucket, "one", "--compare", "two")
    assert "their scores are not of the same examples" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "change", [{"data": {"tokenizer": "train", "vocabularySize": 300}}, {"hyperparameters": {"sequenceLength": 16}}]
)
def test_comparison_notes_other_tokens_or_windows_of_the_same_text(
    bucket: Storage, capsys: pytest.CaptureFixture[str], change: dict[str, dict[str, Any]]
) -> None:
    """A perplexity is one of a token, so that of bytes is always lower."""
    job = json.loads(bucket.read("runs/of-text/job.json"))
    other = {**job, "run": "other", **{key: job[key] | values for key, values in change.items()}}
    bucket.write("runs/other/job.json", json.dumps(other).encode())
    for run, perplexity in (("of-text", 5.0), ("other", 30.0)):
        metrics = {"perplexity": perplexity}
        found = Scores(
            run=run, task="text", split="validation", examples=9, metrics=metrics,
            baseline=Baseline(name="unigram", metrics=metrics),
        )  # fmt: skip
        write(bucket, found, [])
    call(bucket, "of-text", "--compare", "other")
    shown = capsys.readouterr()
    assert "different text, tokens or sequenceLength: their scores cannot be compared" in " ".join(shown.err.split())
    assert "5.00" in shown.out


@pytest.mark.parametrize("comparable", [True, False])
def test_better_result_is_bold_only_if_both_have_the_same_examples(comparable: bool) -> None:
    two = [
        Scores(
            run=run, task="text", split="validation", examples=9, metrics={"perplexity": value},
            baseline=Baseline(name="unigram", metrics={}),
        )
        for run, value in (("one", 5.0), ("two", 30.0))
    ]  # fmt: skip
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(script.metrics_table(two, comparable=comparable))
    assert isinstance(console.file, io.StringIO)
    assert bool(re.search(r"\x1b\[1m *5\.00", console.file.getvalue())) == comparable


def test_evaluation_of_a_sweep_takes_its_best_trials_settings(bucket: Storage) -> None:
    """The best trial may have another sequenceLength than the stack file."""
    job = JobSpec.model_validate_json(bucket.read("runs/one/job.json"))
    length = {"parameterName": "sequenceLength", "type": "DISCRETE", "discreteValues": [8, 16]}
    of = Sweep.model_validate({"params": [length]})
    bucket.write("runs/one/job.json", json.dumps(job.model_copy(update={"sweep": of}).to_json()).encode())
    trials = [Trial(number=n, parameters={"sequenceLength": 8.0 * n}, state="SUCCEEDED", value=1.0 / n) for n in (1, 2)]
    write_trials(bucket, "one", trials)
    assert trained_length(bucket, "one") == 16
    assert script._spec(bucket, "one").hyperparameters.sequence_length == 16


def test_evaluation_of_text_gives_a_perplexity(bucket: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    call(bucket, f"{bucket.url}/runs/of-text")
    assert "perplexity" in capsys.readouterr().out
    found = read(bucket, "of-text")
    assert found is not None
    assert found.baseline.name == "unigram"


def test_comparison_shows_both_runs_and_the_baseline(bucket: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    call(bucket, "one", "--compare", "two")
    header = capsys.readouterr().out.splitlines()[2]
    assert header.index("one") < header.index("two") < header.index("baseline")
    call(bucket, "one", "--compare", "two", "--json")
    first, second = json.loads(capsys.readouterr().out)
    assert (first["run"], second["run"]) == ("one", "two")
    assert first["task"] == second["task"] == "sentiment"  # only the first run declares the task


def test_evaluation_of_what_cannot_be_evaluated_is_refused(bucket: Storage) -> None:
    with pytest.raises(UserError, match=r"two declares no evaluation.task; say which: --task"):
        call(bucket, "two")
    with pytest.raises(UserError, match=r"--task: found text, and data.format is pairs; use translation, sentiment or"):
        call(bucket, "one", "--task", "text")
    with pytest.raises(UserError, match=r"--task: found questions, and data.format is text; use text"):
        call(bucket, "of-text", "--task", "questions")
    with pytest.raises(UserError, match="there is no run three"):
        call(bucket, "three")
    for entry in bucket.list("data"):
        if entry.path.endswith("manifest.json"):
            bucket.delete(entry.path)
    with pytest.raises(UserError, match="the data of one is gone"):
        call(bucket, "one")
