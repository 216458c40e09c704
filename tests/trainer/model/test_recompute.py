"""Recomputed activations: the same gradients, bit for bit, and less memory between the two passes."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract.options import Lora, Model
from trainer.data.tokenizer import from_bytes
from trainer.model import lora, recompute
from trainer.model.gpt2 import build
from trainer.model.loss import make_loss

Mode = Literal["none", "attention", "block"]
CPU, LENGTH = torch.device("cpu"), 16
TOKENS = torch.randint(0, 257, (3, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def new_model(mode: Mode, dropout: float = 0.0) -> GPT2LMHeadModel:
    model = build(Model(layers=3, heads=2, width=24, positions=LENGTH), from_bytes(), dropout, 1).train(dropout > 0)
    recompute.apply(model, mode)
    return model


def gradients(model: GPT2LMHeadModel, precision: torch.dtype | None = None) -> list[Tensor]:
    torch.manual_seed(3)
    make_loss(model, precision, CPU)(TOKENS[:, :-1], TOKENS[:, 1:]).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def saved(mode: Mode, precision: torch.dtype | None) -> int:
    """Return the bytes of the activations that are kept between the forward and the backward pass."""
    model, kept = new_model(mode), dict[int, int]()
    known = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known and tensor.shape[-1:] != (LENGTH + 1,):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loss = make_loss(model, precision, CPU)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(TOKENS[:, :-1], TOKENS[:, 1:])
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("mode", ["attention", "block"])
def test_recompute_has_the_gradients_of_none_bit_for_bit(
    mode: Mode, dropout: float, precision: torch.dtype | None
) -> None:
    wanted = gradients(new_model("none", dropout), precision)
    found = gradients(new_model(mode, dropout), precision)
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("mode", ["attention", "block"])
def test_recompute_with_lora_and_dropout_has_the_gradients_of_none(mode: Mode) -> None:
    def adapted(mode: Mode) -> GPT2LMHeadModel:
        model = lora.adapt(new_model("none"), Lora(rank=2, alpha=4, dropout=0.3), 1).train()
        recompute.apply(model, mode)
        return model

    found = gradients(adapted(mode))
    wanted = gradients(adapted("none"))
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_recompute_keeps_fewer_bytes_the_more_it_computes_again(precision: torch.dtype | None) -> None:
    kept = [saved(mode, precision) for mode in get_args(Mode)]
    assert kept[0] > 1.2 * kept[1] > 1.2**2 * kept[2]


@pytest.mark.parametrize("mode", ["attention", "block"])
def test_recompute_without_gradients_keeps_the_models_output(mode: Mode) -> None:
    with torch.no_grad():
        wanted, found = (new_model(m)(TOKENS[:, :-1]).logits for m in ("none", mode))
    assert torch.equal(found, wanted)
