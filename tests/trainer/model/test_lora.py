"""LoRA: a run trains, sends and checkpoints only its matrices; peft and transformers load its export.

The runs are real: `python -m trainer` from a checkpoint's folder, as on any machine.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from infra import load
from infra.job import job_spec
from tests.trainer.running import Run, text
from trainer.contract import paths
from trainer.contract.options import Lora, Model
from trainer.data.tokenizer import from_bytes, save_tokenizer
from trainer.model.flat import Flat
from trainer.model.gpt2 import build
from trainer.model.loss import make_loss
from trainer.storage import manifest

LORA = {"rank": 4, "alpha": 16}
WIDTH, LAYERS, STEPS = 32, 2, 60
TRAINED = 16 * 4 * WIDTH * LAYERS  # matrices of rank 4 beside those of attention and the MLP


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint as transformers does, with a tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(5)
    shape = {"n_positions": 32, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=257, bos_token_id=256, eos_token_id=256, **shape)).save_pretrained(folder)
    save_tokenizer(from_bytes(), folder, 32)
    return folder


def start(base: Path, **lora: float) -> Model:
    return Model(initialize=str(base), lora=Lora.model_validate({**LORA, **lora}))


def run(folder: Path, base: Path, parallelism: str = "replicas", **cluster: int) -> Run:
    return Run(
        folder,
        model={"initialize": str(base), "lora": LORA},
        data={"tokenizer": "checkpoint", "vocabularyPath": str(base)},
        hyperparameters={"steps": STEPS, "warmupSteps": 5},
        evaluation={"every": STEPS},
        checkpoints={"every": 20, "keep": 9},
        parallel={"parallelism": parallelism},
        cluster=cluster,
    )


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a finished run of one trainer."""
    made = run(tmp_path_factory.mktemp("finished"), base)
    try:
        assert made.start().wait().state == "SUCCEEDED"
        yield made
    finally:
        made.end()


def exported(run: Run) -> Path:
    return run.folder / "runs" / run.spec.run / "model"


def newest_checkpoint(run: Run) -> Path:
    return sorted((run.folder / "runs" / run.spec.run / "checkpoints").iterdir())[-1]


def tokens() -> Tensor:
    return torch.randint(0, 257, (4, 32), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    result: Tensor = model.eval()(tokens()).logits
    return result


def test_lora_model_begins_as_the_checkpoint_with_matrices_of_the_seed(base: Path) -> None:
    first, again, other = (build(start(base), from_bytes(), 0.0, seed) for seed in (1, 1, 2))
    plain = build(Model(initialize=str(base)), from_bytes(), 0.0, 1)
    assert torch.equal(logits(first), logits(plain))
    cpu = torch.device("cpu")
    assert torch.equal(Flat(first, cpu).parameters, Flat(again, cpu).parameters)
    assert not torch.equal(Flat(first, cpu).parameters, Flat(other, cpu).parameters)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_lora_gradients_are_those_that_autograd_computes(base: Path, precision: torch.dtype | None) -> None:
    """The head's own backward pass leaves out the gradients that nobody needs."""
    model, cpu = build(start(base), from_bytes(), 0.0, 1), torch.device("cpu")
    flat = Flat(model, cpu)
    assert sum(size for _, _, size, _ in flat.layout) == TRAINED
    with torch.no_grad():  # this includes the matrices that begin as zero
        flat.parameters.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    make_loss(model, precision, cpu)(tokens(), tokens()).backward()  # type: ignore[no-untyped-call]
    ours = flat.gradients.clone()
    flat.gradients.zero_()
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        found = model(tokens()).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(found.float(), tokens().flatten(), reduction="sum").backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, flat.gradients, rtol=1e-4 if precision is None else 0.05, atol=0.02)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_lora_run_learns_and_checkpoints_only_its_matrices(finished: Run) -> None:
    losses = [loss for loss in finished.losses() if loss is not None]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.2  # the head of a model that never learned also stays as it was
    folder = newest_checkpoint(finished)
    vectors = load_file(next(folder.glob("*.safetensors")))
    assert {name: len(vector) for name, vector in vectors.items()} == dict.fromkeys(
        ("parameters", "moment1", "moment2"), TRAINED
    )
    assert all(".lora_" in name for name, *_ in json.loads((folder / paths.MANIFEST).read_text())["layout"])


