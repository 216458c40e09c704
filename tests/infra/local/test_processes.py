"""Machines as processes: each is started once, adopted, and ended for certain."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import processes
from infra.local.processes import MachineProcess

# It logs a line when it is ready, and ends by itself after a while.
PLAIN = "import time; print('ready', flush=True); time.sleep(60)"
PASSES_ON = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def leave(*_):
    child.terminate()
    child.wait()
    print("left", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        time.sleep(60)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineProcess]:
    yield MachineProcess(tmp_path / "a bucket", "run-1", "worker-1")
    processes.sweep(tmp_path / "a bucket", grace=0)


def start(machine: MachineProcess, program: str = PLAIN, launch: int = 1, **variables: str) -> int:
    return processes.start(machine, launch, [sys.executable, "-c", program], machine.folder, variables)


def wait_for(line: str, machine: MachineProcess) -> None:
    found = threading.Event()
    while line not in machine.log.read_text().splitlines():
        found.wait(0.01)


def test_process_runs_in_a_session_of_its_own_without_pulumis_secrets(
    machine: MachineProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "secret")
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("HF_HOME", "/cache")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    pid = start(machine, CUDA_VISIBLE_DEVICES="GPU-a,GPU-b")
    assert processes.alive(machine)
    assert os.getsid(pid) == pid
    environment = psutil.Process(pid).environ()
    assert environment["HF_HOME"] == "/cache"
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "secret" not in environment.values()


def test_second_start_adopts_the_process_and_another_launch_replaces_it(machine: MachineProcess) -> None:
    pid = start(machine)
    assert start(machine) == pid
    later = start(machine, launch=2)
    assert later != pid
    assert [p.pid for p in processes.marked(machine.mark)] == [later]


def _start_in_another_process(machine: MachineProcess, pids: "multiprocessing.Queue[int]") -> None:
    pids.put(start(machine))


def test_starts_at_the_same_time_agree_on_one_process(machine: MachineProcess) -> None:
    machine.folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    pids: multiprocessing.Queue[int] = context.Queue()
    starters = [context.Process(target=_start_in_another_process, args=(machine, pids)) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    (living,) = processes.marked(machine.mark)
    assert living.pid in {pids.get() for _ in starters}
    assert processes.alive(machine)


def test_stop_lets_the_process_leave_by_itself(machine: MachineProcess) -> None:
    start(machine, PASSES_ON)
    wait_for("ready", machine)
    assert len(processes.stop(machine.mark)) == 2
    assert "left" in machine.log.read_text()
    assert not processes.alive(machine)
    assert processes.stop(machine.mark) == []


def test_stop_ends_processes_that_ignore_it_or_left_the_session(machine: MachineProcess) -> None:
    start(machine, STUBBORN)
    wait_for("ready", machine)
    assert len(processes.stop(machine.mark, grace=0.3)) == 2
    assert processes.marked(machine.mark) == []


def test_killed_process_is_not_alive_though_its_child_holds_the_lock(machine: MachineProcess) -> None:
    inherits = PASSES_ON.replace('time.sleep(60)"])', 'time.sleep(60)"], close_fds=False)')
    pid = start(machine, inherits)
    wait_for("ready", machine)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not processes.alive(machine)
    (orphan,) = processes.marked(machine.mark)
    new = start(machine)
    assert processes.alive(machine)
    assert [p.pid for p in processes.marked(machine.mark)] == [new]
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_process_id_that_another_process_got_is_not_alive(machine: MachineProcess) -> None:
    start(machine)
    processes.stop(machine.mark)
    with machine.lock.open("w") as lock:
        lock.write(f'{{"launch": 1, "pid": {os.getpid()}}}')
    assert not processes.alive(machine)
    processes.stop(machine.mark)  # this test's own process is not ended
    assert start(machine) != os.getpid()


def deleted_lock(machine: MachineProcess) -> None:
    machine.lock.unlink()


def torn_lock(machine: MachineProcess) -> None:
    machine.lock.write_text('{"launch"')


@pytest.mark.parametrize("harm", [deleted_lock, torn_lock])
def test_start_after_the_lock_file_was_damaged_replaces_the_process(
    machine: MachineProcess, harm: Callable[[MachineProcess], None]
) -> None:
    start(machine)
    harm(machine)
    assert not processes.alive(machine)
    new = start(machine)
    assert [p.pid for p in processes.marked(machine.mark)] == [new]


def test_sweep_ends_all_processes_of_one_bucket_and_none_of_another(machine: MachineProcess, tmp_path: Path) -> None:
    start(machine)
    start(MachineProcess(machine.folder, "run-2", "worker-10"))
    other = MachineProcess(tmp_path / "a bucket of others", "run-1", "worker-1")
    try:
        start(other)
        ten = MachineProcess(machine.folder, "run-1", "worker-10")
        start(ten)
        processes.stop(machine.mark)
        assert processes.alive(ten)  # the name of the stopped machine is a prefix of this one
        processes.sweep(machine.folder)
        assert processes.marked(f"{machine.folder}::") == []
        assert processes.alive(other)
    finally:
        processes.sweep(other.folder, grace=0)
