"""Whether a GPU computes the right thing: losses beside the CPU's, and beside those of a run that was disturbed."""

import math
import time

import psutil

from benchmarks.gpu_session import Session, finish, visible
from benchmarks.throughput import NEVER
from tests.trainer.running import Run

# Relative differences that losses may have in the first steps. fp32 on a GPU is TF32.
BOUNDS = {"fp32": 2e-3, "bf16": 2e-2, "fp16": 5e-3}
COMPARED = 20  # steps
RESTARTED = 1e-2  # the same of a run that was restarted, over all its steps; a GPU adds up in any order
CHECKPOINT_EVERY = 10  # steps


def small_run(session: Session, name: str, steps: int, precision: str, cluster: dict[str, int]) -> Run:
    """Declare a run of a small model. As its learning rate stays the same, a longer run begins with the same steps."""
    return Run(
        session.folder,
        run=name,
        model={"layers": 2, "heads": 2, "width": 64, "positions": 64},
        hyperparameters={
            "learningRate": 0.001, "batchSize": 8, "sequenceLength": 64, "steps": steps, "warmupSteps": 10,
            "microBatchSize": 1, "schedule": "constant", "precision": precision,
        },
        evaluation={"every": NEVER},
        checkpoints={"every": CHECKPOINT_EVERY if steps > COMPARED else NEVER},
        cluster={"workers": 0, "threads": 1, **cluster},
    )  # fmt: skip


def correctness(session: Session) -> None:
    """Compare losses with the CPU's, and those of a run that loses a process with those of one that does not."""
    gpu = session.gpus > 0
    steps = 1000 if gpu else 100  # for long enough that the process is killed before the end
    one, machine = ({"processes": count, "gpus": count if gpu else 0} for count in (1, max(1, session.gpus)))
    calm, killed = (small_run(session, name, steps, "fp32", machine) for name in ("calm", "killed"))
    exact = small_run(session, "exact", COMPARED, "fp32", {}) if gpu else calm
    runs = {name: small_run(session, name, COMPARED, name, one) for name in (BOUNDS if gpu else ["bf16"])}
    everything = [*runs.values(), calm, killed, exact]
    try:
        for run in everything:
            # The exact one sees no GPU; those of one precision share the first.
            with visible("" if gpu and run is exact else "0" if gpu and run in runs.values() else None):
                if not run.machines:
                    run.start(forked=not gpu)
        rank = _kill(killed, session.left)
        for run in everything:
            finish(run, session.left)
    finally:
        for run in everything:
            run.end()
    for name, run in runs.items():
        difference, bound = _difference(run.losses(), exact.losses()), BOUNDS[name]
        session.add(f"losses in {name}", f"{difference:.1e} from the CPU's", f"<= {bound:.0e}", 0 < difference <= bound)
    _compare_restarted(session, calm, killed, rank, RESTARTED if gpu else 0.0)


def _kill(run: Run, seconds: float) -> int:
    """Kill a process of the run's machine after the first checkpoint, and return its local rank."""
    end = time.monotonic() + seconds
    while not run.storage.list(f"runs/{run.spec.run}/checkpoints"):
        if time.monotonic() > end or run.machines["master-0"].poll() is not None:
            raise RuntimeError(f"no checkpoint to restart from; {run.status()}")
        time.sleep(0.02)
    first = psutil.Process(run.machine("master-0").trainer_pid)
    rank = 1 if run.spec.cluster.processes > 1 else 0
    (first.children()[0] if rank else first).kill()
    return rank


def _compare_restarted(session: Session, calm: Run, killed: Run, rank: int, bound: float) -> None:
    machine, status = killed.machine("master-0"), killed.status()
    assert status is not None
    difference = _difference(killed.losses(), calm.losses())
    count = killed.spec.cluster.processes
    part = f"process {rank} of {count} is killed"
    found = f"{machine.restarts} restart, attempt {status.attempt}, losses {difference:.1e} from an undisturbed run's"
    good = machine.restarts == 1 and status.attempt == 2 and difference <= bound
    session.add(part, found, f"1 restart, <= {bound:.0e}", good)


def _difference(losses: list[float | None], others: list[float | None]) -> float:
    """Return the largest relative difference of the steps that both have; infinite if one has no finite loss."""
    pairs = list(zip(losses, others, strict=False))
    if not pairs or any(a is None or b is None for a, b in pairs):
        return math.inf
    return max(abs(a - b) / b for a, b in pairs if a is not None and b is not None)
