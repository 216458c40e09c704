"""The one model of a trainer's memory, compared with the tensors of real steps."""

from dataclasses import replace
from typing import Any, Literal
from weakref import finalize

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.contract import geometry, memory
from trainer.contract.memory import TrainerProcess
from trainer.contract.options import SIZES, Hyperparameters, Parallel
from trainer.model import recompute
from trainer.model.gpt2 import ATTENTION, TRAINED_ACTIVATION
from trainer.model.loss import make_loss

GIB = 2**30


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors that operations make, while they live. `known` tensors are not counted."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._bytes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._bytes:
                storage = tensor.untyped_storage()
                self._bytes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                finalize(storage, self._free, storage._cdata)
        self.most = max(self.most, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


def peak_bytes(size: geometry.Dimensions, rows: int, half: bool, mode: Literal["none", "attention", "block"]) -> int:
    """Return the most bytes of tensors that live in a forward and a backward pass, parameters and gradients apart."""
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=size.positions,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=4,
        activation_function=TRAINED_ACTIVATION,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = ATTENTION
    model, gradients = GPT2LMHeadModel(config), []
    recompute.apply(model, mode)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    loss = make_loss(model, torch.bfloat16 if half else None, torch.device("cpu"))
    tokens = torch.zeros((rows, size.positions), dtype=torch.int64)
    live = LiveTensors([*model.parameters(), *gradients])
    with live:
        loss(tokens, tokens).backward()  # type: ignore[no-untyped-call]
    return live.most


def process(size: geometry.Dimensions, *, fsdp: bool = False, lora: int = 0, **changed: Any) -> TrainerProcess:
    """Return a process that trains a model. lora: its trained parameters, if not all."""
    fields = {key: changed.pop(key) for key in ("processes", "half", "servers", "gpu") if key in changed}
    parallel = Parallel(parallelism="fsdp" if fsdp else "replicas")
    return TrainerProcess(size, Hyperparameters(**changed), parallel, lora or size.parameters, **fields)


def published(name: str) -> geometry.Dimensions:
    layers, _, width = SIZES[name]
    return geometry.Dimensions(layers, width, 1024, 50304)


@pytest.mark.parametrize("mode", ["none", "attention", "block"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("size", "chunk"),
    [(geometry.Dimensions(4, 128, 64, 256), 4096), (geometry.Dimensions(2, 64, 64, 4096), 128)],
    ids=["activations", "logits"],
)
def test_held_bytes_are_those_of_a_real_step(
    monkeypatch: pytest.MonkeyPatch,
    size: geometry.Dimensions,
    chunk: int,
    half: bool,
    mode: Literal["none", "attention", "block"],
) -> None:
    monkeypatch.setattr(geometry, "LOGIT_CHUNK", chunk)
    predicted = memory.held(process(size, half=half, sequence_length=64, recompute=mode), rows=8)
    assert predicted.total - predicted.state == pytest.approx(peak_bytes(size, 8, half, mode), rel=0.07)


@pytest.mark.parametrize(
    ("changed", "bytes_of_a_parameter"),
    [
        ({}, 16),
        ({"optimizer": "sgd"}, 8),
        ({"processes": 8}, 10),  # parameters and gradients, and an eighth of both and of the moments
        ({"processes": 8, "fsdp": True}, 2),
        ({"servers": True}, 8),
    ],
)
def test_state_bytes_are_shared_among_the_processes_of_a_machine(
    changed: dict[str, Any], bytes_of_a_parameter: float
) -> None:
    size = published("gpt2")
    assert memory.state_bytes(process(size, **changed)) == bytes_of_a_parameter * size.parameters


def test_fsdp_never_holds_the_whole_model() -> None:
    size = published("gpt2-xl")
    parts = memory.held(process(size, fsdp=True, processes=8, half=True, recompute="block"), rows=1)
    assert parts.state + parts.copies < 4 * size.parameters


def test_recompute_lowers_what_a_step_holds() -> None:
    size, held = published("gpt2-medium"), []
    for mode in ("none", "attention", "block"):
        held.append(memory.held(process(size, half=True, recompute=mode), rows=16).total)
    assert held == sorted(held, reverse=True)
    assert held[2] < 0.5 * held[0]


@given(
    st.sampled_from(["tiny", "gpt2", "gpt2-xl"]),
    st.sampled_from(["none", "attention", "block"]),
    st.sampled_from([1, 8]),
    st.booleans(),
    st.floats(1, 200),
)
def test_fitting_rows_fit_and_one_more_does_not(
    name: str, mode: str, processes: int, fsdp: bool, gigabytes: float
) -> None:
    layers, _, width = SIZES[name]
    size = geometry.Dimensions(layers, width, 1024, 50304)
    one = process(size, half=True, recompute=mode, processes=processes, fsdp=fsdp)
    rows = memory.fitting_rows(one, gigabytes * GIB)
    most = memory.MOST_TOKENS // 1024
    assert 0 <= rows <= most
    assert rows == 0 or memory.usual_bytes(one, rows) <= gigabytes * GIB
    assert rows == most or memory.usual_bytes(one, rows + 1) > gigabytes * GIB


def test_fitting_rows_of_published_models_are_those_of_practice() -> None:
    gpt2 = process(published("gpt2"), half=True)
    assert memory.fitting_rows(gpt2, 79 * GIB) == 64  # as in llm.c and build-nanogpt
    assert 16 <= memory.fitting_rows(gpt2, 14.6 * GIB) < memory.fitting_rows(gpt2, 22 * GIB) < 64
    xl = process(published("gpt2-xl"), half=True)
    assert [memory.fitting_rows(xl, gigabytes * GIB) for gigabytes in (0, 22, 39.5)] == [0, 0, 2]


def test_fitting_rows_of_an_explicit_micro_batch_do_not_depend_on_memory() -> None:
    assert memory.fitting_rows(process(published("gpt2"), micro_batch_size=100), 1) == 100


def test_fitting_rows_of_a_cpu_fit_its_memory_up_to_where_more_brings_no_speed() -> None:
    on_a_cpu = replace(process(published("gpt2")), gpu=False)
    most = geometry.MICRO_BATCH_TOKENS // 1024
    assert [memory.fitting_rows(on_a_cpu, gigabytes * GIB) for gigabytes in (0, 1, 100)] == [most, 0, most]
    assert 1 <= memory.fitting_rows(on_a_cpu, 7.2 * GIB) < 7  # of an n1-highcpu-8


def test_fsdp_keeps_whole_gradients_where_they_fit() -> None:
    large = process(published("gpt2-xl"), fsdp=True, processes=8, half=True)
    assert memory.keeps_whole_gradients(large, 4, 79 * GIB)
    assert not memory.keeps_whole_gradients(large, memory.fitting_rows(large, 24 * GIB), 24 * GIB)
