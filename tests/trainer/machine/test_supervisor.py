"""A machine as a whole: its supervisor when the computing process ends, and when the machine gets a notice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.running import PATIENCE, ROOT, STEPS, Run
from trainer.cluster.lease import NoProgress
from trainer.compute.__main__ import main
from trainer.compute.exit_codes import AWAY
from trainer.contract.errors import MissingGpus
from trainer.data import prepare
from trainer.machine.supervisor import Supervisor
from trainer.runs.status import update_status
from trainer.storage.base import StorageError, Unavailable

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]


def compute(run: Run, name: str) -> int:
    """Return the id of the computing process, as soon as there is one."""
    found: int = run.until(lambda: _machine_pid(run, name), f"a process of {name}")
    return found


def _machine_pid(run: Run, name: str) -> int | None:
    try:
        return run.machine(name).trainer_pid
    except FileNotFoundError:
        return None


def gone(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_input_that_cannot_be_trained_fails_the_run_at_once_for_all_machines(new_run: NewRun) -> None:
    run = new_run(cluster={"workers": 1})
    run.storage.delete(run.spec.data.path)
    run.start()
    status = run.wait()
    assert status.state == "FAILED"
    assert status.reason.startswith("master-0: data.path ")
    assert "text.txt" in status.reason
    assert status.finished is not None
    master, worker = run.machine("master-0"), run.machine("worker-0")
    assert (master.state, master.restarts) == ("failed", 0)
    assert master.last_exit is not None
    assert master.last_exit.code == 2
    assert "Traceback" not in "".join(master.log)
    assert worker.state == "finished"  # the worker was waiting for the data
    assert [run.machines[name].returncode for name in ("master-0", "worker-0")] == [1, 0]


def test_error_that_comes_three_times_fails_the_run(new_run: NewRun) -> None:
    """A file is in the place of a folder. The input is not at fault, so the process is tried again."""
    run = new_run()
    run.storage.write(f"data/{run.spec.fingerprint}/{run.spec.data.tokens_key()}", b"in the way")
    status = run.start().wait()
    machine = run.machine("master-0")
    assert status.state == "FAILED"
    assert status.reason == f"master-0: {machine.log[-1]}"
    assert machine.restarts == 2  # the process was tried three times
    assert machine.last_exit is not None
    assert (machine.last_exit.code, machine.last_exit.reason) == (1, machine.log[-1])
    assert "Traceback" not in "".join(machine.log)
    assert status.traceback is None


def test_program_that_crashes_three_times_fails_the_run_with_its_traceback(new_run: NewRun) -> None:
    """The shards hold tokens outside the vocabulary that no check sees; the embedding refuses them."""
    run = new_run()
    prepared = prepare.prepare(run.storage, run.spec.data, run.spec.fingerprint, lambda done, total: None)
    for shard in prepared.manifest.train.shards:
        run.storage.write(f"{prepared.folder}/{shard.name}", b"\xff\xff" * shard.tokens)
    status = run.start().wait()
    machine = run.machine("master-0")
    assert (status.state, status.step, machine.restarts) == ("FAILED", 0, 2)  # the process was tried three times
    assert status.traceback is not None
    assert 2 < len(status.traceback) <= 40
    assert status.traceback[-1].startswith("IndexError: ")
    assert status.reason == f"master-0: {status.traceback[-1]}"
    # The log holds the traceback of the last try alone.
    assert machine.log[-len(status.traceback) :] == status.traceback
    assert sum("Traceback (most" in line for line in status.traceback) <= 1


def test_process_that_is_killed_ten_times_without_a_step_fails_the_run(new_run: NewRun) -> None:
    """A process that always runs out of memory is killed like this."""
    run = new_run().start()
    seen: set[int] = set()
    while run.machines["master-0"].poll() is None:
        process = _machine_pid(run, "master-0")
        if process is not None and process not in seen:
            seen.add(process)
            os.kill(process, signal.SIGKILL)
    status = run.wait()
    assert (status.state, status.reason) == ("FAILED", "master-0: killed by SIGKILL")
    assert status.traceback is None
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("error", "code"), [(Unavailable, AWAY), (StorageError, 1), (NoProgress, AWAY), (MissingGpus, AWAY)]
)
def test_outage_of_the_bucket_or_of_gpus_exits_with_the_code_of_an_outage(
    error: type[Exception], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AWAY counts like a kill: ten in a row without a step fail the run, three do not."""

    def away(url: str) -> None:
        raise error("the bucket does not answer")

    monkeypatch.setattr("trainer.compute.__main__.open_storage", away)
    monkeypatch.setattr("trainer.compute.__main__.Process", lambda name, address: None)
    monkeypatch.setattr("trainer.compute.__main__.die_with_parent", lambda: None)
    options = ["--bucket", "b", "--run", "r", "--name", "ps-0", "--role", "ps", "--address", "127.0.0.1"]
    monkeypatch.setattr(sys, "argv", ["compute", *options])
    assert main() == code
    assert capsys.readouterr().out == "the bucket does not answer\n"


def test_killed_supervisor_takes_its_process_with_it(new_run: NewRun) -> None:
    run = new_run().start()
    process = compute(run, "master-0")
    run.until_step(1)
    run.machines["master-0"].kill()
    run.until(lambda: gone(process), "the end of the process that computes")


