"""Runs whose machines get a notice at an inconvenient moment, or fall silent."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.running import ROOT, Run
from tests.trainer.together import Process, small, together
from trainer.compute.exit_codes import LEFT
from trainer.contract import paths
from trainer.training import checkpoint
from trainer.training.loop import Training

pytestmark = pytest.mark.slow
FOR_EVER = 100_000  # more steps than a test ever takes


def whole(run: Run) -> list[str]:
    """Return the names of the checkpoints that have a manifest."""
    found = run.storage.list("runs/test-run/checkpoints")
    return [entry.path.split("/")[-2] for entry in found if entry.path.endswith(paths.MANIFEST)]


def steps(run: Run) -> set[int]:
    return {int(found.split("-")[1]) for found in whole(run)}


def notices(run: Run) -> list[int]:
    """Return the steps whose checkpoint answered a notice and whose time from notice to manifest was recorded."""
    return [record.step for record in run.records() if record.notice_seconds is not None]


def test_checkpoint_of_a_leaving_master_counts_though_the_others_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master hosts the Lighthouse. Its write takes so long that the worker is steps ahead at its end."""
    run = small(tmp_path, FOR_EVER, cluster={"workers": 1})
    there, write = threading.Event(), checkpoint.save_file

    def slow(*arguments: Any) -> None:
        there.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", slow)

    def disturb(members: dict[str, Process]) -> None:
        run.until_step(5)
        members["master-0"].stop()
        run.until(lambda: any(r.trainers == 1 and r.step > 10 for r in run.records()), "steps by the worker alone")
        there.set()
        run.until(lambda: notices(run), "the checkpoint")

    together(run, meanwhile=disturb)
    assert f"step-{notices(run)[0]:08d}-attempt-1" in whole(run)


@pytest.mark.parametrize("name", ["master-0", "worker-0", "ps-0"])
def test_notice_to_any_member_of_a_run_with_servers_becomes_a_checkpoint(tmp_path: Path, name: str) -> None:
    run = small(tmp_path, FOR_EVER, cluster={"workers": 1, "parameterServers": 2})

    def disturb(members: dict[str, Process]) -> None:
        run.until_step(5)
        members[name].stop()
        run.until(lambda: notices(run), "the checkpoint")

    together(run, meanwhile=disturb)
    assert steps(run) >= set(notices(run))


def test_local_synchronization_with_meetings_far_apart_writes_a_checkpoint_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that leaves or is lost between two meetings finds trainers that do not listen."""
    alone = {"synchronization": "local", "every": 7}
    settings: dict[str, Any] = {"parallel": alone, "cluster": {"parameterServers": 2}, "checkpoints": {"every": 14}}
    run = small(tmp_path / "near", 28, **settings)
    together(run)
    assert steps(run) == {14, 28}
    monkeypatch.setattr("trainer.parallel.diloco_server.UNWRITTEN", -1.0)
    far = small(tmp_path / "far", 28, **settings)
    together(far)
    assert far.losses() == run.losses()
    assert steps(far) == {21, 28}  # the newest two are kept


def test_step_that_takes_longer_than_a_notice_allows_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of step 5 is not ready before the process has to give up."""
    run = small(tmp_path, FOR_EVER)
    given_up, gradient = threading.Event(), Training.gradient
    cluster: list[Any] = []

    def slow(self: Training, step: int, *arguments: Any) -> Any:
        if step == 5:
            cluster.append(self.membership)
            given_up.wait(60)
        return gradient(self, step, *arguments)

    monkeypatch.setattr(Training, "gradient", slow)

    def disturb(members: dict[str, Process]) -> None:
        run.until(lambda: cluster, "step 5")
        members["master-0"].stop()
        cluster[0].give_up()
        given_up.set()
        run.until(lambda: notices(run), "the checkpoint")

    together(run, meanwhile=disturb)
    assert notices(run) == [5]
    assert whole(run) == ["step-00000005-attempt-1"]


def test_member_that_is_silent_in_the_middle_of_a_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member answers the Lighthouse but never sends its gradient: the others fail in a bounded time and name it."""
    monkeypatch.setattr("trainer.cluster.delegate.COLLECTIVE", 5.0)
    monkeypatch.setattr("trainer.cluster.lighthouse.JOIN_TIMEOUT", 5.0)
    run = small(tmp_path, FOR_EVER, cluster={"workers": 1})
    enough, gradient = threading.Event(), Training.gradient

    def silent(self: Training, step: int, quorum: Any, *arguments: Any) -> Any:
        if step >= 5 and quorum.rank == 1:
            enough.wait(60)
        return gradient(self, step, quorum, *arguments)

    monkeypatch.setattr(Training, "gradient", silent)

    def watch(members: dict[str, Process]) -> None:
        run.until(lambda: (s := run.status()) and s.reason == "going on without worker-0", "its name in the status")
        assert any(line.endswith("missing: worker-0") for line in members["master-0"].said)
        enough.set()

    together(run, meanwhile=watch)


DEAF = """
import ctypes, os
from trainer.compute import process as processes
from trainer.compute.exit_codes import LEFT

processes.FINISH = 0.1
process = processes.Process("worker-0", "127.0.0.1")
process.give_up = lambda: os._exit(LEFT if process.stopping() else 1)
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
library.pthread_mutex_lock(mutex)
print("waits", flush=True)
library.pthread_mutex_lock(mutex)
"""


def test_notice_while_a_library_waits_is_heard() -> None:
    """No signal handler runs then, because the main thread is not back in the interpreter."""
    with subprocess.Popen([sys.executable, "-c", DEAF], cwd=ROOT, stdout=subprocess.PIPE, text=True) as deaf:
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == "waits\n"
        deaf.terminate()
        try:
            assert deaf.wait(60) == LEFT
        finally:
            deaf.kill()
