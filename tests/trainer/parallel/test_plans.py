"""Both plans with one to three servers in many buckets have the losses of one process. Members are threads here.

The runs of real machines in test_ps_server.py are too small for a second bucket of the usual size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.running import Run
from tests.trainer.together import small, together
from trainer.parallel import ownership

pytestmark = pytest.mark.slow
STEPS = 50
BUCKETS = 8


@pytest.fixture(scope="module", autouse=True)
def many_buckets() -> Any:
    """Cut the model's 30,000 parameters into many buckets."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ownership, "BUCKET_ELEMENTS", 4096)
    assert len(ownership.Ownership(30_000, 2).buckets) == BUCKETS
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
def test_two_trainers_with_servers_have_the_losses_of_one_process(
    tmp_path: Path, alone: Run, plan: str, servers: int
) -> None:
    run = taken(tmp_path, parallel={"plan": plan}, cluster={"workers": 1, "parameterServers": servers})
    assert run.losses() == alone.losses()
    assert run.validation() == pytest.approx(alone.validation(), abs=1e-6)


def test_compiled_model_waits_for_its_parameters(tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled graph calls no hook that would wait for a bucket. The compilation itself does not matter here."""

    def compiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    run = taken(tmp_path, hyperparameters={"compile": True}, cluster={"workers": 1, "parameterServers": 2})
    assert run.losses() == alone.losses()


def test_run_without_clipping_returns_parameters_while_gradients_are_sent(tmp_path: Path) -> None:
    # With 480 tokens, division differs from multiplication by the inverse.
    unclipped = {"gradientClip": 0.0, "batchSize": 15}
    calm = taken(tmp_path / "calm", hyperparameters=unclipped, cluster={"workers": 1})
    cluster = {"workers": 1, "parameterServers": 2}
    run = taken(tmp_path / "run", hyperparameters=unclipped, cluster=cluster)
    assert run.losses() == calm.losses()
    assert run.validation() == pytest.approx(calm.validation(), abs=1e-6)


@pytest.mark.parametrize("plan", ["star", "hierarchical"])
def test_run_with_bf16_on_the_wire_has_losses_near_the_exact_ones(tmp_path: Path, alone: Run, plan: str) -> None:
    run = taken(tmp_path, parallel={"plan": plan, "wire": "bf16"}, cluster={"workers": 1, "parameterServers": 2})
    assert run.losses() != alone.losses()  # the values were rounded on the wire
    assert run.losses() == pytest.approx(alone.losses(), rel=2e-2)