def test_notice_while_the_process_starts_ends_it(new_run: NewRun) -> None:
    run = new_run().start()
    process = compute(run, "master-0")
    run.machines["master-0"].send_signal(signal.SIGTERM)
    assert run.machines["master-0"].wait(PATIENCE) == 0
    assert gone(process)
    assert (run.machine("master-0").state, run.machine("master-0").trainer_pid) == ("stopped", None)


def test_machines_listen_on_this_machine_only_and_leave_a_run_that_has_ended(new_run: NewRun) -> None:
    run = new_run(hyperparameters={"steps": 100_000}, cluster={"workers": 1}).start()
    run.until_step(5)
    listening = []
    for machine in run.machines.values():
        parent = psutil.Process(machine.pid)
        for process in (parent, *parent.children(recursive=True)):
            listening += [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3  # at least a Lighthouse, and a store for each machine
    assert set(listening) == {"127.0.0.1"}

    processes = [compute(run, name) for name in run.machines]
    update_status(run.storage, run.spec.run, 1, state="FAILED", reason="worker-7: as another machine says")
    status = run.wait()
    assert (status.state, status.reason) == ("FAILED", "worker-7: as another machine says")
    assert all(gone(process) for process in processes)
    for name, machine in run.machines.items():
        assert (machine.returncode, run.machine(name).state) == (0, "finished")


def test_machine_that_was_believed_dead_resumes_from_the_newest_checkpoint(undisturbed: Run, new_run: NewRun) -> None:
    """While the machine was frozen, a newer cluster formed and ended."""
    run = new_run().start()
    run.until_step(50)
    lease = json.loads(run.storage.read("runs/test-run/cluster.json"))
    run.storage.write("runs/test-run/cluster.json", json.dumps({**lease, "attempt": 5}).encode())
    update_status(run.storage, "test-run", 1, attempt=5)
    assert run.wait().state == "SUCCEEDED"
    assert run.machine("master-0").restarts == 1
    status = run.status()
    assert status is not None
    assert status.attempt == 6
    assert run.losses() == undisturbed.losses()


def test_changed_number_of_servers_restarts_every_machine_and_changed_threads_restart_trainers(new_run: NewRun) -> None:
    run = new_run(hyperparameters={"steps": 100_000}, cluster={"parameterServers": 1}).start()
    run.until(lambda: _step(run, "ps-0") >= 5, "steps that the server reports")
    first = {name: compute(run, name) for name in ("master-0", "ps-0")}
    _declare(run, threads=2)
    run.until(lambda: _machine_pid(run, "master-0") not in (None, first["master-0"]), "a master that starts again")
    step = _step(run, "ps-0")
    run.until(lambda: _step(run, "ps-0") > step, "steps that go on")
    assert compute(run, "ps-0") == first["ps-0"]
    _declare(run, parameter_servers=2)
    run.start("ps-1")
    run.until(lambda: _machine_pid(run, "ps-0") not in (None, first["ps-0"]), "a server that starts again")
    run.until(lambda: _step(run, "ps-1") > 5, "steps with two servers")
    assert [run.machine(name).restarts for name in ("master-0", "ps-0", "ps-1")] == [0, 0, 0]


def _step(run: Run, name: str) -> int:
    try:
        return run.machine(name).step
    except FileNotFoundError:
        return 0


def _declare(run: Run, **cluster: int) -> None:
    run.spec = run.spec.model_copy(update={"cluster": run.spec.cluster.model_copy(update=cluster)})
    run.write_spec()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (None, "no run test-run in "),
        (b"{}", "job.json: "),
        (b"not json", "job.json: "),
    ],
    ids=["none", "empty", "damaged"],
)
def test_machine_of_an_undeclared_run_exits_with_the_reason(new_run: NewRun, job: bytes | None, said: str) -> None:
    run = new_run()
    run.storage.delete("runs/test-run/job.json")
    if job is not None:
        run.storage.write("runs/test-run/job.json", job)
    # fmt: off
    command = [
        sys.executable, "-m", "trainer", "--bucket", run.storage.url, "--run", "test-run", "--name", "master-0",
        "--role", "master",
    ]
    # fmt: on
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_process_that_gets_sigterm_without_its_machine_is_restarted(new_run: NewRun) -> None:
    run = new_run(checkpoints={"every": 10000}).start()
    run.until_step(50)
    os.kill(compute(run, "master-0"), signal.SIGTERM)
    assert run.wait().state == "SUCCEEDED"
    assert run.machine("master-0").restarts == 1
    assert len(run.losses()) == STEPS


def test_ten_outages_in_a_row_fail_the_run_and_three_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bucket is away for the last status too: it is written as soon as the bucket is back."""
    run = Run(tmp_path)
    tried: list[int] = []
    said = iter([Unavailable("away"), Unavailable("away")])

    def compute_once(self: Supervisor) -> int:
        tried.append(1)
        return AWAY

    def update(*arguments: Any, **changes: Any) -> None:
        for error in said:
            raise error
        update_status(*arguments, **changes)

    monkeypatch.setattr(Supervisor, "_compute_once", compute_once)
    monkeypatch.setattr("trainer.machine.supervisor.update_status", update)
    monkeypatch.setattr("trainer.machine.supervisor.PAUSE", 0.001)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert Supervisor(run.storage, run.spec, "worker-0", "worker", "127.0.0.1").run() == 1
    assert len(tried) == 10
    status = run.status()
    assert status is not None
    assert (status.state, status.traceback) == ("FAILED", None)
