"""Runs with parameter servers have the losses of one process, whoever holds the parameters.

They are equal bit for bit where the order of the sums is the same: each step has two micro-batches here, so one trainer
and two sum the same two gradients, and servers only cut the vector. Three trainers cut the batch in three, and
all-reduce sums in its own order: then losses differ by rounding, within 1e-5 over 50 steps at a rate at which training
is stable.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.running import Run
from trainer.runs.status import update_status

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]
STEPS, HALF = 50, 25
SETTINGS: dict[str, Any] = {
    "hyperparameters": {"steps": STEPS, "learningRate": 0.001},
    "evaluation": {"every": HALF},
    "checkpoints": {"every": HALF},
}


def with_settings(**overrides: Any) -> dict[str, Any]:
    """Return settings for a Run: these, section by section over SETTINGS."""
    merged = dict(SETTINGS)
    for section, values in overrides.items():
        merged[section] = {**merged.get(section, {}), **values}
    return merged


def finished(run: Run) -> Run:
    status = run.start().wait()
    assert (status.state, status.step) == ("SUCCEEDED", STEPS)
    trainers = {record.trainers for record in run.steps()}
    assert (len(run.steps()), trainers) == (STEPS, {run.spec.cluster.trainers})
    return run


def assert_bit_equal(run: Run, other: Run, after: int = 0) -> None:
    assert run.losses()[after:] == other.losses()[after:]
    norms, others = ([record.gradient_norm for record in each.steps()] for each in (run, other))
    assert norms[after:] == others[after:]
    # Each trainer sums its own evaluation, and then the sums are added.
    assert run.validation() == pytest.approx(other.validation(), abs=1e-6)


def assert_near(run: Run, other: Run, after: int = 0, within: float = 1e-5) -> None:
    assert run.losses()[after:] == pytest.approx(other.losses()[after:], abs=within)
    assert run.validation() == pytest.approx(other.validation(), abs=within)


@pytest.fixture(scope="module")
def module_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewRun]:
    """Return a function that makes runs which several tests read."""
    made: list[Run] = []

    def make(**overrides: Any) -> Run:
        made.append(Run(tmp_path_factory.mktemp("module") / "bucket", **with_settings(**overrides)))
        return finished(made[-1])

    yield make
    for run in made:
        run.end()


@pytest.fixture(scope="module")
def alone(module_run: NewRun) -> Run:
    """Return a finished run of one process."""
    return module_run()


@pytest.fixture(scope="module")
def three_servers(module_run: NewRun) -> Run:
    return module_run(cluster={"workers": 1, "parameterServers": 3}, parallel={"plan": "hierarchical"})


def test_two_trainers_with_one_server_have_exactly_the_losses_of_one_process(alone: Run, new_run: NewRun) -> None:
    run = finished(new_run(**with_settings(cluster={"workers": 1, "parameterServers": 1}, parallel={"plan": "star"})))
    assert_bit_equal(run, alone)
    assert any("star: nothing predicted" in line for line in run.machine("ps-0").log)


def test_two_trainers_with_three_servers_in_the_other_plan_have_exactly_the_same_losses(
    alone: Run, three_servers: Run
) -> None:
    assert_bit_equal(three_servers, alone)
    waited = [record.communication_seconds for record in three_servers.steps()]
    assert all(seconds is not None and seconds > 0 for seconds in waited)
    model = "runs/test-run/model/model.safetensors"
    assert three_servers.storage.read(model) == alone.storage.read(model)


def test_three_trainers_without_servers_have_losses_near_those_of_one_process(alone: Run, new_run: NewRun) -> None:
    run = finished(new_run(**with_settings(cluster={"workers": 2})))
    assert run.losses() != alone.losses()  # with equal losses this test would prove nothing
    assert_near(run, alone)


def test_three_trainers_with_two_servers_have_losses_near_those_of_one_process(alone: Run, new_run: NewRun) -> None:
    """The servers' links are slow, so the cost model takes the plan that spares them."""
    links = {"trainerGbps": 16.0, "serverGbps": 2.0}
    run = finished(new_run(**with_settings(cluster={"workers": 2, "parameterServers": 2, **links})))
    assert_near(run, alone)
    for name in ("master-0", "ps-0"):
        assert any("hierarchical: " in line and "predicted (star" in line for line in run.machine(name).log), name
    assert not any("predicted" in line for name in ("worker-0", "ps-1") for line in run.machine(name).log)


