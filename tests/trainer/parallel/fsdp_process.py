"""The program of test_fsdp.py's two processes: `python -m tests.trainer.parallel.fsdp_process '{"folder": …, …}'`.

The first process starts the second, as in a run. It trains a tiny model on made-up rows to the end, and writes its
results.
"""

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from trainer.parallel.fsdp import Sharded
from transformers import GPT2LMHeadModel

from trainer.cluster.announcement import Announcement
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.processes import FixedMembership, Processes
from trainer.compute.exit_codes import LEFT
from trainer.compute.process import die_with_parent
from trainer.contract.geometry import micro_batch_rows
from trainer.contract.options import Checkpoints, Data, Hyperparameters, Model
from trainer.contract.spec import Cluster, JobSpec
from trainer.data.batches import Dealing
from trainer.data.tokenizer import from_bytes
from trainer.model.gpt2 import build
from trainer.storage.factory import open_storage
from trainer.training.checkpoint import CheckpointStore
from trainer.training.member_context import MemberContext
from trainer.training.progress import decide
from trainer.training.vote import Vote

RUN = "a-run"
HYPER = Hyperparameters(
    learning_rate=0.01, batch_size=5, sequence_length=16, micro_batch_size=1, steps=50, warmup_steps=5
)


@dataclass
class Task:
    folder: str
    steps: int = 50
    precision: str = "fp32"
    save_at: int = -1  # the step at which a checkpoint is saved in the background
    stop_at: int = -1  # the step at which the second process gets a notice
    fail_at: int = -1  # the step at which the second process fails
    hang_at: int = -1  # the step at which the first process waits for the second to be killed

    def start(self) -> list[str]:
        return [sys.executable, "-m", "tests.trainer.parallel.fsdp_process", json.dumps(asdict(self))]


def new_model() -> GPT2LMHeadModel:
    """Return a model of 17 positions and width 23.

    Nothing divides by two, and some tensors are smaller than the alignment.
    """
    return build(Model(layers=2, heads=1, width=23, positions=17), from_bytes(), 0.0, seed=1).eval()


def rows(step: int) -> tuple[Tensor, Tensor]:
    """Return a batch that can be learned: each row counts up from some number."""
    starts = torch.randint(0, 200, (HYPER.batch_size, 1), generator=torch.Generator().manual_seed(step))
    tokens = starts + torch.arange(HYPER.sequence_length + 1)
    return tokens[:, :-1], tokens[:, 1:]


def main(task: Task) -> int:
    die_with_parent()
    torch.set_num_threads(1)
    processes = Processes(2, (0, LEFT), partial(print, flush=True))
    rank, storage, device = processes.rank, open_storage(task.folder), torch.device("cpu")
    said: list[str] = []
    host = cast(Any, SimpleNamespace(
        name="master-0", address="127.0.0.1", log=print, report=lambda *_, **__: None, waiting=print,
        stopping=lambda: rank == 1 and engine.progress.step == task.stop_at,
    ))  # fmt: skip
    spec = JobSpec.model_construct(
        run=RUN, cluster=Cluster(processes=2), hyperparameters=HYPER, data=Data(path="none", format="text")
    )
    membership = FixedMembership(processes, storage, spec, host, device)
    journal = SimpleNamespace(metrics=SimpleNamespace(flush=lambda: said.append("flushed")), log=said.append)
    checkpoints = CheckpointStore(storage, RUN, Checkpoints(keep=5), said.append, fenced=membership.fenced)
    context = MemberContext(storage, spec, host, membership, checkpoints, cast(Any, journal), processes=processes)
    precision = torch.bfloat16 if task.precision == "bf16" else None
    engine = Sharded(context, new_model(), device, precision, Announcement())
    engine.restore()
    membership.join(0.0)
    found: dict[str, Any] = {"from": engine.progress.step, "losses": [], "norms": [], "said": said}
    most = micro_batch_rows(HYPER.sequence_length, HYPER.micro_batch_size)
    parts = Dealing(HYPER.batch_size, most).micro_batches(rank, 2)
    code = 0
    try:
        while engine.progress.step < task.steps:
            step = engine.progress.step
            quorum = membership.quorum(engine.progress.position)
            if rank == 1 and step == task.fail_at:
                raise ValueError("a fault")
            if step == task.hang_at:
                storage.write(f"pid-{rank}", str(os.getpid()).encode())
                threading.Event().wait()
            inputs, targets = rows(step)
            engine.zero()
            summed, tokens = 0.0, 0
            for part in parts:
                loss = engine.loss(inputs[part], targets[part])
                loss.backward()  # type: ignore[no-untyped-call]
                summed, tokens = summed + loss.item(), tokens + targets[part].numel()
            engine.backward_ends()
            decision = decide(HYPER, engine.progress, engine.sum(Vote(summed, tokens)))
            engine.commit(decision, quorum.key, scaled=False)
            found["losses"].append(decision.loss)
            found["norms"].append(decision.gradient_norm)
            if engine.progress.step == task.save_at:
                engine.save(quorum.attempt, leads=rank == 0)
        engine.start(quorum)
        with torch.no_grad():  # three rows for two processes
            inputs, targets = rows(10_000)
            total = sum(engine.loss(inputs[i : i + 1], targets[i : i + 1]) for i in range(rank, 3, 2))
        engine.forward_ends(2)
        quorum.group.sum(total)
        found["evaluated"] = float(total)
        assert engine.finish(quorum)
        if engine.exported is not None:
            torch.save(engine.exported.state_dict(), Path(task.folder, "exported.pt"))
    except Stopping:
        code, found["whole"] = LEFT, engine.save(membership.attempt, leads=rank == 0, wait=True)
    found |= {"attempt": membership.attempt, "step": engine.progress.step}
    Path(task.folder, f"result-{rank}.json").write_text(json.dumps(found))
    membership.close()
    processes.wait()
    return code


if __name__ == "__main__":
    exit_code = main(Task(**json.loads(sys.argv[1])))
    sys.stdout.flush()
    os._exit(exit_code)
