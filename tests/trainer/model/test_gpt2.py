"""The model, its flat vectors and its loss, compared with what transformers and torch compute."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from trainer.contract import geometry
from trainer.contract.errors import InputError
from trainer.contract.options import Model
from trainer.data.tokenizer import from_bytes, save_tokenizer
from trainer.model import fetch
from trainer.model.export import _exportable
from trainer.model.flat import Flat
from trainer.model.gpt2 import EXPORTED_ACTIVATION, TRAINED_ACTIVATION, build
from trainer.model.layout import ALIGNMENT
from trainer.model.loss import make_loss
from trainer.storage.base import Entries, Refused
from trainer.storage.factory import open_storage
from trainer.storage.local import FileStorage
from trainer.storage.manifest import write_manifest

CPU = torch.device("cpu")
SMALL = Model(layers=2, heads=2, width=24, positions=16)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return from_bytes()


@pytest.fixture
def model(tokenizer: Tokenizer) -> GPT2LMHeadModel:
    return build(SMALL, tokenizer, dropout=0.0, seed=1).eval()


def batch(rows: int = 3, length: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 257, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def reference(model: GPT2LMHeadModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model(inputs).logits
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def gradients(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_loss_is_that_of_transformers_times_the_tokens(model: GPT2LMHeadModel) -> None:
    tokens = batch()[0]
    with torch.no_grad():
        # The model predicts the token after each but the last.
        own = model(tokens, labels=tokens).loss * tokens[:, 1:].numel()
        ours = make_loss(model, None, CPU)(tokens[:, :-1], tokens[:, 1:])
    assert float(ours) == pytest.approx(float(own), rel=1e-5)


def test_gradients_of_the_loss_are_those_of_cross_entropy(model: GPT2LMHeadModel) -> None:
    inputs, targets = batch()
    reference(model, inputs, targets).backward()
    wanted = gradients(model)
    model.zero_grad()
    make_loss(model, None, CPU)(inputs, targets).backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [1, 7, 16, 48, 1000])
def test_loss_in_chunks_equals_the_whole_loss(
    model: GPT2LMHeadModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, targets = batch()
    loss = make_loss(model, None, CPU)
    whole = loss(inputs, targets)
    whole.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(geometry, "LOGIT_CHUNK", chunk)
    parts = loss(inputs, targets)
    parts.backward()  # type: ignore[no-untyped-call]
    assert float(parts.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)


def test_loss_with_a_scale_multiplies_the_gradient_alone(model: GPT2LMHeadModel) -> None:
    inputs, targets = batch()
    loss = make_loss(model, None, CPU)
    plain = loss(inputs, targets)
    plain.backward()  # type: ignore[no-untyped-call]
    wanted = gradients(model)
    model.zero_grad()
    scaled = loss(inputs, targets, torch.tensor(8.0))
    scaled.backward()  # type: ignore[no-untyped-call]
    assert scaled.item() == plain.item()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient / 8.0, wanted[name], rtol=1e-5, atol=1e-5)


def test_loss_without_gradients_has_the_same_value(model: GPT2LMHeadModel) -> None:
    inputs, targets = batch()
    with torch.no_grad():
        loss = make_loss(model, None, CPU)(inputs, targets)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(reference(model, inputs, targets)), rel=1e-5)


def test_loss_in_bf16_is_near_that_in_fp32(model: GPT2LMHeadModel) -> None:
    inputs, targets = batch()
    exact = float(make_loss(model, None, CPU)(inputs, targets))
    half = make_loss(model, torch.bfloat16, CPU)(inputs, targets)
    half.backward()  # type: ignore[no-untyped-call]
    assert float(half) == pytest.approx(exact, rel=2e-2)
    assert float(half) != exact  # the precision did change
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


# -- the flat vectors --------------------------------------------------------------------------------------------------


def test_flat_vectors_hold_the_models_parameters(model: GPT2LMHeadModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = Flat(model, CPU)
    assert all(start % ALIGNMENT == 0 for _, start, _, _ in flat.layout)
    names = [name for name, _, _, _ in flat.layout]
    assert names == [name for name, _ in reversed(list(model.named_parameters()))]
    assert "lm_head.weight" not in names  # it is tied to transformer.wte.weight, which is there once
    assert names.count("transformer.wte.weight") == 1
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    ends = [start + size for _, start, size, _ in flat.layout]
    assert all(end <= start for end, (_, start, _, _) in zip(ends, flat.layout[1:], strict=False))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # the value was moved, not changed
    with torch.no_grad():
        flat.parameters.fill_(0.5)
    assert all(bool((p == 0.5).all()) for p in model.parameters())


def test_gradients_are_summed_in_the_flat_vector(model: GPT2LMHeadModel) -> None:
    flat = Flat(model, CPU)
    inputs, targets = batch()
    make_loss(model, None, CPU)(inputs, targets).backward()  # type: ignore[no-untyped-call]
    once = flat.gradients.clone()
    assert float(once.abs().sum()) > 0
    for (_, start, size, _), parameter in zip(flat.layout, reversed(list(model.parameters())), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == flat.gradients[start : start + size].data_ptr()
        assert bool((flat.gradients[start + size : -(-(start + size) // ALIGNMENT) * ALIGNMENT] == 0).all())
    make_loss(model, None, CPU)(inputs, targets).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(flat.gradients, 2 * once)  # Micro-batches add up


def test_weight_decay_applies_to_matrices_and_not_to_vectors(model: GPT2LMHeadModel) -> None:
    flat = Flat(model, CPU)
    decayed = {name: decays for name, _, _, decays in flat.layout}
    assert decayed == {name: parameter.dim() == 2 for name, parameter in model.named_parameters()}
    assert len(set(decayed.values())) == 2


# -- building and exporting --------------------------------------------------------------------------------------------


def test_vocabulary_is_padded_for_training_and_cut_for_export(tokenizer: Tokenizer, model: GPT2LMHeadModel) -> None:
    assert model.config.vocab_size == 320  # 257 is padded to a multiple of 64
    assert model.config.activation_function == TRAINED_ACTIVATION
    exported = _exportable(model, tokenizer.get_vocab_size())
    assert (exported.config.vocab_size, exported.config.activation_function) == (257, EXPORTED_ACTIVATION)
    assert exported.transformer.wte.weight.shape == (257, 24)
    assert model.config.vocab_size == 320  # the model in training is unchanged


def test_exported_model_has_the_logits_of_the_trained_one(
    tokenizer: Tokenizer, model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    inputs, _ = batch()
    with torch.no_grad():
        trained = model(inputs).logits[..., :257]
        _exportable(model, tokenizer.get_vocab_size()).save_pretrained(tmp_path)
        loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(inputs).logits, trained, rtol=0, atol=1e-5)


def test_build_with_the_same_seed_gives_the_same_model(tokenizer: Tokenizer, model: GPT2LMHeadModel) -> None:
    again, other = build(SMALL, tokenizer, 0.0, seed=1), build(SMALL, tokenizer, 0.0, seed=2)
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(model.transformer.wte.weight, other.transformer.wte.weight)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a checkpoint's folder as transformers does."""

    def make(vocabulary: int = 257, name: str = "checkpoint", **settings: Any) -> Path:
        config = GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=24, n_layer=2, n_head=2, **settings)
        torch.manual_seed(5)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_checkpoint_is_loaded_with_the_logits_of_the_original(
    tokenizer: Tokenizer, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint()
    loaded, original = build(Model(initialize=str(folder)), tokenizer, 0.0, 1), GPT2LMHeadModel.from_pretrained(folder)
    inputs, _ = batch()
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(inputs).logits, original.eval()(inputs).logits, rtol=0, atol=1e-5)
    assert loaded.config.activation_function == TRAINED_ACTIVATION
    assert loaded.transformer.h[0].attn.attn_dropout.p == 0.0  # the checkpoint's own value is 0.1
    assert loaded.dtype == torch.float32