def test_server_lost_before_the_first_checkpoint_takes_all_members_to_the_start(alone: Run, new_run: NewRun) -> None:
    """All begin with the parameters that the seed gives, not with those that a trainer happens to have."""
    run = new_run(**with_settings(cluster={"parameterServers": 1}, checkpoints={"every": 1000})).start()
    run.until_step(3)
    process = run.machine("ps-0").trainer_pid
    assert process is not None
    os.kill(process, signal.SIGKILL)
    assert run.wait().state == "SUCCEEDED"
    assert run.machine("ps-0").restarts == 1
    assert_bit_equal(run, alone)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def resumed(new_run: NewRun, source: Run, cluster: dict[str, int]) -> Run:
    """Return a run of another cluster on a copy of `source` without the files written after the first checkpoint."""
    run = new_run(**with_settings(cluster=cluster))
    shutil.copytree(source.folder / "data", run.folder / "data", dirs_exist_ok=True)
    first, _ = sorted((source.folder / "runs/test-run/checkpoints").iterdir())
    assert first.name.startswith(f"step-{HALF:08d}")
    shutil.copytree(first, run.folder / "runs/test-run/checkpoints" / first.name)
    status = run.start().wait()
    assert (status.state, status.step) == ("SUCCEEDED", STEPS)
    assert [record.step for record in run.steps()] == list(range(HALF + 1, STEPS + 1))  # the run took no other step
    return run


@pytest.mark.parametrize("servers", [0, 2])
def test_checkpoint_of_two_trainers_and_three_servers_restores_onto_one_trainer(
    servers: int, three_servers: Run, new_run: NewRun
) -> None:
    run = resumed(new_run, three_servers, {"parameterServers": servers})
    assert run.losses() == three_servers.losses()[HALF:]
    assert run.validation() == pytest.approx(three_servers.validation(), abs=1e-6)


def test_checkpoint_of_one_process_restores_onto_servers(alone: Run, new_run: NewRun) -> None:
    run = resumed(new_run, alone, {"parameterServers": 2})
    assert run.losses() == alone.losses()[HALF:]
    assert run.validation() == pytest.approx(alone.validation(), abs=1e-6)


# -- a server's process ------------------------------------------------------------------------------------------------


def test_server_loads_no_model_and_no_data_and_listens_on_this_machine_only(new_run: NewRun) -> None:
    run = new_run(hyperparameters={"steps": 100_000}, cluster={"workers": 1, "parameterServers": 1})
    run.start(forked=False).until_step(5)
    for name in run.machines:
        process = run.machine(name).trainer_pid
        assert process is not None
        mapped = Path(f"/proc/{process}/maps").read_text()
        trains = not name.startswith("ps-")
        # Only trainers load transformers' compiled libraries and map a shard of tokens.
        assert ["/tokenizers/" in mapped, "/regex/" in mapped, f"{run.folder}/data/" in mapped] == [trains] * 3, name
        parent = psutil.Process(run.machines[name].pid)
        sockets = [c for p in (parent, *parent.children(recursive=True)) for c in p.net_connections("inet")]
        listening = [c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN]
        assert listening, name  # each listens for its store; the master listens for the Lighthouse too
        assert set(listening) == {"127.0.0.1"}, name
    update_status(run.storage, run.spec.run, 1, state="FAILED", reason="enough")
    run.wait()
    assert all((run.machines[name].returncode, run.machine(name).state) == (0, "finished") for name in run.machines)
