"""Change a run's status as Pulumi decides it: declared, ended by destroy, replaced; the same on every platform."""

import json
import time
from dataclasses import dataclass

from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs.records import DESTROYED, FINAL_STATES, REPLACED, Status
from trainer.runs.status import revise
from trainer.storage.base import Storage


def begin(storage: Storage, run: str, launch: int) -> None:
    """Write into the status that the run is declared, unless the run is under way or over."""
    revise(storage, run, lambda old: _begun(old, launch))


def end(storage: Storage, run: str, launch: int) -> None:
    """Write into the status why this launch stopped, unless it is over or a later launch has begun."""
    revise(storage, run, lambda old: _ended(old, storage, run, launch))


def _begun(old: Status | None, launch: int) -> Status | None:
    """Return the status of a run that is declared; None if the status stays as it is."""
    if old is None:
        return Status(state="PROVISIONING", launch=launch, updated=time.time())
    again = old.state in ("FAILED", "STOPPED") and launch > old.launch
    if not (old.taken_back or again):
        return None
    fields = {"state": "PROVISIONING", "reason": "", "launch": launch, "updated": time.time()}
    return old.model_copy(update={**fields, **dict.fromkeys(("started", "finished", "traceback"))})


def _ended(old: Status | None, storage: Storage, run: str, launch: int) -> Status | None:
    """Return the status of a run that is not declared any more; None if the status stays as it is."""
    if old is None or old.state in FINAL_STATES or old.launch > launch:
        return None
    saved = newest_checkpoint(storage, run)
    onward = f"continues from step {saved.step}" if saved else "starts at step 0, as there is no checkpoint yet"
    try:
        other = json.loads(storage.read(paths.CURRENT))["run"]
    except FileNotFoundError:
        other = run
    reason = f"{DESTROYED}`pulumi up` {onward}"
    if other != run:
        reason = f"{REPLACED}{other}; the former stack file {onward}"
    now = time.time()
    return old.model_copy(update={"state": "STOPPED", "reason": reason, "updated": now, "finished": now})


@dataclass(frozen=True, order=True)
class SavedCheckpoint:
    """A whole checkpoint: its step, and when it became whole, in seconds since the epoch."""

    step: int
    time: float


def newest_checkpoint(storage: Storage, run: str) -> SavedCheckpoint | None:
    """Return the newest whole checkpoint of a run, None if it has none."""
    manifests = ((entry, paths.parse_whole_checkpoint(entry.path)) for entry in storage.list(paths.checkpoints(run)))
    return max((SavedCheckpoint(parsed[0], entry.updated) for entry, parsed in manifests if parsed), default=None)


def is_finished(status: Status | None, job: JobSpec) -> bool:
    """Return whether a declared run has nothing left to do in this launch, so that it needs no machines."""
    if status is None or status.state not in FINAL_STATES or status.taken_back:
        return False
    return status.state == "SUCCEEDED" or status.launch >= job.launch


def status_line(status: Status | None, url: str, job: JobSpec) -> tuple[bool, str] | None:
    """Return (needs attention, a line for a person) about the status of a declared run; None if the run is new."""
    if status is None or status.taken_back:
        return None
    if status.state == "SUCCEEDED":
        return (
            False,
            f"run {job.run} has SUCCEEDED: nothing is left to do, its model is in {url}/{paths.model(job.run)}",
        )
    if is_finished(status, job):
        return True, (
            f"run {job.run} has {status.state} at step {status.step} ({status.reason}); set gpt2-training:launch to"
            f" {status.launch + 1} to continue from its newest checkpoint"
        )
    return False, f"run {job.run} is {status.state} at step {status.step}"
