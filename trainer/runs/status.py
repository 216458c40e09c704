"""Change a run's status.json, one small file that many machines may change: every change is conditional."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from trainer.contract import pace, paths
from trainer.contract.spec import JobSpec
from trainer.runs.records import FINAL_STATES, Status
from trainer.storage.base import Conflict, Storage


class Fenced(Exception):
    """A newer attempt writes, or the run has ended: this machine was believed dead and must leave."""


def read_spec(storage: Storage, run: str) -> JobSpec:
    return JobSpec.model_validate_json(storage.read(paths.job(run)))


def read_status(storage: Storage, run: str) -> Status | None:
    try:
        return Status.model_validate_json(storage.read(paths.status(run)))
    except FileNotFoundError:
        return None


def update_status(storage: Storage, run: str, launch: int, **changes: Any) -> Status:
    """Change some fields of the status and keep the others; return the new status.

    A launch later than the stored one starts a run again that had ended without success. Raise Fenced if the run has
    ended in this launch, or if a later launch or attempt has written.
    """

    def changed(old: Status | None) -> Status:
        old = old or Status(state="PROVISIONING", updated=0.0)
        again = launch > old.launch and old.state != "SUCCEEDED"
        if old.state in FINAL_STATES and not again:
            raise Fenced(f"the run has {old.state.lower()}")
        if launch < old.launch or changes.get("attempt", old.attempt) < old.attempt:
            raise Fenced(f"launch {old.launch}, attempt {old.attempt} is newer")
        fresh: dict[str, Any] = {"reason": ""} if "state" in changes else {}
        if again:
            fresh |= {"finished": None, "started": None, "traceback": None}
        elif old.started is not None:
            changes.pop("started", None)  # it stays the first step of this launch, whoever has taken over since
        return old.model_copy(update={**fresh, **changes, "launch": launch, "updated": time.time()})

    new = revise(storage, run, changed)
    assert new is not None
    return new


def revise(storage: Storage, run: str, change: Callable[[Status | None], Status | None]) -> Status | None:
    """Write the status that `change` returns for the stored one, however many others write at the same time.

    change: may be called several times; None leaves the stored status as it is. Return what was written.
    """
    path = paths.status(run)
    while True:
        try:
            body, generation = storage.read_generation(path)
            new = change(Status.model_validate_json(body))
        except FileNotFoundError:
            new, generation = change(None), 0
        if new is None:
            return None
        try:
            storage.write(path, json.dumps(new.to_json()).encode(), if_generation=generation)
            return new
        except Conflict:
            continue


def is_over(storage: Storage, run: str, launch: int) -> Status | None:
    """Return the status if this launch has nothing left to do, else None.

    A launch has nothing left to do if the run has succeeded, or has ended in this launch or a later one.
    """
    status = read_status(storage, run)
    if status is None or status.state not in FINAL_STATES:
        return None
    return status if status.state == "SUCCEEDED" or status.launch >= launch else None


class StatusWriter:
    """Write the leader's view of the run every few seconds in the background, so that no step waits for storage."""

    def __init__(self, storage: Storage, run: str, launch: int, log: Callable[[str], None]) -> None:
        self._storage, self._run, self._launch, self._log = storage, run, launch, log
        self._every = 1.0 if storage.local_path(paths.RUNS) is not None else pace.STATUS
        self._lock = threading.Lock()
        self._changes: dict[str, Any] = {}
        self._leads = self._closed = False
        self.fenced = ""  # why this machine must leave; empty while it may stay
        self._thread = threading.Thread(target=self._loop, name="status", daemon=True)
        self._wake = threading.Event()
        self._thread.start()

    def set(self, *, leads: bool | None = None, **changes: Any) -> None:
        """Change fields at the next write. Only the leader's changes are written; `leads` is known with each step."""
        with self._lock:
            self._leads = self._leads if leads is None else leads
            self._changes |= changes

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self._wake.wait(self._every)
            closing = self._closed  # read before the last write, which then has everything
            with self._lock:
                changes, self._changes = (self._changes, {}) if self._leads else ({}, self._changes)
            if changes:
                try:
                    update_status(self._storage, self._run, self._launch, **changes)
                except Fenced as error:
                    self.fenced = str(error)
                except Exception as error:  # the storage is away or the disk is full; the next write has it all
                    self._log(f"the status could not be written ({error}); trying again")
                    with self._lock:
                        self._changes = changes | self._changes
            if closing:
                return
