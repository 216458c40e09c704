"""Supervise a machine that is a VM of Google Cloud: preemption, metrics, and the end of all machines.

Its lines go to Cloud Logging as they are printed: Docker's gcplogs driver makes each the string `jsonPayload.message`
and knows no severity, so JSON objects would be no better to filter and worse to read. Lines that metrics and alerts
look for begin with a phrase of contract/log_phrases.py, each printed once.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from trainer.contract import pace, paths
from trainer.contract.log_phrases import FAILED, PREEMPTED, SUCCEEDED
from trainer.contract.spec import JobSpec, Role
from trainer.gcloud.api import ApiError, GoogleApi
from trainer.machine.cloud_metrics import Monitoring
from trainer.machine.metadata import Metadata, Vm
from trainer.runs.placement import End
from trainer.runs.records import Status
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage

GRACE = 100.0  # seconds for the trainer to leave: the notice comes 120 s before the end, and docker stop waits for 110
POLL = 60.0  # seconds that one request to the metadata server may wait for a change
PATIENCE = 600.0  # seconds: grants may take minutes to arrive
PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries
ASK_AGAIN = 240.0  # seconds in which the controller ends all machines, if nothing fails
Reply = TypeVar("Reply")


class Supervised(Protocol):
    """A machine as this module uses it: a Supervisor, or a SweepMachine."""

    grace: float
    heartbeat: float

    def run(self) -> int: ...
    def leave(self, why: str) -> None: ...
    def told_to_leave(self, timeout: float) -> bool: ...
    def note(self, line: str) -> None: ...
    def over(self) -> Status | None: ...


def await_rights(storage: Storage, spec: JobSpec, name: str, role: Role) -> None:
    """Wait until this machine may write below its run and read its text. Each grant takes its own time to arrive.

    A new run has new grants, and a machine may boot before Google knows them. Nothing is changed: to delete an absent
    file takes the same right as to write it. Raise StorageError if the first right does not arrive in PATIENCE seconds.
    Without the second one the run fails, with the reason.
    """
    note = partial(print, flush=True)
    absent = f"{paths.machines(spec.run)}/{name}.absent"
    retried("the right to write", lambda: storage.delete(absent), note)
    if role == "master" and spec.data.path.startswith("gs://"):
        bucket, _, path = spec.data.path.removeprefix("gs://").partition("/")
        with suppress(StorageError):
            retried("the right to read the text", lambda: open_storage(f"gs://{bucket}").size(path), note)


def supervise(machine: Supervised, storage: Storage, spec: JobSpec, name: str, role: Role) -> int:
    """Run the machine to its end; on the master, also end all machines when the run is over.

    Return the exit code; 0 says that nothing is left to do on this machine.
    """
    metadata = Metadata()
    vm = retried("the metadata server", lambda: Vm.read(metadata), machine.note)
    machine.grace, machine.heartbeat = GRACE, pace.HEARTBEAT

    def notice() -> None:
        machine.note(f"{PREEMPTED}{name} of {spec.run}: Google takes this machine back")
        machine.leave("preempted: Google takes this machine back")

    watch_for_preemption(metadata, notice)
    monitoring = None
    if role == "master":
        monitoring = Monitoring(storage, spec, vm, name, machine.note)
    came_late = machine.over() is not None
    code = machine.run()
    if machine.told_to_leave(0):
        return code
    status = machine.over()
    state = status.state if status is not None else "FAILED" if code else "SUCCEEDED"
    if monitoring is not None:
        monitoring.close(failed=state == "FAILED")
        if state == "FAILED":
            machine.note(f"{FAILED}{spec.run}: {status.reason if status else 'see the log'}")
        elif state == "SUCCEEDED" and not came_late:
            machine.note(f"{SUCCEEDED}{spec.run}")
        request_end(vm.controller, state, machine, storage, spec)
    return 0


def retried(awaited: str, ask: Callable[[], Reply], note: Callable[[str], None]) -> Reply:
    """Return what `ask` returns, tried again for PATIENCE seconds while the machine's grants may be on their way.

    Not google.api_core's Retry: it ends with an error of its own, and the callers print the one that was met.
    """
    pause, end = PAUSE, time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (StorageError, OSError) as error:
            if time.monotonic() > end:
                raise
            note(f"gpt2-training: waiting for {awaited} ({error})")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def watch_for_preemption(metadata: Metadata, notice: Callable[[], None]) -> None:
    """Call `notice` once, from a thread, when Google announces that it takes this VM back."""

    def watch() -> None:
        path = "instance/preempted"
        etag = ""
        while True:
            question = f"{path}?wait_for_change=true&last_etag={etag}&timeout_sec={POLL:.0f}" if etag else path
            try:
                value, etag = metadata.ask(question, POLL + 10)
            except OSError:  # it restarts now and then
                time.sleep(PAUSE)
                continue
            if value.upper() == "TRUE":
                notice()
                return
            if not etag:
                time.sleep(PAUSE)

    threading.Thread(target=watch, name="preemption", daemon=True).start()


def request_end(job: str, reason: str, machine: Supervised, storage: Storage, spec: JobSpec) -> None:
    """Ask the controller to end all machines, again and again until this one is taken away.

    An answer of the scheduler's job says only that a call was made, so the proof is that this machine goes, which the
    controller ends last. Never raises. Between two requests this looks whether the stack declares another run, and
    whether this machine must leave, which google.api_core's Retry cannot.

    Args:
        job: the full name of the scheduler's job that starts the controller.
        reason: why the machines end, for people.
        machine: this machine.
        storage: the run's bucket.
        spec: the run.
    """
    end, pause, last_line = End(reason=reason, time=time.time()).model_dump_json().encode(), PAUSE, ""
    while not _replaced(storage, spec):
        try:
            storage.write(paths.end(spec.run, spec.launch), end)
            GoogleApi().call("cloudscheduler", "POST", f"{job}:run", body={})
            line, pause, wait = "gpt2-training: the run is over: the controller ends the machines", PAUSE, ASK_AGAIN
        except (ApiError, StorageError, OSError) as error:
            line, wait = f"gpt2-training: the controller cannot be asked to end the machines yet ({error})", pause
            pause = min(2 * pause, LONGEST_PAUSE)
        if line != last_line:
            machine.note(line)
            last_line = line
        if machine.told_to_leave(wait):
            return
    machine.note("gpt2-training: the stack declares another run by now, which ends these machines")


def _replaced(storage: Storage, spec: JobSpec) -> bool:
    """Return whether the stack declares another run, or a later launch of this one."""
    try:
        current = json.loads(storage.read(paths.CURRENT))
        return bool(current["run"] != spec.run or current["launch"] > spec.launch)
    except (StorageError, OSError, ValueError, KeyError, TypeError):
        return False
