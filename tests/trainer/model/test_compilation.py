"""torch.compile of the blocks and the head: compiled once, equal to the eager loss, and never the end of a run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GPT2LMHeadModel

from trainer.contract.options import Model
from trainer.data.tokenizer import from_bytes
from trainer.model import recompute
from trainer.model.compilation import Compiler
from trainer.model.gpt2 import build
from trainer.model.loss import Loss, counted_positions, make_loss

CPU, LENGTH = torch.device("cpu"), 16


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Compile without C++, which takes seconds a graph. Return a function that counts the graphs."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def new_model(dropout: float = 0.0, layers: int = 2) -> GPT2LMHeadModel:
    model = build(Model(layers=layers, heads=1, width=8, positions=LENGTH), from_bytes(), dropout, seed=1)
    return model.train(dropout > 0)


def rows(count: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 257, (count, length + 1), generator=torch.Generator().manual_seed(count))
    return tokens[:, :-1], tokens[:, 1:]


def compiled(model: GPT2LMHeadModel, log: Callable[[str], None], precision: Any = None, **settings: bool) -> Loss:
    compiler = Compiler(log, **settings)
    compiler.blocks(model)
    return make_loss(model, precision, CPU, compiler)


def differentiated(loss: Loss, model: GPT2LMHeadModel, *arguments: Any) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    result = loss(*arguments)
    result.backward()  # type: ignore[no-untyped-call]
    return [result.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def test_compiled_loss_is_compiled_once_for_all_scales_and_numbers_of_rows(traced: Callable[[], int]) -> None:
    model, said = new_model(), list[str]()
    loss = compiled(model, said.append)
    for scale, count in ((4.0, 5), (4.0, 4), (8.0, 2), (16.0, 5), (0.0, 3)):
        differentiated(loss, model, *rows(count), torch.tensor(scale))
    assert traced() == 2  # one for all blocks, one for the head
    with torch.no_grad():
        for count in (5, 4, 2):
            loss(*rows(count))
    assert traced() == 3  # the blocks without gradients
    differentiated(loss, model, *rows(1), torch.tensor(4.0))
    assert traced() == 4  # the blocks for a single row
    assert said == []


def test_compiled_loss_in_fp16_is_compiled_once_for_all_scales(traced: Callable[[], int]) -> None:
    model, said = new_model(), list[str]()
    loss = compiled(model, said.append, torch.float16)
    for scale in (2.0**16, 2.0**17, 2.0**15):
        differentiated(loss, model, *rows(3), torch.tensor(scale))
    assert (traced(), said) == (2, [])


def test_compiled_loss_of_pairs_is_compiled_once_for_all_widths(traced: Callable[[], int]) -> None:
    model, eager_model, said = new_model(), new_model(), list[str]()
    loss, eager = compiled(model, said.append, widths=True), make_loss(eager_model, None, CPU)
    for count, length in ((5, 16), (4, 8), (2, 16), (3, 12)):
        inputs, targets = rows(count, length)
        targets = targets.masked_fill(targets % 3 > 0, -100)
        arguments = inputs, targets, torch.tensor(1.0), counted_positions(targets)
        found, wanted = differentiated(loss, model, *arguments), differentiated(eager, eager_model, *arguments)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (traced(), said) == (2, [])


@pytest.mark.parametrize("mode", ["attention", "block"])
def test_compiled_loss_with_recompute_and_dropout_has_the_gradients_of_neither(
    mode: Any, traced: Callable[[], int]
) -> None:
    model, eager_model, said = new_model(0.2), new_model(0.2), list[str]()
    recompute.apply(model, mode)
    found = differentiated(compiled(model, said.append), model, *rows(3))
    wanted = differentiated(make_loss(eager_model, None, CPU), eager_model, *rows(3))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (traced(), said) == (2, [])


def test_compiled_blocks_are_left_to_the_loss_alone(traced: Callable[[], int]) -> None:
    """Samples are one row that grows: each length would be compiled."""
    model = new_model()
    compiled(model, print)
    with torch.no_grad():
        for length in (3, 4, 5):
            model.transformer(rows(1, length)[0], use_cache=False)
    assert traced() == 0


def test_compiled_loss_without_a_compiler_continues_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*_: object, **__: object) -> Callable[..., Tensor]:
        def fails(*_: object, **__: object) -> Tensor:
            raise RuntimeError("no C++ compiler\nand a long explanation")

        return fails

    monkeypatch.setattr(torch, "compile", compile_)
    model, said = new_model(), list[str]()
    eager = make_loss(new_model(), None, CPU)
    loss = compiled(model, said.append)
    with torch.no_grad():
        assert [float(loss(*rows(3))) for _ in range(2)] == [float(eager(*rows(3)))] * 2
    assert said == ["torch.compile failed (no C++ compiler); continuing without it"]


def test_compiled_loss_in_a_torch_without_compile_continues_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    monkeypatch.setattr(torch, "compile", compile_)
    said: list[str] = []
    assert float(compiled(new_model(), said.append)(*rows(2))) > 0
    assert len(said) == 1


@pytest.mark.slow
def test_compiled_loss_in_c_has_the_value_and_gradients_of_the_eager_one() -> None:
    model, eager_model, said = new_model(layers=1), new_model(layers=1), list[str]()
    found = differentiated(compiled(model, said.append), model, *rows(3))
    wanted = differentiated(make_loss(eager_model, None, CPU), eager_model, *rows(3))
    assert said == []
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