def test_lora_export_holds_the_merged_model_and_the_adapter(finished: Run, base: Path) -> None:
    folder = exported(finished)
    assert not manifest.verify_manifest(folder)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(
        json.loads((folder / paths.MANIFEST).read_text())["files"]
    )
    model, original = GPT2LMHeadModel.from_pretrained(folder), GPT2LMHeadModel.from_pretrained(base)
    adapted = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), folder / "adapter")
    assert (logits(model) - logits(original)).abs().max() > 0.1
    torch.testing.assert_close(logits(model), logits(adapted), rtol=0, atol=1e-4)
    assert not any("lora" in name for name in model.state_dict())
    before, after = original.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{i}.{name}.weight" for i in range(LAYERS) for name in matrices}
    assert AutoTokenizer.from_pretrained(folder).encode("ab") == [97, 98]
    assert "LoRA of rank 4, alpha 16" in (folder / "README.md").read_text()


def test_lora_run_resumes_exactly_from_a_checkpoint(finished: Run, base: Path, tmp_path: Path) -> None:
    again = run(tmp_path / "again", base)
    try:
        checkpoints = f"runs/{again.spec.run}/checkpoints"
        for folder in sorted((finished.folder / checkpoints).glob("step-00000020-*")):
            shutil.copytree(folder, again.folder / checkpoints / folder.name)
        assert again.start().wait().state == "SUCCEEDED"
        assert again.losses() == finished.losses()[20:]
    finally:
        again.end()
    names = ["model.safetensors", "adapter/adapter_model.safetensors"]
    assert [(exported(again) / n).read_bytes() for n in names] == [(exported(finished) / n).read_bytes() for n in names]


def test_lora_run_of_two_machines_with_fsdp_and_servers_has_the_losses_of_one(
    finished: Run, base: Path, tmp_path: Path
) -> None:
    more = run(tmp_path / "more", base, "fsdp", workers=1, processes=2, parameterServers=2)
    try:
        assert more.start().wait().state == "SUCCEEDED"
        assert more.losses() == pytest.approx(finished.losses(), rel=1e-4)
        assert (exported(more) / "adapter/adapter_model.safetensors").is_file()
    finally:
        more.end()


def test_lora_dropout_depends_on_seed_step_and_index_alone(base: Path) -> None:
    """Evaluation has no dropout."""
    model, cpu = build(start(base, dropout=0.5), from_bytes(), 0.0, 1), torch.device("cpu")
    flat = Flat(model, cpu)
    with torch.no_grad():
        flat.parameters.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    loss = make_loss(model, None, cpu)

    def found(train: bool, seed: int) -> float:
        model.train(train)
        torch.manual_seed(seed)
        return float(loss(tokens(), tokens()).detach())

    assert found(True, 1) == found(True, 1) != found(True, 2)
    assert found(False, 1) == found(False, 2)


@pytest.mark.slow
def test_lora_run_from_a_finished_run_begins_where_that_one_ended(tmp_path: Path) -> None:
    """The stack file names the finished run; its vocabulary and model are found by that name."""
    bucket = tmp_path / "artifacts" / "local"
    first = Run(bucket, run="gpt2-2x32-00000000", hyperparameters={"steps": 150}, evaluation={"every": 150})
    second = None
    try:
        assert first.start().wait().state == "SUCCEEDED"
        (tmp_path / "other.txt").write_text(text(2000).upper())
        (tmp_path / "trainer").mkdir()
        hyper = {"learningRate": 0.01, "batchSize": 8, "sequenceLength": 32, "steps": 60, "warmupSteps": 5}
        stack = {
            "trainingInput": {"hyperparameters": hyper},
            "model": {"initialize": first.spec.run, "lora": LORA},
            "data": {"path": "other.txt", "tokenizer": "checkpoint"},
            "evaluation": {"every": 60, "sequences": 32},
        }
        second = Run(bucket)
        second.spec = job_spec(load.load(stack, "local", tmp_path))
        second.storage.upload(tmp_path / "other.txt", second.spec.data.path)
        second.write_spec()
        assert second.start().wait().state == "SUCCEEDED"
        assert (loss := second.losses()[0]) is not None
        assert loss > first.validation()[-1]  # the model knows small letters
        assert second.validation()[-1] < 0.8 * loss
        before, after = (GPT2LMHeadModel.from_pretrained(exported(run)) for run in (first, second))
        assert torch.equal(before.transformer.wte.weight, after.transformer.wte.weight)
        assert f"| started from | {exported(first)} |" in (exported(second) / "README.md").read_text()
    finally:
        first.end()
        if second is not None:
            second.end()
