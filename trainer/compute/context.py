"""What a trainer and a parameter server are both made of."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from trainer.cluster.membership import Cluster, Quorum
from trainer.cluster.processes import Processes, Together
from trainer.compute.exit_codes import LEFT
from trainer.compute.process import Process
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs import status as status_file
from trainer.runs.metrics import Metrics
from trainer.storage.base import Storage
from trainer.training.checkpoint import Checkpoints
from trainer.training.journal import Journal


@dataclass
class Parts:
    """What a trainer and a parameter server are made of alike."""

    process: Process
    storage: Storage
    spec: JobSpec
    cluster: Cluster
    checkpoints: Checkpoints
    scratch: Path | None
    journal: Journal
    stopping: Callable[[], bool]
    processes: Processes | None = None  # of this machine, if they share one model


class Member(Protocol):
    """A trainer or a parameter server, as it is run here."""

    def prepare(self) -> None:
        """All that can be done before others wait for this member."""

    def run(self) -> Quorum:
        """To the last step; Stopping if this machine is told to leave before."""

    def finish(self) -> None:
        """What the first member does when all steps are taken: it writes the model."""

    def leave(self, since_told: Callable[[], float]) -> None:
        """This machine was told to leave."""


def make_parts(process: Process, storage: Storage, spec: JobSpec, address: str) -> Parts:
    """Of this process, whether it trains or serves."""
    status = status_file.StatusWriter(storage, spec.run, spec.launch, process.log)
    metrics = Metrics(storage, spec.run, process.name, process.log)

    def stopping() -> bool:
        return process.stopping() or bool(status.fenced)

    def waits(reason: str) -> None:
        process.report(reason)
        status.set(state="RECOVERING", reason=reason)  # written only if this machine has led a step

    processes: Processes | None = None
    kind: Callable[..., Cluster] = Cluster
    if spec.parallel.parallelism == "fsdp":
        processes = Processes(spec.cluster.processes, (0, LEFT), process.log)
        kind = partial(Together, processes)
    cluster = kind(
        storage=storage,
        run=spec.run,
        name=process.name,
        declared=spec.cluster,
        address=address,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        log=process.log,
        report=process.report,
        waits=waits,
        stopping=stopping,
    )
    scratch = _scratch(storage, spec.run, f"{process.name}-{processes.rank}" if processes else process.name)
    kept = spec.checkpoints
    checkpoints = Checkpoints(storage, spec.run, kept.keep, process.log, scratch, kept.keep_every, cluster.fenced)
    journal = Journal(metrics, status, cluster, process.log, process.report)
    return Parts(process, storage, spec, cluster, checkpoints, scratch, journal, stopping, processes)


def _scratch(storage: Storage, run: str, name: str) -> Path | None:
    """Where files are made before they go into the bucket: beside it, as /tmp may be memory. None: the usual place.

    What lies there is of a process that was killed.
    """
    folder = storage.local_path(paths.scratch(run, name))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder
