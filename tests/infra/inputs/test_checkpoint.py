"""The checkpoints from which a stack file may start a run: every mistake that local files can show is one line."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.job import job_spec
from infra.sizing import memory, workload
from infra.stack.config import ConfigError, StackConfig
from tests.infra import google_graph
from tests.infra.checks import test_google as google
from tests.infra.test_load import root as root
from tests.infra.test_load import values
from trainer.contract import geometry, paths
from trainer.data.tokenizer import from_bytes
from trainer.storage import manifest

RUN = "gpt2-4x128-1a2b3c4d"
SHAPE: dict[str, Any] = {
    "model_type": "gpt2", "n_layer": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 1024,
}  # fmt: skip


def checkpoint(folder: Path, *, whole: bool = True, **shape: Any) -> Path:
    """Write a checkpoint's folder; nobody reads its weights here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE | shape))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    if whole:
        manifest.write_manifest(folder)
    return folder


def model_of(root: Path, run: str = RUN, stack: str = "local", **shape: Any) -> Path:
    return checkpoint(root / "artifacts" / stack / "runs" / run / "model", **shape)


def stack(root: Path, initialize: str, tokenizer: str = "checkpoint", **keys: Any) -> StackConfig:
    everything = copy.deepcopy(values())
    everything["model"] = {"initialize": initialize, **keys.pop("model", {})}
    everything["data"] = {"path": "data/default.txt", "tokenizer": tokenizer}
    return load.load({**everything, **keys}, "local", root)


