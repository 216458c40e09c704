"""Pairs longer than sequenceLength: cut prompts are counted everywhere, a completion that does not fit is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra import load
from scripts.prepare_data import pairs_in_words, prepare_here
from scripts.support.common import UserError
from tests.trainer.data.test_pairs import lines, numerals, put
from trainer.compute import assembly
from trainer.contract.errors import InputError
from trainer.contract.spec import JobSpec
from trainer.data.prepare import prepare
from trainer.report.page import render_page
from trainer.storage.factory import open_storage


def test_number_of_cut_prompts_is_reported_everywhere(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    data, mark = put(storage, lines(numerals()))
    prepared = prepare(storage, data, mark)
    length, count = 8, prepared.truncated("train", 8)
    assert 0 < count < len(prepared.examples("train"))
    in_all = count + prepared.truncated("validation", length) + prepared.truncated("test", length)
    assert f"{in_all:,} prompts cut at their beginning to fit sequenceLength 8" in pairs_in_words(prepared, length)
    assert "cut" not in pairs_in_words(prepared, 32)

    job = JobSpec.model_validate(
        {
            "run": "a-run", "model": {"layers": 1, "heads": 1, "width": 8, "positions": 32}, "data": data.to_json(),
            "fingerprint": mark, "code": "test", "hyperparameters": {"sequenceLength": length, "batchSize": 8},
        }
    )  # fmt: skip
    said: list[str] = []
    context: Any = SimpleNamespace(spec=job, host=SimpleNamespace(log=said.append))
    assembly._pairs(context, prepared)
    (line,) = said
    assert line.startswith(
        f"data: {count} of {len(prepared.examples('train'))} examples are longer than sequenceLength 8:"
    )

    storage.write("runs/a-run/job.json", json.dumps(job.to_json()).encode())
    words = f"{count} training examples were longer than sequenceLength 8: the beginning of their prompts was cut off."
    assert words in render_page(storage, "a-run")
    longer = job.hyperparameters.model_copy(update={"sequence_length": 32})
    job = job.model_copy(update={"hyperparameters": longer})
    storage.write("runs/a-run/job.json", json.dumps(job.to_json()).encode())
    assert "was cut off" not in render_page(storage, "a-run")


@pytest.mark.parametrize("tokenizer", ["byte", "train"])
def test_completion_that_does_not_fit_is_refused_before_the_run_starts(tmp_path: Path, tokenizer: str) -> None:
    """With bytes as tokens the preview refuses it; with a vocabulary that has to be learned first, `make data` does."""
    (tmp_path / "data").mkdir()
    (tmp_path / "trainer").mkdir()
    chance = "".join(chr(ord("a") + (7 * i * i + 3 * i) % 26) for i in range(200))
    (tmp_path / "data" / "my.jsonl").write_bytes(lines([*numerals(), {"prompt": "long", "completion": chance}]))
    values = {
        "trainingInput": {"hyperparameters": {"batchSize": 8, "sequenceLength": 16}},
        "model": {"size": "tiny"},
        "data": {"path": "data/my.jsonl", "tokenizer": tokenizer, "vocabularySize": 270},
    }
    with pytest.raises((InputError, UserError), match=r"421.* has .* tokens with end-of-text, more than .*16") as error:
        prepare_here(load.load(values, "local", tmp_path))
    assert "\n" not in str(error.value)
