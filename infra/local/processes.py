"""Start, find and end a machine of this computer, which is a process that nobody waits for.

A process is found by two marks, because each alone has a gap. The first is a lock on `machines/<name>.lock`, taken
before the process starts and passed on to it: two starts cannot both succeed, at whatever moment one is interrupted.
The second is a variable in its environment, which every process that it starts inherits. It tells our processes from
others that got the same number later, and finds those that left the process group, outlived the process that started
them, or whose lock file was deleted.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.contract import paths

GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as for a Spot VM: enough for a checkpoint and the last words
PATIENCE = 15.0  # seconds to wait for a lock
KILL_PATIENCE = 30.0  # seconds to wait for the end after SIGKILL; a process that hangs in the kernel takes longer
MARK = "GPT2_TRAINING_MACHINE"
# The variables that a machine gets. Pulumi's own are not among them: they carry passphrases and configuration.
KEPT = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TEMP", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("NO_PROXY", "no_proxy"),
}
KEPT_PREFIXES = (
    *("LC_", "XDG_", "HF_", "TORCH", "TRANSFORMERS_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "SSL_", "REQUESTS_CA"),
    *("HTTP_", "HTTPS_", "ALL_PROXY", "http_", "https_", "all_proxy", "GOOGLE_", "STORAGE_EMULATOR_", "COVERAGE_"),
)


class ProcessError(Exception):
    """A process could not be started or ended; one line for a person."""


@dataclass(frozen=True)
class MachineProcess:
    """A machine of a run in a bucket that is a folder, by its name."""

    folder: Path
    run: str
    name: str

    @property
    def mark(self) -> str:
        return f"{self.folder}::{self.run}/{self.name}/"

    @property
    def lock(self) -> Path:
        return self.folder / paths.machine_lock(self.run, self.name)

    @property
    def log(self) -> Path:
        return self.folder / paths.machine_log(self.run, self.name)


def start(
    machine: MachineProcess, launch: int, command: Sequence[str], cwd: Path, variables: Mapping[str, str] | None = None
) -> int:
    """Start the machine's process, unless it lives already for this launch, and return its process number.

    Processes of an earlier launch, or those that a killed process left, are ended first.

    Args:
        machine: the machine.
        launch: the launch of its run.
        command: what to start.
        cwd: the folder in which it starts.
        variables: of its environment, besides those that it takes over from this process.

    Raises:
        ProcessError: a process that is not ours has the lock.
    """
    machine.lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with _opened(machine.lock) as lock:
            if _take(lock):
                stop(machine.mark)  # end the orphans of a killed process
                _write(lock, {"launch": launch})
                pid = _spawn(machine, lock, command, cwd, variables or {})
                _write(lock, {"launch": launch, "pid": pid})
                return pid
            holder = _read(lock)
            if holder.get("launch") == launch and _is(pid := holder.get("pid", 0), machine.mark):
                return pid  # it was started by an `up` that was interrupted
        stop(machine.mark)
        time.sleep(0.05)  # another process may have the lock for a moment, in alive()
    raise ProcessError(f"{machine.lock} is locked by a process that is not ours; find it with: fuser {machine.lock}")


def _spawn(machine: MachineProcess, lock: int, command: Sequence[str], cwd: Path, variables: Mapping[str, str]) -> int:
    environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    environment |= {**variables, MARK: machine.mark, "PYTHONUNBUFFERED": "1"}
    with machine.log.open("ab") as log:
        process = subprocess.Popen(  # in a session of its own, which Ctrl-C and the end of a terminal do not reach
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    process.returncode = 0  # nobody waits for it, and Popen should not warn about that
    return process.pid


def alive(machine: MachineProcess) -> bool:
    """Return whether the process that start() started lives. Processes that it started do not count."""
    try:
        with _opened(machine.lock, create=False) as lock:
            return not _take(lock) and _is(_read(lock).get("pid", 0), machine.mark)
    except FileNotFoundError:
        return False


def stop(mark: str, grace: float = GRACE) -> list[int]:
    """End all processes whose mark starts with `mark`, wait until they are gone, and return their numbers.

    SIGTERM goes to those that lead a session, which pass it on, or to all if no leader is left. After `grace` seconds
    all get SIGKILL. Raise ProcessError for a process that does not end then.
    """
    seen: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    started = time.monotonic()
    while members := marked(mark):
        waited = time.monotonic() - started
        if waited > grace + KILL_PATIENCE:
            raise ProcessError(f"process {members[0].pid} does not end, even by kill -9; try again in a while")
        for member in members if waited > grace else _leaders(members) or members:
            with contextlib.suppress(psutil.NoSuchProcess):
                if waited > grace:
                    member.kill()
                elif member not in asked:
                    member.terminate()
                    asked.add(member)
        seen.update(members)
        psutil.wait_procs(members, timeout=0.2)
    return sorted(member.pid for member in seen)


def run_mark(folder: Path, run: str) -> str:
    """Return the beginning of the marks of all machines of a run."""
    return f"{folder}::{run}/"


def sweep(folder: Path, grace: float = GRACE) -> list[int]:
    """End the processes of all machines of a bucket, also those that no Pulumi state knows."""
    return stop(f"{folder}::", grace)


def _is(pid: int, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark)
    return False


def marked(mark: str) -> list[psutil.Process]:
    """Return all living processes whose mark starts with `mark`."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def _leaders(processes: list[psutil.Process]) -> list[psutil.Process]:
    leaders = []
    for process in processes:
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == process.pid:
                leaders.append(process)
    return leaders


@contextlib.contextmanager
def _opened(path: Path, create: bool = True) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    try:
        yield lock
    finally:
        os.close(lock)  # a process that inherited the lock keeps it


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(lock: int) -> dict[str, int]:
    try:
        content = json.loads(os.pread(lock, 1000, 0))
    except ValueError:  # it is empty while a process is being started
        return {}
    return content if isinstance(content, dict) else {}


def _write(lock: int, content: dict[str, int]) -> None:
    body = json.dumps(content).encode()
    os.pwrite(lock, body, 0)
    os.ftruncate(lock, len(body))