def test_checkpoint_with_as_many_other_tokens_is_refused(tokenizer: Tokenizer, checkpoint: Callable[..., Path]) -> None:
    """A tokenizer.json in the checkpoint's folder shows the difference."""
    folder = checkpoint(tokenizer.get_vocab_size())
    save_tokenizer(tokenizer, folder, 16)
    assert build(Model(initialize=str(folder)), tokenizer, 0.0, 1)
    (folder / "tokenizer.json").write_text(json.dumps(exchanged(json.loads(tokenizer.to_str()))))
    assert "has other tokens than the tokenizer, even if as many; set data.tokenizer" in refused(tokenizer, folder)


def exchanged(found: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json whose tokens "a" and "b" have each other's ids."""
    entries = found["model"]["vocab"]
    entries["a"], entries["b"] = entries["b"], entries["a"]
    return found


def refused(tokenizer: Tokenizer, source: object) -> str:
    with pytest.raises(InputError) as caught:
        build(Model(initialize=str(source)), tokenizer, 0.0, 1)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("model.initialize: ")
    assert str(source) in line
    return line


def test_checkpoint_that_does_not_exist_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert "no config.json" in refused(tokenizer, tmp_path / "nowhere")


def test_checkpoint_in_an_empty_folder_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert "no config.json" in refused(tokenizer, tmp_path)


class _OneModel(FileStorage):
    """A bucket whose list of runs is refused."""

    def list(self, prefix: str) -> Entries:
        if prefix == "runs":
            raise Refused("no permission")
        return super().list(prefix)


def test_checkpoint_of_an_unfinished_run_in_a_bucket_is_refused(
    tokenizer: Tokenizer, checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "bucket" / "runs"
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(fetch, "open_storage", lambda url: open_storage(str(tmp_path / "bucket")))
    source = "gs://bucket/runs/one/model"
    assert refused(tokenizer, source).endswith(f"there is nothing at {source}; finished runs there: none")
    with monkeypatch.context() as on_google:
        on_google.setattr(fetch, "open_storage", lambda url: _OneModel(tmp_path / "bucket"))
        assert refused(tokenizer, source).endswith("; give the address of a finished run")
    shutil.copytree(folder := checkpoint(), runs / "two" / "model")
    write_manifest(runs / "two" / "model")
    assert refused(tokenizer, source).endswith("; finished runs there: two")
    shutil.copytree(folder, runs / "one" / "model")
    assert "is not whole (manifest.json is missing); wait for its run to end" in refused(tokenizer, source)
    assert build(Model(initialize="gs://bucket/runs/two/model"), tokenizer, 0.0, 1).config.n_layer == 2


def test_checkpoint_of_another_kind_of_model_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    assert "llama" in refused(tokenizer, tmp_path)


def test_checkpoint_with_pickled_weights_is_refused(tokenizer: Tokenizer, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused(tokenizer, folder)


def test_checkpoint_with_a_vocabulary_smaller_than_the_tokenizers_is_refused(
    tokenizer: Tokenizer, checkpoint: Callable[..., Path]
) -> None:
    line = refused(tokenizer, checkpoint(vocabulary=100))
    assert "100 tokens" in line
    assert "257" in line


def test_checkpoint_with_another_activation_is_refused(tokenizer: Tokenizer, checkpoint: Callable[..., Path]) -> None:
    assert "relu" in refused(tokenizer, checkpoint(activation_function="relu"))


def test_checkpoint_with_missing_weights_is_refused(tokenizer: Tokenizer, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.attn.c_attn.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "transformer.h.1.attn.c_attn.weight" in refused(tokenizer, folder)


def test_damaged_checkpoint_is_refused(tokenizer: Tokenizer, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(tokenizer, folder)


def test_checkpoint_with_weights_of_another_size_is_refused(
    tokenizer: Tokenizer, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    refused(tokenizer, folder)
