"""A machine's supervisor, the same on every platform, in one run.

It starts the process that computes, starts it again when it is lost, says in machines/<name>.json who is there, and
keeps the last words of whatever ends. It imports no torch, so that it starts at once and stays small. The machine is
done when the run is.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from trainer.compute.exit_codes import AWAY, INPUT, LEFT
from trainer.contract import pace, paths
from trainer.contract.spec import JobSpec, Role
from trainer.machine.environment import environment, memory_mb
from trainer.machine.process_environment import devices, process_environment, unused_gpus
from trainer.runs import history
from trainer.runs.records import Exit, MachineStatus, Status
from trainer.runs.status import Fenced, is_over, read_spec, update_status
from trainer.storage.base import Storage, StorageError, Unavailable

HEARTBEAT = 2.0  # seconds
CRASHES = 3  # ends with an error of its own, in a row and without a step in between, that fail the run
KILLS = 10  # the same for ends by a signal (a preemption, somebody's kill, always out of memory) and for AWAY
PAUSE = 0.5  # seconds before a restart
SILENCE, SLOWER = 600.0, 20.0  # seconds without a word after which a process hangs; or so many times the longest yet
GRACE = 25.0  # seconds from SIGTERM to SIGKILL
LAST_LINES = 40
TRACEBACK = "Traceback (most recent call last):"


class Supervisor:
    """Run a machine's computing process, start it again when it fails, and report on it."""

    def __init__(self, storage: Storage, spec: JobSpec, name: str, role: Role, address: str) -> None:
        self._storage, self._spec, self._address = storage, spec, address
        # The runs whose end is this machine's end: a trial ends with its sweep too.
        self._runs = [spec.run, *filter(None, [paths.sweep_of(spec.run)])]
        self.sweep: Supervisor | None = None  # in a trial: the supervisor that reports in the sweep's folder
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._traceback: deque[str] = deque(maxlen=LAST_LINES)  # the last lines since the child printed one
        self._terminated = threading.Event()
        self._notice: tuple[float, str] | None = None  # when it was asked to leave, and why
        self.grace, self.heartbeat = GRACE, HEARTBEAT
        self._again = threading.Event()  # the child was asked to leave, and must be started again
        self._child: subprocess.Popen[str] | None = None
        self._former: MachineStatus | None = None  # the status that an earlier boot of this machine left
        self._heard, self._patience = time.monotonic(), SILENCE
        machine = environment(devices(spec, name, role, os.environ))
        self._status = here(name=name, role=role, state="starting", environment=machine)
        self._lock = threading.Lock()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self.leave("asked to leave")

    def leave(self, why: str) -> None:
        """End the computing process, with time for a checkpoint, and then run(). Any thread may call it."""
        self._notice = self._notice or (time.time(), why)
        self._terminated.set()
        if self._child is not None:
            self._child.terminate()

    def told_to_leave(self, timeout: float) -> bool:
        """Return whether this machine must leave though its run may continue; wait up to `timeout` seconds for it."""
        return self._terminated.wait(timeout)

    # -- reports on this machine ---------------------------------------------------------------------------

    def say(self, **changes: Any) -> None:
        """Write machines/<name>.json. Computing continues while the bucket does not answer."""
        with self._lock:
            update = {**changes, "heartbeat": time.time(), "log": list(self._lines)}
            self._status = history.after_report(self._status, self._status.model_copy(update=update), self._notice)
            body = json.dumps(self._status.to_json()).encode()
            try:
                self._storage.write(paths.machine(self._spec.run, self._status.name), body)
            except (StorageError, OSError) as error:
                _print(f"the heartbeat could not be written ({error}); trying again")
        if self.sweep is not None:
            self.sweep.relay(self._status)

    def relay(self, trial: MachineStatus) -> None:
        """Report in the sweep's folder what this machine does in a trial; history and end are the sweep's own."""
        self._lines = deque(trial.log, maxlen=LAST_LINES)
        same = ("message", "step", "trainer_pid", "restarts", "memory_mb", "last_exit")
        state = "running" if trial.state in history.ENDS else trial.state  # it stays for the next trial
        self.say(state=state, **{name: getattr(trial, name) for name in same})

    def note(self, line: str) -> None:
        """Print a line of this process's own, and keep it for the last lines of the status."""
        _print(line)
        self._lines.append(line[:500])

    def _beat(self, child: subprocess.Popen[str], ended: threading.Event) -> None:
        over_since: float | None = None
        next_beat = 0.0
        while child.poll() is None:
            if time.monotonic() >= next_beat:
                self.say(memory_mb=memory_mb(child.pid))
                next_beat = time.monotonic() + self.heartbeat
                if not self._again.is_set() and self._outdated():
                    self._again.set()
                    child.terminate()
            over = self.over()
            if over is not None:
                over_since = over_since or time.monotonic()
                # After a success the process leaves by itself; after any other end only the leader does.
                waited = time.monotonic() - over_since
                if over.state != "SUCCEEDED" or waited > GRACE:
                    child.terminate()
                if waited > 2 * GRACE:
                    child.kill()
            if time.monotonic() - self._heard > self._patience:
                self.note(f"no word from the computing process for {self._patience:.0f} s: starting it again")
                child.kill()
            ended.wait(min(self.heartbeat, pace.LOOK))

    def _outdated(self) -> bool:
        """Return whether the cluster has changed so that the computing process must start again.

        The place of the parameters is decided when the cluster forms. A single trainer cannot be found by others that
        are added; and with more threads than its share, every process is slow.
        """
        try:
            new = read_spec(self._storage, self._spec.run).cluster
        except (StorageError, OSError, ValidationError):
            return False
        old = self._spec.cluster
        if any(getattr(new, count) != getattr(old, count) for count in ("parameter_servers", "processes", "gpus")):
            return True
        return self._status.role != "ps" and (new.threads != old.threads or old.trainers == 1 < new.trainers)

    def over(self) -> Status | None:
        """Return the status if the run or its sweep is over; None also while the bucket does not answer."""
        try:
            statuses = (is_over(self._storage, run, self._spec.launch) for run in self._runs)
            return next((status for status in statuses if status is not None), None)
        except (StorageError, OSError):
            return None

    def _read_output(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            _print(line.removesuffix("\n"))
            line = line.rstrip("\n")[:500]
            self._lines.append(line)
            begins = line.endswith(TRACEBACK)  # torch puts the process's rank before it
            if begins:
                self._traceback.clear()
            if begins or self._traceback:
                self._traceback.append(line)

    def _read_reports(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as reports:
            for line in reports:
                report = {key: value for key, value in json.loads(line).items() if value is not None}
                now = time.monotonic()
                # The process may wait for others as long as it reports, and its next work takes the usual time.
                allowed = SILENCE + report.pop("patience", 0.0)
                self._patience = max(self._patience, allowed, SLOWER * (now - self._heard))
                self._heard = now
                with self._lock:
                    self._status = self._status.model_copy(update=report)

    # -- the process that computes ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Continue the history that earlier boots of this machine left."""
        with suppress(StorageError, OSError, ValidationError):
            path = paths.machine(self._spec.run, self._status.name)
            self._former = MachineStatus.model_validate_json(self._storage.read(path))
        self._status = history.after_boot(self._former, self._status)

    def run(self) -> int:
        """Run until the run is over, this machine must leave, or nothing more can be tried; return the exit code."""
        self.begin()
        try:
            code = self._run()
        except Exception as error:  # whatever it is, the bucket shows it too
            self.say(state="failed", message=f"{type(error).__name__}: {error}"[:500], trainer_pid=None)
            raise
        if self._status.role == "master" and self.over() is not None:
            self.write_report()
        return code

    def write_report(self) -> None:
        """Write the run's report. A failure to write it is no failure of the run."""
        try:
            from trainer.report.page import write_page  # 0.1 s of imports that a start does not wait for

            write_page(self._storage, self._spec.run)
        except Exception as error:
            self.note(f"no report was written ({type(error).__name__}: {error}); python -m scripts.report makes one")
            self.say()  # the bucket has this line too

    def _run(self) -> int:
        if self.over() is not None:
            return self._come_late()
        crashes = kills = 0
        while not self._terminated.is_set():
            before = self._status.step
            code = self._compute_once()
            if self._again.is_set() and not self._terminated.is_set():
                self._again.clear()
                self.say(state="restarting", message="the cluster was changed: starting again")
                with suppress(StorageError, OSError, ValidationError):  # else with the old one; it is looked at again
                    self._spec = read_spec(self._storage, self._spec.run)
                continue
            # A child that this process ends before it can hear signals dies of SIGTERM instead of leaving.
            over = (code == LEFT or code < 0) and self.over() is not None
            if self._terminated.is_set():
                break
            if code == 0 or over:
                self.say(state="finished", message="the run is over", trainer_pid=None)
                return 0
            if self._status.step > before:
                crashes = kills = 0
            # LEFT: only the process was asked to leave, not the machine. AWAY: bucket, members or GPUs out of reach.
            killed = code < 0 or code in (LEFT, AWAY)
            crashes, kills = (crashes, kills + 1) if killed else (crashes + 1, kills)
            if code == INPUT or crashes >= CRASHES or kills >= KILLS:
                return self._fail(code)
            self.say(state="restarting", restarts=self._status.restarts + 1, message=self._last_words(code))
            self._terminated.wait(min(60.0, PAUSE * 2**kills) if code == AWAY else PAUSE)
        self.say(state="stopped", message=self._notice[1] if self._notice else "", trainer_pid=None)
        return 0

    def _come_late(self) -> int:
        """Report that nothing is left to do here. The last lines of an earlier machine of this name stay."""
        self._lines.extend(self._former.log if self._former else [])
        self.say(state="finished", message="the run was over before this machine started")
        return 0

    def _compute_once(self) -> int:
        reading, writing = os.pipe()
        # fmt: off
        command = [
            sys.executable, "-m", "trainer.compute", "--bucket", self._storage.url, "--run", self._spec.run,
            "--name", self._status.name, "--role", self._status.role, "--address", self._address,
        ]
        # fmt: on
        chosen, lines = process_environment(self._spec, self._status.name, self._status.role, self._address, os.environ)
        found = self._status.environment.get("gpu", "")
        for line in filter(None, [*lines, unused_gpus(self._spec, self._status.role, found, os.environ)]):
            self.note(line)
        environment = {
            **os.environ,
            **chosen,
            "GPT2_TRAINING_REPORT_FD": str(writing),
            "GPT2_TRAINING_SUPERVISOR": str(os.getpid()),
            "GPT2_TRAINING_GRACE": str(self.grace),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        self._heard = time.monotonic()
        self._traceback.clear()
        os.set_inheritable(writing, True)
        # close_fds=False: the child also inherits the lock that says that this machine lives (infra/local/processes.py)
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            close_fds=False,
        )  # fmt: skip
        os.close(writing)
        self._child = child
        if self._terminated.is_set():  # the signal came before there was a child to pass it on to
            child.terminate()
        ended = threading.Event()
        readers = [
            threading.Thread(target=self._read_output, args=(child,), daemon=True),
            threading.Thread(target=self._read_reports, args=(reading,), daemon=True),
            threading.Thread(target=self._beat, args=(child, ended), daemon=True),
        ]
        for reader in readers:
            reader.start()
        self.say(state="running", trainer_pid=child.pid)
        code = self._wait(child)
        ended.set()
        for reader in readers:
            reader.join(timeout=5)
        reason = self._last_words(code)
        self.say(last_exit=Exit(code=code, reason=reason, time=time.time()), trainer_pid=None)
        return code

    def _wait(self, child: subprocess.Popen[str]) -> int:
        """Return the child's exit code. Once this machine must leave, the child has `grace` seconds."""
        deadline = None
        while True:
            try:
                return child.wait(1.0)
            except subprocess.TimeoutExpired:
                if deadline is None and self._terminated.is_set():
                    deadline = time.monotonic() + self.grace
                if deadline is not None and time.monotonic() > deadline:
                    child.kill()

    def _last_words(self, code: int) -> str:
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = [line for line in self._lines if line.strip()]
        return lines[-1] if code and lines else f"exit code {code}"

    def _fail(self, code: int) -> int:
        """Fail the whole run, because trying again is no use; its other machines then leave."""
        reason = f"{self._status.name}: {self._last_words(code)}"
        self.say(state="failed", message=reason, trainer_pid=None)
        run, launch = self._spec.run, self._spec.launch
        traceback = list(self._traceback) if code > 0 and code not in (INPUT, LEFT, AWAY) else []
        end = {"state": "FAILED", "reason": reason, "traceback": traceback or None, "finished": time.time()}
        while not self._terminated.is_set():  # until the bucket can be written again: the run must not stay RUNNING
            with suppress(Unavailable):
                with suppress(Fenced):
                    update_status(self._storage, run, launch, **end)
                break
            self._terminated.wait(10 * PAUSE)
        _print(f"the run has failed: {reason}")
        return 1


def _print(line: str) -> None:
    """Print a line if that is possible: a full disk is no reason to stop, nor to stop reading the child's output."""
    with suppress(OSError):
        print(line, flush=True)


def here(**fields: Any) -> MachineStatus:
    """Return the status of this machine."""
    now = time.time()
    return MachineStatus(heartbeat=now, started=now, pid=os.getpid(), host=socket.gethostname(), **fields)
