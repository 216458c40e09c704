"""Run one member of the cluster, a trainer or a parameter server, from its making to its exit code."""

import gc
import os
import time
from collections.abc import Callable

import torch

from trainer.cluster.lighthouse import Stopping
from trainer.compute.context import Runnable, make_context
from trainer.compute.exit_codes import LEFT
from trainer.compute.process import Process
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.parallel.diloco_server import DilocoServer
from trainer.parallel.ps_server import PsServer
from trainer.runs import status as status_file
from trainer.runs.records import MachineStatus
from trainer.storage.base import Storage
from trainer.training.member_context import MemberContext

# Seconds without a heartbeat of the machine that exports the model: three of Google Cloud's, which are the rarest.
LEADER_SILENT = 60.0


def make_server(context: MemberContext) -> PsServer:
    """Make the parameter server that the run's synchronization needs."""
    return DilocoServer(context) if context.spec.parallel.synchronization == "local" else PsServer(context)


def run_member(
    process: Process,
    storage: Storage,
    spec: JobSpec,
    make: Callable[[MemberContext], Runnable],
    *,
    serves: bool = False,
) -> int:
    """Make the member, let it join the cluster and work to the run's end; return the exit code.

    All processes of a machine come here. Garbage collection is turned on once everything is imported and made.

    Args:
        process: this one.
        storage: the bucket.
        spec: the run.
        make: makes the member.
        serves: whether it is a parameter server.
    """
    # Make the member.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", spec.cluster.threads)))
    context = make_context(process, storage, spec, serves=serves)
    membership, journal = context.membership, context.journal
    member = make(context)
    gc.enable()
    started = time.monotonic()
    member.prepare()
    # Join, and work to the last step. The first process of the first member then writes the model; others wait for it.
    process.report("joining the cluster")
    process.give_up = membership.give_up
    processes, first, code = context.processes, context.processes.rank == 0, 0
    try:
        membership.join((time.monotonic() - started) * spec.parallel.every)
        while True:
            quorum = member.run()
            if quorum.rank == 0:
                if first:
                    _finish(process, storage, spec, context, member, quorum.attempt)
                break
            over = first and _wait_for_the_end(process, storage, spec, quorum.members[0].name, context.host.stopping)
            if processes.share(over):
                break
    except Stopping:
        fenced = journal.status.fenced
        if processes.share(bool(fenced)):  # the run is over, or continues without this machine, which must come back
            if first:
                process.log(f"leaving: {fenced}")
                code = 0 if status_file.is_over(storage, spec.run, spec.launch) else 1
        else:
            code = LEFT
            process.report("leaving")
            member.leave(process.since_told)
            if first:
                process.log("left")
    finally:  # also for a run that fails, whose last steps explain it
        membership.close()
        context.checkpoints.wait()
        journal.metrics.close()
        journal.status.close()
    if first:
        processes.wait()
    return code


def _finish(
    process: Process, storage: Storage, spec: JobSpec, context: MemberContext, member: Runnable, attempt: int
) -> None:
    """Write the model, and declare the run over."""
    process.report("writing the model")
    context.journal.metrics.close()
    member.finish()
    context.journal.status.close()
    changes = {"step": spec.hyperparameters.steps, "attempt": attempt, "finished": time.time()}
    status_file.update_status(storage, spec.run, spec.launch, state="SUCCEEDED", **changes)
    process.log(f"finished: the model is at {storage.url}/{paths.model(spec.run)}")


def _wait_for_the_end(
    process: Process, storage: Storage, spec: JobSpec, leader: str, stopping: Callable[[], bool]
) -> bool:
    """Wait until the run is over, and return True.

    Return False when the leader was restarted or is silent: the remaining members then finish the run.
    """
    restarts: int | None = None
    while not stopping():
        process.report(f"done; {leader} is writing the model")
        if status_file.is_over(storage, spec.run, spec.launch):
            return True
        try:
            machine = MachineStatus.model_validate_json(storage.read(paths.machine(spec.run, leader)))
            restarts = machine.restarts if restarts is None else restarts
            if machine.restarts != restarts or time.time() - machine.heartbeat > LEADER_SILENT:
                return False
        except FileNotFoundError:
            return False
        time.sleep(0.5)
    return True
