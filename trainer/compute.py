"""The process that computes on a master or worker: read the spec, prepare, join the cluster, train, export.

Started by `python -m trainer`, which restarts it and reports for it. Exit codes: 0 the run is over; INPUT what the
user gave cannot be trained, trying again is no use; LEFT the machine was told to leave (a notice, a stop); any other
is a failure worth another try.
"""

import argparse
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import status as status_file
from trainer.spec import InputError, JobSpec
from trainer.status import Fenced
from trainer.storage import Storage, StorageError, open_storage

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    from trainer.prepared import Prepared
    from trainer.train import Training

INPUT, LEFT = 2, 75
LEADER_SILENT = 30.0  # seconds without a heartbeat of the machine that exports the model


class Process:
    """What the parts share: where to log, how to report, whether to stop."""

    def __init__(self, name: str) -> None:
        self.name, self._told = name, math.inf
        descriptor = os.environ.get("GPT2_TRAINING_REPORT_FD")
        self._reports = os.fdopen(int(descriptor), "w", buffering=1) if descriptor else None
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)

    def _terminated(self, *_: object) -> None:
        self._told = min(self._told, time.monotonic())

    def stopping(self) -> bool:
        return self._told < math.inf

    def since_told(self) -> float:
        """Seconds since this machine was told to leave."""
        return time.monotonic() - self._told

    def log(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def report(self, message: str | None = None, step: int | None = None) -> None:
        """What this machine does now, for machines/<name>.json."""
        if self._reports is not None:
            self._reports.write(json.dumps({"message": message, "step": step}) + "\n")


def die_with_parent() -> None:
    """On Linux: if the supervisor is killed, the kernel kills this process too. A machine dies as a whole."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("GPT2_TRAINING_SUPERVISOR", os.getppid())):
            os._exit(1)  # it died before it could be said


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.compute", description=__doc__)
    for option in ("--bucket", "--run", "--name", "--address"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    process = Process(arguments.name)
    try:
        return train(process, open_storage(arguments.bucket), arguments.run, arguments.address)
    except InputError as error:
        print(error, flush=True)
        return INPUT
    except (StorageError, Fenced) as error:  # one line says it all; the supervisor tries again
        print(error, flush=True)
        return 1


def train(process: Process, storage: Storage, run: str, address: str) -> int:
    spec = status_file.read_spec(storage, run)
    if status_file.is_over(storage, run, spec.launch):
        return 0
    if process.name == "master-0":
        now = status_file.read_status(storage, run)
        if now is None or now.state == "PROVISIONING":
            status_file.update_status(storage, run, spec.launch, state="STARTING", reason="the trainers are starting")
    process.report("importing")
    prepared = _prepare(process, storage, spec)
    process.report("loading torch and the model")
    return _train(process, storage, spec, address, prepared)


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


def _train(process: Process, storage: Storage, spec: JobSpec, address: str, prepared: "Prepared") -> int:
    import torch

    from trainer import model as model_module
    from trainer.batches import Batches, Windows
    from trainer.checkpoint import Checkpoints
    from trainer.cluster import Cluster, Stopping
    from trainer.device import peak_speed, pick
    from trainer.metrics import Metrics
    from trainer.model import Flat
    from trainer.optimizer import Optimizer
    from trainer.train import Training

    torch.set_num_threads(spec.cluster.threads)
    scratch = _scratch(storage, spec.run, process.name)
    hyper = spec.hyperparameters
    device, precision = pick(hyper.precision)
    tokenizer = prepared.tokenizer()
    model = model_module.build(spec.model, tokenizer, hyper.dropout, hyper.seed).to(device)
    if hyper.sequence_length > model.config.n_positions:  # of a checkpoint, which has its own
        raise InputError(
            f"hyperparameters.sequenceLength: {hyper.sequence_length} is longer than the {model.config.n_positions}"
            f" positions of {spec.model.initialize}; lower it"
        )
    # Without dropout, training and evaluation compute the same function, and eval mode skips the dropout modules.
    model.train(hyper.dropout > 0)
    flat = Flat(model, device)
    loss = model_module.make_loss(model, precision, device)
    if hyper.compile:
        loss = model_module.compiled(loss, process.log)
    status = status_file.StatusWriter(storage, spec.run, spec.launch, process.log)
    metrics = Metrics(storage, spec.run, process.name, process.log)

    def stopping() -> bool:
        return process.stopping() or bool(status.fenced)

    cluster = Cluster(
        storage,
        spec.run,
        process.name,
        trainers=spec.cluster.trainers,
        least=1 + spec.cluster.min_workers,
        address=address,
        device=device,
        log=process.log,
        report=process.report,
        stopping=stopping,
    )
    training = Training(
        spec,
        flat=flat,
        loss=loss,
        optimizer=Optimizer(flat, hyper),
        batches=Batches(prepared.tokens("train"), hyper.batch_size, hyper.sequence_length, hyper.seed),
        validation=Windows(prepared.tokens("validation"), hyper.sequence_length),
        cluster=cluster,
        checkpoints=Checkpoints(storage, spec.run, spec.checkpoints.keep, process.log, scratch),
        metrics=metrics,
        status=status,
        device=device,
        scaled=precision == torch.float16,
        peak_speed=peak_speed(device, precision, model, hyper.sequence_length),
        log=process.log,
        report=process.report,
        stopping=stopping,
    )
    training.restore()
    warm_up = time.monotonic()
    process.report("warming up")
    training.gradient(training.progress.step, 0, spec.cluster.trainers, spec.cluster.trainers)
    process.report("joining the cluster")
    code = 0
    try:
        cluster.join(time.monotonic() - warm_up)
        while True:
            quorum = training.run()
            if quorum.rank == 0:
                _finish(process, storage, spec, training, model, tokenizer, prepared)
                break
            if _wait_for_the_end(process, storage, spec, quorum.members[0].name, stopping):
                break
    except Stopping:
        if status.fenced:  # the run is over, or goes on without this process: then it is to come back
            process.log(f"leaving: {status.fenced}")
            code = 0 if status_file.is_over(storage, spec.run, spec.launch) else 1
        else:
            code = LEFT
            cluster.close()  # the others go on at once: what follows may take a while
            if training.leads and training.progress.step > 0:
                _save_before_leaving(process, storage, spec, training)
            process.log(f"leaving at step {training.progress.step}")
    finally:  # also of a run that fails: its last steps are what one wants to see
        cluster.close()
        training.checkpoints.wait()
        metrics.close()
        status.close()
    return code


def _scratch(storage: Storage, run: str, name: str) -> Path | None:
    """Where files are made before they go into the bucket: beside it, as /tmp may be memory. None: the usual place.

    What lies there is of a process that was killed.
    """
    folder = storage.local_path(f"runs/{run}/scratch/{name}")
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def _save_before_leaving(process: Process, storage: Storage, spec: JobSpec, training: "Training") -> None:
    from trainer import checkpoint

    process.report("checkpointing before leaving")
    training.save(wait=True)
    name = checkpoint.name(*training.saved)
    with suppress(StorageError, FileNotFoundError):  # save() has said it
        storage.read(f"runs/{spec.run}/checkpoints/{name}/manifest.json")
        process.log(f"checkpoint {name} was whole {process.since_told():.1f} s after the notice")


def _finish(
    process: Process,
    storage: Storage,
    spec: JobSpec,
    training: "Training",
    model: "GPT2LMHeadModel",
    tokenizer: "Tokenizer",
    prepared: "Prepared",
) -> None:
    """The leader alone: last checkpoint, the model, and then the state that everybody waits for."""
    from trainer.export import export

    process.report("writing the model")
    training.save(wait=True)
    training.metrics.close()
    facts = {
        "validation_loss": training.progress.validation_loss or math.nan,
        "unigram_entropy": prepared.manifest.validation.unigram_entropy,
    }
    export(storage, spec, model, tokenizer, facts, _scratch(storage, spec.run, process.name))
    training.status.close()
    now = time.time()
    changes = {"step": training.progress.step, "attempt": training.cluster.attempt, "finished": now}
    status_file.update_status(storage, spec.run, spec.launch, state="SUCCEEDED", **changes)
    process.log(f"finished: the model is at {storage.url}/runs/{spec.run}/model")


def _wait_for_the_end(
    process: Process, storage: Storage, spec: JobSpec, leader: str, stopping: Callable[[], bool]
) -> bool:
    """True when the run is over; False when the leader was restarted or is silent: then finish with who is there."""
    from trainer.spec import MachineStatus

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
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # everything is written; torchft's and Triton's threads and destructors only make noise
