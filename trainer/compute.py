"""The process that computes: read the spec, join the cluster, train or serve parameters, export.

Started by `python -m trainer`, which restarts it and reports for it. Exit codes: 0 the run is over; INPUT what the
user gave cannot be trained, trying again is no use; LEFT the machine was told to leave (a notice, a stop); AWAY the
bucket or the other members were out of reach, which is no failure of the program; any other is one.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer import status as status_file
from trainer.lease import NoProgress
from trainer.spec import InputError, JobSpec, Role
from trainer.status import Fenced
from trainer.storage import Storage, StorageError, Unavailable, open_storage

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoints
    from trainer.cluster import Cluster, Quorum
    from trainer.journal import Journal
    from trainer.parallel.processes import Processes
    from trainer.prepared import Prepared

INPUT, LEFT, AWAY = 2, 75, 74
FINISH = 5.0  # seconds after a notice in which the step that is under way may still be finished
LEADER_SILENT = 30.0  # seconds without a heartbeat of the machine that exports the model


class Process:
    """What the parts share: where to log, how to report, whether to stop.

    give_up: called FINISH seconds after this machine was told to leave.
    """

    def __init__(self, name: str) -> None:
        self.name, self._told = name, math.inf
        self.give_up: Callable[[], None] = lambda: None
        descriptor = os.environ.get("GPT2_TRAINING_REPORT_FD")
        self._reports = os.fdopen(int(descriptor), "w", buffering=1) if descriptor else None
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        threading.Thread(target=self._hear, args=(reading,), name="notice", daemon=True).start()

    def _hear(self, signals: int) -> None:
        """The main thread runs no handler while a library makes it wait for other members: this one hears at once."""
        os.read(signals, 1)
        self._terminated()
        time.sleep(FINISH)
        self.give_up()

    def _terminated(self, *_: object) -> None:
        self._told = min(self._told, time.monotonic())

    def stopping(self) -> bool:
        return self._told < math.inf

    def since_told(self) -> float:
        """Seconds since this machine was told to leave."""
        return time.monotonic() - self._told

    def log(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def report(self, message: str | None = None, step: int | None = None, patience: float | None = None) -> None:
        """What this machine does now, for machines/<name>.json; patience: seconds that it may be silent from now on."""
        if self._reports is not None:
            self._reports.write(json.dumps({"message": message, "step": step, "patience": patience}) + "\n")


def die_with_parent() -> None:
    """On Linux: if the supervisor is killed, the kernel kills this process too. A machine dies as a whole."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("GPT2_TRAINING_SUPERVISOR", os.getppid())):
            os._exit(1)  # it died before it could be said


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.compute", description=__doc__)
    for option in ("--bucket", "--run", "--name", "--role", "--address"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    process = Process(arguments.name)
    try:
        return take_part(process, open_storage(arguments.bucket), arguments.run, arguments.role, arguments.address)
    except InputError as error:
        print(error, flush=True)
        return INPUT
    except (StorageError, Fenced, NoProgress) as error:  # one line says it all; the supervisor tries again
        print(error, flush=True)
        return AWAY if isinstance(error, Unavailable | NoProgress) else 1


def take_part(process: Process, storage: Storage, run: str, role: Role, address: str) -> int:
    spec = status_file.read_spec(storage, run)
    if status_file.is_over(storage, run, spec.launch):
        return 0
    if role == "ps":
        return _take_part(process, storage, spec, address, _server)
    if role == "master":
        now = status_file.read_status(storage, run)
        if now is None or now.state == "PROVISIONING":
            status_file.update_status(storage, run, spec.launch, state="STARTING", reason="the trainers are starting")
    process.report("importing")
    prepared = _prepare(process, storage, spec)
    process.report("loading torch and the model")
    return _take_part(process, storage, spec, address, partial(_trainer, prepared=prepared))


def _prepare(process: Process, storage: Storage, spec: JobSpec) -> "Prepared":
    """Tokens and tokenizer. The master makes them where they are missing; the others wait and say so."""
    from trainer import data  # numpy and tokenizers: a finished run is known without them
    from trainer import prepared as tokens

    def progress(done: int, total: int) -> None:
        process.report(f"tokenizing {spec.data.path}: {done / max(total, 1):.0%}")

    while process.name != "master-0" and tokens.find(storage, spec.data, spec.fingerprint) is None:
        process.report("waiting for master-0 to prepare the data")
        if process.stopping() or status_file.is_over(storage, spec.run, spec.launch):
            raise SystemExit(LEFT if process.stopping() else 0)
        time.sleep(0.5)
    prepared = data.prepare(storage, spec.data, spec.fingerprint, progress)
    data.check_enough(prepared, spec.hyperparameters.sequence_length, spec.hyperparameters.batch_size)
    return prepared


@dataclass
class Parts:
    """What a trainer and a parameter server are made of alike."""

    process: Process
    storage: Storage
    spec: JobSpec
    cluster: "Cluster"
    checkpoints: "Checkpoints"
    scratch: Path | None
    journal: "Journal"
    stopping: Callable[[], bool]
    processes: "Processes | None" = None  # of this machine, if they share one model


class Member(Protocol):
    """A trainer or a parameter server, as it is run here."""

    def prepare(self) -> None:
        """All that can be done before others wait for this member."""

    def run(self) -> "Quorum":
        """To the last step; Stopping if this machine is told to leave before."""

    def finish(self) -> None:
        """What the first member does when all steps are taken: it writes the model."""

    def leave(self, since_told: Callable[[], float]) -> None:
        """This machine was told to leave."""


def make_parts(process: Process, storage: Storage, spec: JobSpec, address: str) -> Parts:
    """Of this process, whether it trains or serves."""
    import torch

    from trainer.checkpoint import Checkpoints
    from trainer.cluster import Cluster
    from trainer.journal import Journal
    from trainer.metrics import Metrics

    status = status_file.StatusWriter(storage, spec.run, spec.launch, process.log)
    metrics = Metrics(storage, spec.run, process.name, process.log)

    def stopping() -> bool:
        return process.stopping() or bool(status.fenced)

    def waits(reason: str) -> None:
        process.report(reason)
        status.set(
            state="RECOVERING", reason=reason
        )  # written if this machine has led a step: before, all are starting

    processes: Processes | None = None
    kind: Callable[..., Cluster] = Cluster
    if spec.parallel.parallelism == "fsdp":
        from trainer.parallel import processes as of_one_machine

        processes = of_one_machine.Processes(spec.cluster.processes, (0, LEFT), process.log)
        kind = partial(of_one_machine.Together, processes)
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


def _take_part(
    process: Process, storage: Storage, spec: JobSpec, address: str, make: "Callable[[Parts], Member]"
) -> int:
    gc.disable()  # a sixth of the time that torch and transformers take to import would go to looking for garbage
    import torch

    from trainer.lighthouse import Stopping

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", spec.cluster.threads)))
    parts = make_parts(process, storage, spec, address)
    cluster, journal = parts.cluster, parts.journal
    member = make(parts)
    gc.enable()
    begun = time.monotonic()
    member.prepare()
    process.report("joining the cluster")
    process.give_up = cluster.give_up
    code = 0
    try:
        cluster.join((time.monotonic() - begun) * spec.parallel.every)
        while True:
            quorum = member.run()
            if quorum.rank == 0:
                process.report("writing the model")
                journal.metrics.close()
                member.finish()
                journal.status.close()
                now = time.time()
                changes = {"step": spec.hyperparameters.steps, "attempt": quorum.attempt, "finished": now}
                status_file.update_status(storage, spec.run, spec.launch, state="SUCCEEDED", **changes)
                process.log(f"finished: the model is at {storage.url}/runs/{spec.run}/model")
                if parts.processes is not None:
                    parts.processes.wait()
                break
            if parts.processes is not None:  # the first one of this machine does the rest
                break
            if _wait_for_the_end(process, storage, spec, quorum.members[0].name, parts.stopping):
                break
    except Stopping:
        if journal.status.fenced:  # the run is over, or goes on without this process: then it is to come back
            process.log(f"leaving: {journal.status.fenced}")
            code = 0 if status_file.is_over(storage, spec.run, spec.launch) else 1
        else:
            code = LEFT
            process.report("leaving")
            member.leave(process.since_told)
            process.log("left")
    finally:  # also of a run that fails: its last steps are what one wants to see
        cluster.close()
        parts.checkpoints.wait()
        journal.metrics.close()
        journal.status.close()
    return code


def _trainer(parts: Parts, prepared: "Prepared") -> Member:
    from trainer.assembly import assemble

    return assemble(parts, prepared)


def _server(parts: Parts) -> Member:
    from trainer.parallel.server import Server

    kind = Server
    if parts.spec.parallel.synchronization == "local":
        from trainer.parallel.outer import OuterServer

        kind = OuterServer
    return kind(parts.spec, parts.process.name, parts.cluster, parts.checkpoints, parts.journal, parts.stopping)


def _scratch(storage: Storage, run: str, name: str) -> Path | None:
    """Where files are made before they go into the bucket: beside it, as /tmp may be memory. None: the usual place.

    What lies there is of a process that was killed.
    """
    folder = storage.local_path(f"runs/{run}/scratch/{name}")
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def _wait_for_the_end(
    process: Process, storage: Storage, spec: JobSpec, leader: str, stopping: Callable[[], bool]
) -> bool:
    """True when the run is over; False when the leader was restarted or is silent: then finish with who is there."""
    from trainer.records import MachineStatus

    restarts: int | None = None
    while not stopping():
        process.report(f"done; {leader} is writing the model")
        if status_file.is_over(storage, spec.run, spec.launch):
            return True
        try:
            machine = MachineStatus.model_validate_json(storage.read(f"runs/{spec.run}/machines/{leader}.json"))
            restarts = machine.restarts if restarts is None else restarts
            if machine.restarts != restarts or time.time() - machine.heartbeat > LEADER_SILENT:
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.5)
    return True


if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as end:
        exit_code = int(end.code or 0)
    except BaseException:  # not left to the interpreter: it would wait for threads that wait for what never comes
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    os._exit(exit_code)  # everything is written; torchft's and Triton's threads and destructors only make noise
