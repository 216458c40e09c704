"""Runs of several machines and processes, with and without servers, compute what one process computes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.trainer.running import Run

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]
STEPS = 50
SMALL: dict[str, Any] = {
    "hyperparameters": {"steps": STEPS, "schedule": "constant"},
    "evaluation": {"every": STEPS // 2, "sequences": 31},
    "checkpoints": {"every": 1000},
}


def declare(shape: str, servers: int = 0, **more: Any) -> dict[str, Any]:
    """Return the declaration of a run of MACHINESxPROCESSES, such as `2x2` or `2x2 fsdp`."""
    counts, _, parallelism = shape.partition(" ")
    machines, processes = map(int, counts.split("x"))
    cluster = {"workers": machines - 1, "processes": processes, "parameterServers": servers, "threads": 1}
    return {"cluster": cluster, "parallel": {"parallelism": parallelism or "replicas"}, **SMALL, **more}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a finished run of one process."""
    run = Run(tmp_path_factory.mktemp("alone"), **SMALL)
    try:
        assert run.start().wait().state == "SUCCEEDED"
        yield run
    finally:
        run.end()


@pytest.mark.parametrize("shape", ["1x4", "2x2", "4x1", "2x2 fsdp"])
def test_run_of_a_shape_has_the_losses_of_one_process_with_any_number_of_servers(
    shape: str, alone: Run, new_run: NewRun
) -> None:
    runs = [new_run(**declare(shape, servers)) for servers in (0, 1, 3)]
    for run in runs:
        run.start()
    for run in runs:
        run.until(lambda run=run: (now := run.status()) and now.state == "SUCCEEDED", "its end")
        assert len(run.validation()) == 2  # the last one too is there once the run is over
    assert [run.wait().state for run in runs] == 3 * ["SUCCEEDED"]
    for run in runs:
        assert run.losses() == pytest.approx(alone.losses(), rel=0, abs=1e-5)
        assert run.validation() == pytest.approx(alone.validation(), rel=0, abs=1e-5)
        assert run.storage.read(f"runs/{run.spec.run}/model/manifest.json")
    # Servers add in the order of the machines, and so does the all-reduce of two.
    assert runs[1].losses() == runs[2].losses()
    if runs[0].spec.cluster.trainers <= 2:
        assert runs[0].losses() == runs[1].losses()


def test_checkpoint_of_machines_with_processes_restores_onto_one_process_and_back(alone: Run, new_run: NewRun) -> None:
    """2x2 fsdp takes 25 steps, then one process 10, then three processes of one machine the rest."""
    first = new_run(**declare("2x2 fsdp", hyperparameters={"steps": 25, "schedule": "constant"}))
    assert first.start().wait().state == "SUCCEEDED"
    losses = first.losses()
    for shape, steps in (("1x1", 35), ("1x3", STEPS)):
        following = new_run(**declare(shape, hyperparameters={"steps": steps, "schedule": "constant"}))
        for entry in first.storage.list(f"runs/{first.spec.run}/checkpoints"):
            following.storage.write(entry.path, first.storage.read(entry.path))
        assert following.start().wait().state == "SUCCEEDED"
        losses += following.losses()
        first = following
    assert len(losses) == STEPS
    assert losses == pytest.approx(alone.losses(), rel=0, abs=1e-5)


@pytest.mark.parametrize("shape", ["2x1", "2x2 fsdp"])
def test_all_reduce_with_bf16_on_the_wire_has_losses_near_the_exact_ones(
    shape: str, alone: Run, new_run: NewRun
) -> None:
    declared = declare(shape)
    run = new_run(**{**declared, "parallel": {**declared["parallel"], "wire": "bf16"}})
    assert run.start().wait().state == "SUCCEEDED"
    assert run.losses() == pytest.approx(alone.losses(), rel=0, abs=1e-2)
    assert run.losses() != pytest.approx(alone.losses(), rel=0, abs=1e-5)
