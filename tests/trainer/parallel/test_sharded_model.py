"""A model in shards, in two real processes on gloo: the same losses, gradients and parameters as a whole one."""

import json
import os
import sys
from typing import Any

import pytest

from tests.trainer.parallel.sharded_process import new_model
from tests.trainer.running import PATIENCE, ROOT
from tests.warm import Process
from trainer.model.flat import layout_of

pytestmark = pytest.mark.slow

PROCESSES = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each process has found of each case."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.trainer.parallel.sharded_process", str(folder), str(PROCESSES)]
    first = Process(command, ROOT, os.environ)
    try:
        assert first.wait(PATIENCE) == 0
    finally:
        first.kill()
        first.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


def assert_equal_to_the_whole_model(steps: list[dict[str, float]]) -> None:
    for step in steps:
        assert step["loss"] < 1e-6
        assert step["gradient"] < 1e-6
        assert step.get("evaluated", 0.0) < 1e-6


@pytest.mark.parametrize(
    "case",
    ["steps", "each_reduced", "one_of_the_processes_without_rows", "given_up", "pairs", "adapted", "recomputed"],
)
def test_sharded_model_has_the_losses_and_gradients_of_the_whole_one(found: list[dict[str, Any]], case: str) -> None:
    """Of every kind of step: with updates between them, uneven passes, LoRA, recomputed activations."""
    for process in found:
        assert_equal_to_the_whole_model(process[case])


def test_sharded_model_in_bf16_computes_as_exactly_as_the_whole_one(found: list[dict[str, Any]]) -> None:
    for process in found:
        difference, (sharded, alone), exact = process["in_bf16"]
        assert_equal_to_the_whole_model([difference])
        assert sharded == pytest.approx(alone, rel=1e-3)
        assert 1e-3 < sharded / exact < 2e-2  # it is rounded


def test_sharded_model_compiles_one_block_for_all(found: list[dict[str, Any]]) -> None:
    for process in found:
        *steps, compilation = process["compiled"]
        assert_equal_to_the_whole_model(steps)
        assert compilation == {"graphs": 2, "said": []}  # a block and the head


def test_sharded_model_lets_gradients_travel_before_the_backward_pass_has_ended(found: list[dict[str, Any]]) -> None:
    for process in found:
        before, after = process["early"]
        assert not any(before)
        assert all(after)


def test_sharded_model_gives_the_whole_model_to_the_first_process_and_takes_another(
    found: list[dict[str, Any]],
) -> None:
    first, second = (process["whole"] for process in found)
    assert first[0]
    assert all(first[0])
    assert (first[1], second[:2]) == (False, [[], True])
    assert max(first[2], second[2]) < 1e-6


def test_sharded_model_owns_every_element_once(found: list[dict[str, Any]]) -> None:
    ranges = [process["lanes"] for process in found]
    layout = layout_of(new_model())
    owned = sorted(place for own in ranges for start, stop in own for place in range(start, stop))
    assert owned == [place for _, start, size, _ in layout for place in range(start, start + size)]
    sizes = [sum(stop - start for start, stop in own) for own in ranges]
    assert max(sizes) < 1.1 * min(sizes)
