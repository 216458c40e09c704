"""Machines that are added, removed and lost for good during a run: no step is lost, and the result is the same.

Machines that are disturbed and come back are in test_faults.py.
"""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.trainer.running import Run

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]
STEPS = 500
# At this rate another order of summation (a batch cut for 3 instead of 2 trainers) changes the losses by 3e-6 in all
# steps. At the other tests' 0.01 the run is chaotic, and the order changes them by 0.1, also in one process without
# faults.
LONG = {"hyperparameters": {"steps": STEPS, "learningRate": 0.001}, "evaluation": {"every": STEPS}}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return the same run without any change of its machines."""
    run = Run(tmp_path_factory.mktemp("calm"), **LONG)
    try:
        assert run.start().wait().state == "SUCCEEDED"
        yield run
    finally:
        run.end()


def as_undisturbed(run: Run, calm: Run) -> None:
    """Assert that the run took every step and ended as the undisturbed one did."""
    assert run.wait().state == "SUCCEEDED"
    assert len(run.losses()) == STEPS
    assert run.losses() == pytest.approx(calm.losses(), abs=1e-4)
    assert run.validation() == pytest.approx(calm.validation(), abs=1e-4)


def scale(run: Run, workers: int) -> None:
    """Change the number of workers as Pulumi does: the same job.json with another number."""
    cluster = run.spec.cluster.model_copy(update={"workers": workers})
    run.spec = run.spec.model_copy(update={"cluster": cluster})
    run.write_spec()


def kill_compute(run: Run, name: str) -> int:
    process = run.machine(name).trainer_pid
    assert process is not None
    os.kill(process, signal.SIGKILL)
    return process


def until_trainers(run: Run, number: int) -> None:
    """Wait until the newest step was taken by this many trainers."""

    def there() -> bool:
        status = run.status()
        assert status is None or status.state != "SUCCEEDED", "the run ended before; STEPS is too low for this machine"
        records = [record for record in run.records() if record.loss is not None]
        return bool(records) and records[-1].trainers == number

    run.until(there, f"a step by {number} trainers")


def test_run_whose_master_is_killed_after_a_worker_was_added_loses_no_step(calm: Run, new_run: NewRun) -> None:
    """The master hosts the Lighthouse. Without a checkpoint, only the other trainers have the state."""
    run = new_run(**LONG, cluster={"workers": 1}, checkpoints={"every": 10 * STEPS})
    run.start()
    until_trainers(run, 2)
    scale(run, 2)
    run.start("worker-1")
    until_trainers(run, 3)
    kill_compute(run, "master-0")
    as_undisturbed(run, calm)
    assert [run.machine(name).restarts for name in ("master-0", "worker-0", "worker-1")] == [1, 0, 0]
    status = run.status()
    assert status is not None
    assert status.attempt == 2  # the Lighthouse came back
    # Had the state been lost, the second attempt would have begun at the first step again.
    assert [record.attempt for record in run.records() if record.step == 1] == [1]


def test_master_that_is_lost_for_good_is_replaced_by_a_worker(calm: Run, new_run: NewRun) -> None:
    run = new_run(**LONG, cluster={"workers": 1}, checkpoints={"every": 10 * STEPS})
    run.start()
    until_trainers(run, 2)
    run.kill("master-0")
    run.until(lambda: (s := run.status()) and s.reason == "going on without master-0", "its name in the status")
    as_undisturbed(run, calm)
    assert run.machine("worker-0").state == "finished"
    assert run.machine("worker-0").restarts == 0
    assert run.storage.read("runs/test-run/model/manifest.json")


def test_worker_can_be_added_to_a_run_that_had_none_and_removed_again(calm: Run, new_run: NewRun) -> None:
    run = new_run(**LONG, checkpoints={"every": 10 * STEPS})
    run.start().until_step(20)
    scale(run, 1)
    run.start("worker-0")
    until_trainers(run, 2)
    scale(run, 0)
    run.machines["worker-0"].send_signal(signal.SIGTERM)
    as_undisturbed(run, calm)
    assert run.machine("worker-0").state == "stopped"
    assert run.machine("master-0").restarts == 0
