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


def run_member(process: Process, storage: Storage, spec: JobSpec, make: Callable[[MemberContext], Runnable]) -> int:
    """Make the member, let it join the cluster and work to the run's end; return the exit code.

    Garbage collection is turned on once everything is imported and made.
    """
    # Make the member.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", spec.cluster.threads)))
    context = make_context(process, storage, spec)
    membership, journal = context.membership, context.journal
    member = make(context)
    gc.enable()
    started = time.monotonic()
    member.prepare()
    # Join, and work to the last step. The first member then writes the model, and the others wait for it.
    process.report("joining the cluster")
    process.give_up = membership.give_up
    code = 0
    try:
        membership.join((time.monotonic() - started) * spec.parallel.every)
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
                process.log(f"finished: the model is at {storage.url}/{paths.model(spec.run)}")
                if context.processes is not None:
                    context.processes.wait()
                break
            if context.processes is not None:  # the machine's first process does the rest
                break
            if _wait_for_the_end(process, storage, spec, quorum.members[0].name, context.host.stopping):
                break
    except Stopping:
        if journal.status.fenced:  # the run is over, or continues without this process, which then must come back
            process.log(f"leaving: {journal.status.fenced}")
            code = 0 if status_file.is_over(storage, spec.run, spec.launch) else 1
        else:
            code = LEFT
            process.report("leaving")
            member.leave(process.since_told)
            process.log("left")
    finally:  # also for a run that fails, whose last steps explain it
        membership.close()
        context.checkpoints.wait()
        journal.metrics.close()
        journal.status.close()
    return code


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
