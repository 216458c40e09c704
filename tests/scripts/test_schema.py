"""The stack file's JSON Schema on right and wrong stack files, and the files that are generated with it."""

import copy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from infra.stack import plain_yaml
from infra.stack.keys import StackFile
from scripts import schema
from tests.infra.test_load import MISTAKES, changed, values

CHECKOUT = Path(__file__).resolve().parents[2]
STACK_FILES = [*CHECKOUT.glob("Pulumi.*.yaml"), *CHECKOUT.glob("docs/estimate/Pulumi.*.yaml")]
# Mistakes that concern several keys, files or this machine, and NaN, which JSON does not have: a preview reports them.
NOT_IN_THE_SCHEMA = {
    ("machines", "{'spot': True}"),
    ("trainingInput.hyperparameters.learningRate", "nan"),
    ("trainingInput.minWorkers", "2"),
    ("parallel.parallelism", "fsdp"),
    ("parallel.every", "2"),
    ("checkpoints.keepEvery", "300"),
    ("trainingInput.workerCount", "16"),
    ("trainingInput.hyperparameters.batchSize", "1"),
    ("trainingInput.hyperparameters.sequenceLength", "129"),
    ("model.heads", "5"),
    ("model.size", "gpt2"),
    ("data.tokenizer", "checkpoint"),
    ("data.path", "data/none.txt"),
    ("data.path", "data"),
    ("data.path", "gs://bucket/text"),
    ("data.vocabularyPath", "./none"),
    ("trainingInput.hyperparameters.warmupSteps", "1001"),
    ("trainingInput.hyperparameters.precision", "fp16"),
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    made = schema.stack_schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def stack_file(own: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"config": {f"gpt2-training:{name}": value for name, value in own.items()} | others}


def test_committed_schema_files_agree_with_the_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main(["--check"]) == 0, capsys.readouterr().out


def test_stale_schema_file_fails_the_check_and_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema, "CHECKOUT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / schema.REFERENCE).write_text("old")
    assert schema.main(["--check"]) == 1
    assert (
        f"{schema.REFERENCE} is not what the descriptions of the keys say; run `make schema`" in capsys.readouterr().out
    )
    assert (tmp_path / schema.REFERENCE).read_text() == "old"
    assert schema.main([]) == 0
    assert schema.main(["--check"]) == 0


def test_every_key_has_a_description_in_full_sentences() -> None:
    model = StackFile.model_json_schema(by_alias=True)
    definitions = {"": model, **model["$defs"]}
    for owner, definition in definitions.items():
        for name, node in definition["properties"].items():
            said = node.get("description") or model["$defs"][node["$ref"].rpartition("/")[2]]["description"]
            assert said[0].isupper() or said.split()[0].rstrip(":") in node.get("enum", []), (owner, name)
            assert said.endswith("."), (owner, name)


@pytest.mark.parametrize("path", STACK_FILES, ids=lambda path: path.name)
def test_committed_stack_file_is_valid_and_names_the_schema(validator: Draft202012Validator, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert list(validator.iter_errors(plain_yaml.parse(text))) == []
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == CHECKOUT / schema.SCHEMA


def test_schema_refuses_every_mistake_in_one_key(validator: Draft202012Validator) -> None:
    allowed = {
        (path, str(value)) for path, value, _ in MISTAKES if validator.is_valid(stack_file(changed(path, value)))
    }
    assert allowed == NOT_IN_THE_SCHEMA


@pytest.mark.parametrize(
    "more",
    [
        {"gcp:project": "my-project", "gcp:region": "us-central1", "gcp:zone": "us-central1-a"},
        {"gcp:project": {"secure": "v1:a"}},
        {"pulumi:disable-default-providers": ["*"], "other:key": {"any": "thing"}},
        {"launch": 2},
        {"gpt2-training:launch": "2"},
        {"gpt2-training:keepArtifacts": "false"},
        {"gpt2-training:model": '{"size": "gpt2"}'},
        {"gpt2-training:model": {"size": "tiny", "initialize": {"secure": "v1:a"}}},
        {"gpt2-training:notify": {"secure": "v1:a"}},
        {"gpt2-training:launch": {"secure": "v1:a"}},
        {"gpt2-training:machines": {"zones": ["us-central1-a", {"secure": "v1:a"}]}},
        {"gpt2-training:trainingInput": {"workerCount": "10", "minWorkers": 1}},
        {"gpt2-training:sweep": {"params": [{"parameterName": "learningRate", "type": "DOUBLE", "minValue": 0.1}]}},
    ],
    ids=str,
)
def test_stack_file_as_pulumi_and_people_write_it_is_valid(
    validator: Draft202012Validator, more: dict[str, Any]
) -> None:
    own = copy.deepcopy(values())
    assert [error.message for error in validator.iter_errors(stack_file(own, **more))] == []


def test_stack_file_keys_without_a_namespace_are_valid(validator: Draft202012Validator) -> None:
    """Pulumi takes them for the project's own keys."""
    assert validator.is_valid({"config": values(), "encryptionsalt": "v1:a"})


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"confg": {}},
        {"config": None},
        {"config": ["a"]},
        {"config": {"gcp:project": "my-project"}},
        {"config": {**values(), "gcp:project": "My Project"}},
        {"config": {**values(), "gcp:project": 123456789}},
        {"config": {**values(), "gcp:region": "Iowa"}},
        {"config": {**values(), "lunch": 1}},
        {"config": {**values(), "launch": "two"}},
        {"config": {**values(), "launch": {"secure": "v1:a", "more": 1}}},
        {"config": {**values(), "pipeline": {"repository": "no-owner"}}},
        {"config": values(), "encryptionSalt": "v1:a"},
    ],
    ids=str,
)
def test_content_that_is_no_stack_file_is_not_valid(validator: Draft202012Validator, content: Any) -> None:
    assert not validator.is_valid(content)
