"""Runs of machines with several processes compute what one process computes, and lose a machine at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.faults import all_records
from tests.trainer.running import PATIENCE, Run

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]
STEPS = 50
SMALL: dict[str, Any] = {
    "hyperparameters": {"steps": STEPS},
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
    assert [run.wait().state for run in runs] == 3 * ["SUCCEEDED"]
    for run in runs:
        assert run.losses() == pytest.approx(alone.losses(), rel=0, abs=1e-5)
        assert run.validation() == pytest.approx(alone.validation(), rel=0, abs=1e-5)
        assert run.storage.read(f"runs/{run.spec.run}/model/manifest.json")
    # The shape decides how sums are made: so servers, however many, do not change a bit.
    assert runs[0].losses() == runs[1].losses() == runs[2].losses()


def processes_of(run: Run, name: str) -> list[psutil.Process]:
    """Return the processes of a machine that compute, the first one first."""
    first = psutil.Process(run.machine(name).trainer_pid)
    return [first, *first.children()]


@pytest.mark.parametrize("shape", ["2x2", "2x2 fsdp"])
@pytest.mark.parametrize("servers", [0, 1])
def test_machine_that_loses_a_process_comes_back_while_the_other_machine_continues(
    shape: str, servers: int, new_run: NewRun
) -> None:
    """One machine loses its second process, the leader its first: each step has one loss, whoever took it."""
    run = new_run(**declare(shape, servers, hyperparameters={"steps": 400}, checkpoints={"every": 50}))
    run.start().until_step(20)
    for name, number in (("worker-0", 1), ("master-0", 0)):
        killed = processes_of(run, name)
        killed[number].kill()
        assert psutil.wait_procs(killed, PATIENCE)[1] == []  # all of the machine's
        before = run.machine(name).trainer_pid
        run.until(lambda name=name, before=before: run.machine(name).trainer_pid not in (None, before), "its return")
        step = max(record.step for record in run.steps())
        run.until_step(step + 20)
    assert run.wait().state == "SUCCEEDED"
    assert [record.step for record in run.steps()] == list(range(1, 401))
    assert {record.trainers for record in run.steps()} == {1, 2}
    taken: dict[int, set[float]] = {}
    for record in all_records(run):
        if record.learning_rate is not None and record.loss is not None:
            taken.setdefault(record.step, set()).add(record.loss)
    assert all(max(losses) - min(losses) < 1e-4 for losses in taken.values())


def test_checkpoint_of_machines_with_processes_restores_onto_one_process_and_back(
    alone: Run, new_run: NewRun, tmp_path: Path
) -> None:
    """Checkpoints at step 25 of 2x2 fsdp, at 35 of one process, and of 1x3 to the end."""
    first = new_run(**declare("2x2 fsdp", hyperparameters={"steps": 25}))
    assert first.start().wait().state == "SUCCEEDED"
    losses = first.losses()
    for shape, steps in (("1x1", 35), ("1x3", STEPS)):
        following = new_run(**declare(shape, hyperparameters={"steps": steps}))
        for entry in first.storage.list(f"runs/{first.spec.run}/checkpoints"):
            following.storage.write(entry.path, first.storage.read(entry.path))
        assert following.start().wait().state == "SUCCEEDED"
        losses += following.losses()
        first = following
    assert len(losses) == STEPS
    assert losses == pytest.approx(alone.losses(), rel=0, abs=2e-3)  # schedules of other lengths differ
