"""Make what a trainer and a parameter server are both made of."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from trainer.cluster.membership import Membership
from trainer.cluster.processes import Processes
from trainer.cluster.quorum import Quorum
from trainer.compute.devices import check_devices
from trainer.compute.exit_codes import LEFT
from trainer.compute.process import Process
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs.metrics import Metrics
from trainer.runs.status import StatusWriter
from trainer.storage.base import Storage
from trainer.training.checkpoint import CheckpointStore
from trainer.training.journal import Journal
from trainer.training.member_context import MemberContext


class MemberHost:
    """A process as its member's host: it also leaves when it is fenced, and says in status.json what it waits for."""

    def __init__(self, process: Process, status: StatusWriter) -> None:
        self.name, self.address = process.name, process.address
        self.log, self.report = process.log, process.report
        self._process, self._status = process, status

    def waiting(self, reason: str) -> None:
        self.report(reason)
        self._status.set(state="RECOVERING", reason=reason)  # written only if this machine has led a step

    def stopping(self) -> bool:
        return self._process.stopping() or bool(self._status.fenced)


class Runnable(Protocol):
    """A trainer or a parameter server, as run_member() runs it."""

    def prepare(self) -> None:
        """Do all that can be done before others wait for this member."""

    def run(self) -> Quorum:
        """Work to the last step and return the last quorum. Raise Stopping if this machine must leave before."""

    def finish(self) -> None:
        """Write the model: the first member does, when all steps are taken."""

    def leave(self, since_told: Callable[[], float]) -> None:
        """Leave the others, and see that a checkpoint is written. since_told: seconds since the notice."""


def make_context(process: Process, storage: Storage, spec: JobSpec, *, serves: bool = False) -> MemberContext:
    """Make what this process needs to be a member, whether it trains or serves."""
    if not serves:
        check_devices(spec.cluster)
    processes = Processes(1 if serves else spec.cluster.processes, (0, LEFT), process.log)
    status = StatusWriter(storage, spec.run, spec.launch, process.log)
    host = MemberHost(process, status)
    device = torch.device("cuda", processes.rank) if torch.cuda.is_available() else torch.device("cpu")
    membership = Membership(storage, spec, host, device, processes, spec.cluster.processes if serves else 1)
    name = process.name if processes.rank == 0 else f"{process.name}-{processes.rank}"
    metrics = Metrics(storage, spec.run, name, process.log)
    scratch = _scratch(storage, spec.run, name)
    checkpoints = CheckpointStore(storage, spec.run, spec.checkpoints, process.log, scratch, membership.fenced)
    journal = Journal(metrics, status, membership, host, speaks=processes.rank == 0)
    return MemberContext(storage, spec, host, membership, checkpoints, journal, processes, scratch)


def _scratch(storage: Storage, run: str, name: str) -> Path | None:
    """Return an empty folder for files on their way into the bucket, or None for the system's own place.

    It is beside a bucket that is a folder, because /tmp may be memory. Files that are there are of a killed process.
    """
    folder = storage.local_path(paths.scratch(run, name))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder
