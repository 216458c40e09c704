"""Optimizer, schedule and norm over flat vectors, compared with torch's own on ordinary tensors."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from transformers import GPT2LMHeadModel

from trainer.contract.options import Hyperparameters, Model
from trainer.data.tokenizer import from_bytes
from trainer.model.flat import Flat
from trainer.model.gpt2 import build
from trainer.model.layout import Ranges
from trainer.parallel.ownership import Ownership, norm_block
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import learning_rate

CPU = torch.device("cpu")
BLOCK = 256


@pytest.fixture
def model() -> GPT2LMHeadModel:
    return build(Model(layers=1, heads=2, width=24, positions=16), from_bytes(), dropout=0.0, seed=1)


def fill(flat: Flat, seed: int) -> None:
    """Write a gradient drawn from the seed into the flat vector, with zeros in the gaps."""
    generator = torch.Generator().manual_seed(seed)
    for _, start, size, _ in flat.layout:
        flat.gradients[start : start + size] = torch.randn(size, generator=generator)


def of_all(flat: Flat, hyper: Hyperparameters) -> Optimizer:
    total = len(flat.parameters)
    return Optimizer(flat.parameters, flat.gradients, segments(flat.layout, total, [(0, total)]), hyper)


def reference(model: GPT2LMHeadModel, flat: Flat, hyper: Hyperparameters) -> tuple[GPT2LMHeadModel, torch.optim.AdamW]:
    """Return a copy on ordinary tensors, made before any update, and torch's optimizer for it."""
    plain = copy.deepcopy(model)
    for parameter in plain.parameters():
        parameter.data = parameter.data.clone()
        parameter.grad = None
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() >= 2], "weight_decay": hyper.weight_decay},
        {"params": [p for p in plain.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return plain, torch.optim.AdamW(groups, betas=(hyper.beta1, hyper.beta2), eps=1e-8)


def give_gradients(flat: Flat, plain: GPT2LMHeadModel) -> None:
    parameters = dict(plain.named_parameters())
    for name, start, size, _ in flat.layout:
        parameters[name].grad = flat.gradients[start : start + size].clone().view(parameters[name].shape)


def assert_same(model: GPT2LMHeadModel, other: GPT2LMHeadModel) -> None:
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_adamw_updates_as_torchs_adamw_does(model: GPT2LMHeadModel) -> None:
    hyper = Hyperparameters(weight_decay=0.1, beta1=0.8, beta2=0.9)
    flat = Flat(model, CPU)
    plain, adamw = reference(model, flat, hyper)
    optimizer = of_all(flat, hyper)
    for step, rate in enumerate([0.01, 0.02, 0.005, 0.01]):
        fill(flat, step)
        give_gradients(flat, plain)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        optimizer.update(rate)
        assert_same(model, plain)
    assert optimizer.updates == 4
    assert all(float(vector.abs().sum()) > 0 for vector in optimizer.vectors)


def test_weight_decay_changes_matrices_only(model: GPT2LMHeadModel) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    flat = Flat(model, CPU)
    optimizer = of_all(flat, Hyperparameters(weight_decay=0.5))
    optimizer.update(0.1)  # without a gradient only decay is left
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter, before[name] * factor)


def test_adamw_continues_exactly_from_restored_vectors(model: GPT2LMHeadModel) -> None:
    hyper = Hyperparameters()
    flat = Flat(model, CPU)
    optimizer = of_all(flat, hyper)
    for step in range(3):
        fill(flat, step)
        optimizer.update(0.01)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data = parameter.data.clone()
    other_flat = Flat(other, CPU)
    resumed = of_all(other_flat, hyper)
    for target, source in zip(resumed.vectors, optimizer.vectors, strict=True):
        target.copy_(source)
    resumed.updates = optimizer.updates
    for each in (flat, other_flat):
        fill(each, 7)
    optimizer.update(0.01)
    resumed.update(0.01)
    assert torch.equal(flat.parameters, other_flat.parameters)
    assert resumed.updates == 4


def test_adamw_depends_on_the_number_of_updates(model: GPT2LMHeadModel) -> None:
    """Otherwise the test above would pass whether or not the number is restored."""
    flat = Flat(model, CPU)
    start = flat.parameters.clone()
    results = []
    for updates in (0, 10):
        optimizer = of_all(flat, Hyperparameters())
        optimizer.updates = updates
        flat.parameters.copy_(start)
        fill(flat, 1)
        optimizer.update(0.01)
        results.append(flat.parameters.clone())
    assert not torch.allclose(results[0], results[1])


def test_sgd_is_a_step_against_the_gradient(model: GPT2LMHeadModel) -> None:
    flat = Flat(model, CPU)
    optimizer = of_all(flat, Hyperparameters(optimizer="sgd", weight_decay=0.1))
    before = flat.parameters.clone()
    fill(flat, 1)
    optimizer.update(0.25)
    torch.testing.assert_close(flat.parameters, before - 0.25 * flat.gradients)
    assert optimizer.vectors == []
    optimizer.updates = 5  # nothing depends on this number
    assert optimizer.updates == 0


def test_gaps_between_tensors_stay_zero(model: GPT2LMHeadModel) -> None:
    flat = Flat(model, CPU)
    optimizer = of_all(flat, Hyperparameters())
    fill(flat, 1)
    optimizer.update(0.1)
    gaps = torch.ones_like(flat.parameters, dtype=torch.bool)
    for _, start, size, _ in flat.layout:
        gaps[start : start + size] = False
    assert int(gaps.sum()) > 0
    for vector in (flat.parameters, *optimizer.vectors):
        assert not vector[gaps].any()


# -- schedule ----------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    hyper = Hyperparameters(learning_rate=1.0, warmup_steps=10, steps=110, final_fraction=0.1)
    rates = [learning_rate(hyper, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # this is half-way between 1 and 0.1
    assert rates[110] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate(hyper, 10_000) == pytest.approx(0.1)


def test_learning_rate_of_the_constant_schedule_stays_constant_after_the_warm_up() -> None:
    hyper = Hyperparameters(learning_rate=0.5, warmup_steps=2, steps=10, schedule="constant")
    assert [learning_rate(hyper, step) for step in (0, 1, 2, 9)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (5, 5), (100, 10)])
def test_learning_rate_with_a_warm_up_as_long_as_the_run_stays_in_bounds(warmup: int, steps: int) -> None:
    hyper = Hyperparameters(learning_rate=1.0, warmup_steps=warmup, steps=steps)
    assert all(0 < learning_rate(hyper, step) <= 1.0 for step in range(steps + 1))


# -- norm --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 64])
def test_norm_equals_torchs(size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(size))
    assert norm(squares(vector, BLOCK)) == pytest.approx(float(torch.linalg.vector_norm(vector.double())), rel=1e-12)


@pytest.mark.parametrize("block", [BLOCK, 2**17])
def test_squares_are_those_of_each_block_whatever_the_number_of_threads(block: int) -> None:
    """Servers have one thread and trainers several. A block is alone in the last part that is computed at once."""
    size = 2**18 + 2**17 + 2**15 + 640
    vector = torch.randn(size, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, size)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(squares(vector, block))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    expected = [float(part.double().square().sum()) for part in torch.split(vector, block)]
    assert found[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_norm_of_zeros_is_zero() -> None:
    assert norm(squares(torch.zeros(100), BLOCK)) == 0.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, BLOCK + 3])
def test_norm_of_a_value_that_is_not_finite_is_not_finite(bad: float, place: int) -> None:
    vector = torch.ones(BLOCK + 64)
    vector[place] = bad
    assert not math.isfinite(norm(squares(vector, BLOCK)))


def test_norm_of_large_gradients_does_not_overflow() -> None:
    """In fp32 their squares would overflow."""
    assert norm(squares(torch.full((BLOCK + 64,), 1e30), BLOCK)) == pytest.approx(1e30 * math.sqrt(BLOCK + 64))


# -- shards ------------------------------------------------------------------------------------------------------------


def cut(vector: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Return the part of a flat vector that a server with these ranges holds."""
    return torch.cat([vector[start:stop] for start, stop in ranges])


def shards_of(total: int, servers: int) -> list[Ranges]:
    """Cut the vector like the parameter servers of a larger model: in several buckets."""
    shards = Ownership(total, servers, bucket=4096)
    assert len(shards.buckets) > 3
    return [shards.owned(server) for server in range(servers)]


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}], ids=["adamw", "sgd"])
def test_servers_update_as_one_process_does(model: GPT2LMHeadModel, servers: int, settings: dict[str, str]) -> None:
    """The results are equal bit for bit, decay included, wherever the vector is cut."""
    hyper = Hyperparameters.model_validate({"weightDecay": 0.1, **settings})
    flat = Flat(model, CPU)
    total = len(flat.parameters)
    whole = of_all(flat, hyper)
    owned = shards_of(total, servers)
    parameters = [cut(flat.parameters, ranges) for ranges in owned]
    gradients = [torch.zeros(len(vector)) for vector in parameters]
    parts = [
        Optimizer(vector, gradient, segments(flat.layout, total, ranges), hyper)
        for vector, gradient, ranges in zip(parameters, gradients, owned, strict=True)
    ]
    for step in range(3):
        fill(flat, step)
        for gradient, ranges in zip(gradients, owned, strict=True):
            gradient.copy_(cut(flat.gradients, ranges))
        for optimizer in (whole, *parts):
            optimizer.update(0.01)
    for vector, optimizer, ranges in zip(parameters, parts, owned, strict=True):
        assert torch.equal(vector, cut(flat.parameters, ranges))
        for own, all_ in zip(optimizer.vectors, whole.vectors, strict=True):
            assert torch.equal(own, cut(all_, ranges))


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_norm_does_not_depend_on_the_number_of_servers(servers: int) -> None:
    """It is equal bit for bit: each server squares its own blocks, and they are summed in the order of the vector."""
    total = 3 * 64 * 8192 + 640  # with this size a block has 256 elements, and the last one fewer
    block = norm_block(total)
    assert block == 256
    vector = torch.randn(total, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, total)
    shards = Ownership(total, servers, bucket=100_000)
    found = torch.zeros(-(-total // block), dtype=torch.float64)
    for server in range(servers):
        own, first = squares(cut(vector, shards.owned(server)), block), 0
        for start, stop in shards.owned(server):
            count = -(-(stop - start) // block)
            found[start // block : start // block + count] = own[first : first + count]
            first += count
        assert first == len(own)
    assert torch.equal(found, squares(vector, block))
    assert norm(found) == norm(squares(vector, block))


def test_optimizer_of_a_server_without_parameters_updates_nothing() -> None:
    """There are more servers than blocks."""
    optimizer = Optimizer(torch.zeros(0), torch.zeros(0), segments([("a", 0, 64, True)], 64, []), Hyperparameters())
    optimizer.updates = 3
    optimizer.update(0.1)
    assert squares(torch.zeros(0), 64).shape == (0,)
