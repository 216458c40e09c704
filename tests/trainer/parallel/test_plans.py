"""Both plans with one to three servers, in many buckets, beside one process: the same losses. Members are threads here.

Runs of real machines, which test_ps_server.py has, are too small for a second bucket of the usual size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.running import Run
from tests.trainer.together import small, together
from trainer.parallel.ownership import Ownership

pytestmark = pytest.mark.slow
STEPS = 50
BUCKETS = 8


@pytest.fixture(scope="module", autouse=True)
def many_buckets() -> Any:
    """Of the model's 30,000 parameters."""
    patch = pytest.MonkeyPatch()
    patch.setattr(Ownership.__init__, "__defaults__", (4096,))
    assert len(Ownership(30_000, 2).buckets) == BUCKETS
    yield
    patch.undo()


def taken(folder: Path, **overrides: Any) -> Run:
    run = small(folder, STEPS, **overrides)
    together(run)
    assert len(run.losses()) == STEPS
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return taken(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("plan", ["star", "hierarchical"])
def test_two_trainers_and_servers_compute_what_one_process_does(
    tmp_path: Path, alone: Run, plan: str, servers: int
) -> None:
    run = taken(tmp_path, parallel={"plan": plan}, cluster={"workers": 1, "parameterServers": servers})
    assert run.losses() == alone.losses()
    assert run.validation() == pytest.approx(alone.validation(), abs=1e-6)


def test_a_compiled_model_waits_for_its_parameters(tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled graph calls no hook that would wait for a bucket. What is compiled does not matter here."""

    def compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    run = taken(tmp_path, hyperparameters={"compile": True}, cluster={"workers": 1, "parameterServers": 2})
    assert run.losses() == alone.losses()


def test_without_clipping_parameters_come_back_while_gradients_go(tmp_path: Path) -> None:
    unclipped = {"gradientClip": 0.0, "batchSize": 15}  # 480 tokens: to divide is not to multiply by the inverse
    calm = taken(tmp_path / "calm", hyperparameters=unclipped, cluster={"workers": 1})
    cluster = {"workers": 1, "parameterServers": 2}
    run = taken(tmp_path / "run", hyperparameters=unclipped, cluster=cluster)
    assert run.losses() == calm.losses()
    assert run.validation() == pytest.approx(calm.validation(), abs=1e-6)


@pytest.mark.parametrize("plan", ["star", "hierarchical"])
def test_bf16_on_the_wire_stays_near(tmp_path: Path, alone: Run, plan: str) -> None:
    run = taken(tmp_path, parallel={"plan": plan, "wire": "bf16"}, cluster={"workers": 1, "parameterServers": 2})
    assert run.losses() != alone.losses()  # it really travels rounded
    assert run.losses() == pytest.approx(alone.losses(), rel=2e-2)
