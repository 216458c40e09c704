"""A machine on this computer: a process that nobody waits for. Start it, tell whether it lives, end it for certain.

Two marks, because each alone has a gap. A lock on `machines/<name>.lock`, taken before the process starts and handed
on to it: two starts cannot both succeed, at whatever moment one is interrupted. And a variable in its environment,
which all that it starts inherits: it tells our processes from others that were given the same number later, and finds
those that left the process group, outlived the process that started them, or whose lock file somebody deleted.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.contract import paths

GRACE = 30.0  # seconds between SIGTERM and SIGKILL: as a Spot VM has, enough for a checkpoint and the last words
PATIENCE = 15.0  # seconds to wait for a lock
STUBBORN = 30.0  # seconds after SIGKILL before giving up: the process hangs in the kernel
MARK = "GPT2_TRAINING_MACHINE"
# What a machine may see of the environment: not Pulumi's, which carries passphrases and configuration.
KEPT = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TEMP", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("NO_PROXY", "no_proxy"),
}
KEPT_PREFIXES = (
    *("LC_", "XDG_", "HF_", "TORCH", "TRANSFORMERS_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "SSL_", "REQUESTS_CA"),
    *("HTTP_", "HTTPS_", "ALL_PROXY", "http_", "https_", "all_proxy", "GOOGLE_", "STORAGE_EMULATOR_", "COVERAGE_"),
)


class ProcessError(Exception):
    """One line for a person: a process that could not be started or ended."""


@dataclass(frozen=True)
class Machine:
    """A name in a run in a bucket, which is a folder."""

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


def start(machine: Machine, launch: int, command: Sequence[str], cwd: Path) -> int:
    """Starts the machine's process, unless it lives already for this launch. Returns its process number.

    What remains of an earlier launch, or of a process that was killed, is ended first.
    """
    machine.lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with _opened(machine.lock) as lock:
            if _take(lock):
                stop(machine.mark)  # orphans that a killed process left
                _write(lock, {"launch": launch})
                pid = _spawn(machine, lock, command, cwd)
                _write(lock, {"launch": launch, "pid": pid})
                return pid
            there = _read(lock)
            if there.get("launch") == launch and _is(pid := there.get("pid", 0), machine.mark):
                return pid  # an `up` that was interrupted started it
        stop(machine.mark)
        time.sleep(0.05)  # somebody else may just be looking whether it is locked
    raise ProcessError(f"{machine.lock} is locked by a process that is not ours; find it with: fuser {machine.lock}")


def _spawn(machine: Machine, lock: int, command: Sequence[str], cwd: Path) -> int:
    environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    environment |= {MARK: machine.mark, "PYTHONUNBUFFERED": "1"}
    with machine.log.open("ab") as log:
        process = subprocess.Popen(  # its own session: Ctrl-C and the end of a terminal do not reach it
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    process.returncode = 0  # nobody waits for it: keeps Popen from warning about that
    return process.pid


def alive(machine: Machine) -> bool:
    """Whether the process that start() started lives. What it started itself does not count."""
    try:
        with _opened(machine.lock, create=False) as lock:
            return not _take(lock) and _is(_read(lock).get("pid", 0), machine.mark)
    except FileNotFoundError:
        return False


def stop(mark: str, grace: float = GRACE) -> list[int]:
    """Ends all processes whose mark starts with `mark`, and returns when they are gone; which ones.

    First SIGTERM to those that lead a session, which pass it on; to all where no leader is left. After `grace`
    seconds SIGKILL to all. Raises ProcessError for one that does not even end then.
    """
    seen: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    begun = time.monotonic()
    while members := marked(mark):
        waited = time.monotonic() - begun
        if waited > grace + STUBBORN:
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
    """What the marks of all machines of a run start with."""
    return f"{folder}::{run}/"


def sweep(folder: Path, grace: float = GRACE) -> list[int]:
    """Ends the processes of all machines of a bucket, also those that no state knows about."""
    return stop(f"{folder}::", grace)


def _is(pid: int, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError, ValueError):
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark)
    return False


def marked(mark: str) -> list[psutil.Process]:
    """All living processes whose mark starts with `mark`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK, "").startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _leaders(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == process.pid:
                found.append(process)
    return found


@contextlib.contextmanager
def _opened(path: Path, create: bool = True) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    try:
        yield lock
    finally:
        os.close(lock)  # the lock itself stays with whom it was handed on to


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(lock: int) -> dict[str, int]:
    try:
        content = json.loads(os.pread(lock, 1000, 0))
    except ValueError:  # empty: it is just being started
        return {}
    return content if isinstance(content, dict) else {}


def _write(lock: int, content: dict[str, int]) -> None:
    body = json.dumps(content).encode()
    os.pwrite(lock, body, 0)
    os.ftruncate(lock, len(body))