def problem(root: Path, initialize: str, tokenizer: str = "checkpoint", **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        job_spec(stack(root, initialize, tokenizer, **keys))
    (line,) = caught.value.problems
    assert "\n" not in line
    return line.removeprefix("gpt2-training:")


@pytest.mark.parametrize("of", ["local", "another"])
def test_initialize_finds_a_finished_run_in_its_own_and_in_another_stacks_bucket(root: Path, of: str) -> None:
    folder = model_of(root, stack=of)
    job = job_spec(stack(root, RUN))
    assert job.model.initialize == job.data.vocabulary_path == str(folder)
    assert re.fullmatch("from-gpt2-4x128-[0-9a-f]{8}", job.run)
    assert workload.dimensions(stack(root, RUN)) == geometry.Dimensions(4, 128, 128, 1024)
    address = (root / "artifacts" / of).as_uri() + f"/runs/{RUN}"
    for same in (address, f"{address}/model", f"{address}/"):
        assert job_spec(stack(root, same)) == job
    (folder / "model.safetensors").write_bytes(b"others")
    assert job_spec(stack(root, RUN)).run != job.run


def test_initialize_looks_into_the_stacks_own_bucket_first(root: Path) -> None:
    model_of(root, stack="another")
    own = model_of(root)
    assert job_spec(stack(root, RUN)).model.initialize == str(own)


def test_initialize_finds_a_sweeps_trial(root: Path) -> None:
    trial = model_of(root, f"{RUN}/trials/3")
    job = job_spec(stack(root, f"{RUN}/trials/3"))
    assert job.model.initialize == str(trial)
    assert job.run.startswith("from-gpt2-4x128-")


def test_run_name_does_not_grow_from_run_to_run(root: Path) -> None:
    model_of(root, "from-gpt2-4x128-00000000")
    assert re.fullmatch("from-gpt2-4x128-[0-9a-f]{8}", job_spec(stack(root, "from-gpt2-4x128-00000000")).run)


def test_initialize_with_a_missing_run_lists_the_finished_ones(root: Path) -> None:
    said = f"model.initialize: there is no run {RUN} on this machine; finished are: "
    assert problem(root, RUN) == said + "none"
    runs = [f"gpt2-4x128-0000000{i}" for i in range(7)]
    for i, run in enumerate(runs):
        os.utime(model_of(root, run) / paths.MANIFEST, (i, i))
    assert problem(root, RUN) == said + ", ".join(reversed(runs[2:])) + " and 2 older ones"


def test_initialize_with_an_unfinished_run_gives_its_state(root: Path) -> None:
    model_of(root, "gpt2-4x128-00000000")
    model_of(root, whole=False)
    said = f"model.initialize: {RUN} has no model yet; finished are: gpt2-4x128-00000000"
    assert problem(root, RUN) == said
    (root / "artifacts/local/runs" / RUN / "status.json").write_text('{"state": "RUNNING", "step": 7, "updated": 0}')
    assert problem(root, RUN) == said.replace("yet;", "yet (RUNNING, step 7);")


@pytest.mark.parametrize("named", ["openai-community/gpt2", "gpt2", "gs://bucket/folder"])
def test_initialize_keeps_hub_ids_and_addresses(root: Path, named: str) -> None:
    assert job_spec(stack(root, named)).model.initialize == named


def test_initialize_with_a_run_in_a_google_bucket_takes_its_model(root: Path) -> None:
    job = job_spec(stack(root, f"gs://bucket/runs/{RUN}"))
    assert job.model.initialize == f"gs://bucket/runs/{RUN}/model"
    assert job.run.startswith("from-gpt2-4x128-")


@pytest.mark.parametrize(
    ("shape", "tokenizer", "said"),
    [
        ({"model_type": "llama"}, "checkpoint", "model.initialize: mine is a llama model; only GPT-2 can be trained"),
        (
            {"n_positions": 64},
            "checkpoint",
            "trainingInput.hyperparameters.sequenceLength: found 128, longer than the 64 positions of mine; use at",
        ),
        ({}, "byte", "data.tokenizer: byte has 257 tokens, and mine knows 1,024 others; set data.tokenizer: "),
        ({"vocab_size": 257}, "gpt2", "data.tokenizer: gpt2 has 50,257 tokens, and mine knows 257 others; set data."),
        ({}, "train", "data.tokenizer: train makes a vocabulary that the checkpoint of model.initialize does not"),
    ],
)  # fmt: skip
def test_checkpoint_that_does_not_fit_the_stack_file_is_refused(
    root: Path, shape: dict[str, Any], tokenizer: str, said: str
) -> None:
    checkpoint(root / "mine", **shape)
    assert problem(root, "mine", tokenizer).startswith(said)


def test_checkpoint_with_a_padded_embedding_table_has_the_same_vocabulary(root: Path) -> None:
    checkpoint(root / "mine", vocab_size=50304)
    assert job_spec(stack(root, "mine", "gpt2"))


def test_checkpoint_with_as_many_other_tokens_is_refused(root: Path) -> None:
    folder = checkpoint(root / "mine", vocab_size=257)
    bytes_alone = from_bytes().to_str()
    (folder / "tokenizer.json").write_text(bytes_alone)
    assert job_spec(stack(root, "mine", "byte"))
    other = bytes_alone.replace('"a":97', '"a":98').replace('"b":98', '"b":97')
    assert other != bytes_alone
    (folder / "tokenizer.json").write_text(other)
    said = "data.tokenizer: byte has other tokens than the tokenizer.json of mine, though as many; set data.tokenizer: "
    assert problem(root, "mine", "byte") == said + "checkpoint"
    assert job_spec(stack(root, "mine"))


def test_folder_without_a_checkpoints_files_is_refused(root: Path) -> None:
    assert problem(root, "./mine") == "model.initialize: there is no folder ./mine; check the path"
    folder = checkpoint(root / "mine")
    assert job_spec(stack(root, folder.as_uri())) == job_spec(stack(root, "mine"))
    (folder / "tokenizer.json").unlink()
    assert problem(root, "mine").startswith("data.tokenizer: checkpoint, and mine has no tokenizer.json; copy it there")
    (folder / "config.json").write_text("{")
    assert problem(root, "mine") == "model.initialize: config.json of mine cannot be read; fetch it again"
    (folder / "config.json").unlink()
    assert problem(root, "mine") == "model.initialize: mine has no config.json; give a checkpoint's folder"


# -- LoRA -----------------------------------------------------------------------------------------------------------


ALONE = {"parameterServerCount": 0}


def training(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(values()["trainingInput"])
    return {"trainingInput": {**found, **changes}}


@pytest.mark.parametrize(
    "keys",
    [
        training(**ALONE),
        training(),
        training(**ALONE) | {"parallel": {"parallelism": "fsdp", "processes": 2}},
        training() | {"parallel": {"synchronization": "local", "every": 50}},
    ],
)
def test_lora_in_any_parallelism_is_another_run(root: Path, keys: dict[str, Any]) -> None:
    model_of(root)
    job = job_spec(stack(root, RUN, model={"lora": {"rank": 4}}, **keys))
    assert job.model.lora is not None
    assert job.run != job_spec(stack(root, RUN, **keys)).run


def test_lora_without_a_checkpoint_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.lora: trains a few parameters .* set model.initialize"):
        load.load({**values(), "model": {"size": "tiny", "lora": {}}, **training(**ALONE)}, "local", root)


def test_lora_takes_less_memory(root: Path) -> None:
    model_of(root)
    full, lora = (stack(root, RUN, model=keys, **training(**ALONE)) for keys in ({}, {"lora": {"rank": 8}}))
    size = workload.dimensions(lora)
    assert size is not None
    assert workload.trained(lora, size) == 16 * 8 * 128 * 4
    saved = size.parameters - workload.trained(lora, size)
    least = [memory.needs(read, resolve_fleet(read), size)[0].least for read in (full, lora)]
    assert 12 * saved < least[0] - least[1] < 13 * saved  # and the gradient of the table of tokens while it is made
    assert workload.checkpoint_bytes(lora, size) == 12 * 16 * 8 * 128 * 4


# -- Google Cloud ---------------------------------------------------------------------------------------------------


def on_google(root: Path, initialize: str, tokenizer: str = "checkpoint") -> StackConfig:
    changes = {"model": {"initialize": initialize}, "data.tokenizer": tokenizer}
    return google.load(google.changed(changes), root)


def test_google_machines_read_a_run_in_their_own_bucket(tmp_path: Path) -> None:
    there = google.make_root(tmp_path)
    stack = on_google(there, RUN)
    job = job_spec(stack)
    assert job.model.initialize == job.data.vocabulary_path == f"{stack.bucket}/runs/{RUN}/model"
    assert job.run.startswith("from-gpt2-4x128-")
    assert job_spec(on_google(there, f"{stack.bucket}/runs/{RUN}")) == job
    assert job_spec(on_google(there, f"gs://other/runs/{RUN}")).run != job.run


def test_google_stack_that_names_a_local_checkpoint_is_refused(tmp_path: Path) -> None:
    there = google.make_root(tmp_path)
    checkpoint(there / "mine")
    for named in ("mine", f"file:///there/runs/{RUN}"):
        with pytest.raises(ConfigError) as caught:
            job_spec(on_google(there, named))
        (line,) = caught.value.problems
        assert "copy it into a bucket" in line


def test_preview_refuses_a_run_that_is_not_in_the_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = google.make_root(tmp_path)
    stack = on_google(there, RUN)
    objects: list[str] = []

    def call(_: object, args: pulumi.runtime.MockCallArgs) -> Any:
        bucket = stack.bucket.removeprefix("gs://")
        found = [{"name": name} for name in objects if name.startswith(args.args.get("prefix", ""))]
        answer: dict[str, Any] = {"buckets": [{"name": bucket}], "repositories": [], "roles": [], "content": "{}"}
        return {**answer, "bucketObjects": found}, []

    monkeypatch.setattr(google_graph._Mocks, "call", call)
    said = f"model.initialize: {RUN} has no model in {stack.bucket}; finished are: "
    with pytest.raises(pulumi.RunError, match=f"{said}none"):
        google_graph.declare(stack)
    objects += ["runs/gpt2-4x128-00000000/model/manifest.json", "runs/gpt2-4x128-00000000/model/config.json"]
    with pytest.raises(pulumi.RunError, match=f"{said}gpt2-4x128-00000000$"):
        google_graph.declare(stack)
    objects.append(f"runs/{RUN}/model/manifest.json")
    assert google_graph.declare(stack)
