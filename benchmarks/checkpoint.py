"""Measure the cost of a checkpoint, and the time to restore one: `python -m benchmarks.checkpoint`.

It trains on the CPU, in one process, in fp32 with AdamW: the local stack's default model, and gpt2 with a small batch.
The steps of such a batch are short, so a checkpoint is a smaller fraction of a real step. Turns of steps with a
checkpoint at their start alternate with as many steps without one, in the same run, so that a noisy machine disturbs
both alike. Each turn gives three figures, as fractions of a step without a checkpoint:

copy   the call of save(), for which the step waits
slow   the additional time of the steps that are taken while the checkpoint is written in the background
cost   both: the time that one checkpoint takes from the run

gs:// is a fake-gcs-server on this machine, whose own work slows the steps too. It is skipped if it was never built.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from tests.gcs import fake_gcs_server
from tools.go_tools import cache_root
from trainer.contract import paths
from trainer.contract.options import END_OF_TEXT, Checkpoints, Hyperparameters, Model
from trainer.model.flat import Flat
from trainer.model.gpt2 import build
from trainer.model.loss import make_loss
from trainer.parallel.ownership import norm_block
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage
from trainer.training.checkpoint import CheckpointShard, CheckpointStore
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Progress

WARM_UP = 2  # steps, and one checkpoint, which allocates the buffers that later ones use again


@dataclass(frozen=True)
class Case:
    name: str
    model: Model
    vocabulary: int
    rows: int
    length: int
    turns: int
    bucket: bool  # also measure gs://, whose server keeps everything in memory


CASES = [
    Case("local default", Model(layers=4, heads=4, width=128, positions=128), 1024, 16, 128, 20, True),
    Case("gpt2 (124M)", Model(size="gpt2"), 50257, 1, 128, 4, False),
]


class _Vocabulary:
    """Replace a tokenizer, of which only the size matters here."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab_size(self) -> int:
        return self._size

    def token_to_id(self, token: str) -> int:
        assert token == END_OF_TEXT
        return 0


class Run:
    """Take the steps of one model, as trainer/training/loop.py does with one trainer."""

    def __init__(self, case: Case) -> None:
        device, vocabulary = torch.device("cpu"), _Vocabulary(case.vocabulary)
        stand_in: Any = vocabulary
        flat = Flat(build(case.model, stand_in, 0.0, seed=1).eval(), device)
        total = len(flat.parameters)
        hyper = Hyperparameters(learning_rate=1e-4, batch_size=case.rows, sequence_length=case.length, steps=10**6)
        parts = segments(flat.layout, total, [(0, total)])
        self._flat, self._optimizer = flat, Optimizer(flat.parameters, flat.gradients, parts, hyper)
        self._loss, self._block = make_loss(flat.model, None, device), norm_block(total)
        tokens = torch.randint(0, case.vocabulary, (case.rows, case.length + 1))
        self._inputs, self._targets = tokens[:, :-1], tokens[:, 1:]
        self.layout, self.progress = flat.layout, Progress()
        self.vectors = {"parameters": flat.parameters}
        self.vectors |= {f"moment{i + 1}": moment for i, moment in enumerate(self._optimizer.vectors)}

    def step(self) -> None:
        gradients = self._flat.gradients
        gradients.zero_()
        self._loss(self._inputs, self._targets).backward()  # type: ignore[no-untyped-call]
        size = norm(squares(gradients, self._block))
        gradients.mul_(1.0 / (size + 1e-6))
        self._optimizer.update(1e-4)
        self.progress.step += 1


@dataclass(frozen=True)
class Turn:
    step: float  # seconds of a step without a checkpoint
    copy: float  # seconds of save()
    slow: float  # additional seconds of the steps that were taken while it was written
    steps: int  # the number of these steps


def turn(run: Run, checkpoints: CheckpointStore, count: int) -> Turn:
    """Measure one checkpoint, and steps without a checkpoint.

    count: the number of these steps, before the checkpoint; 0: as many as were taken while it was written, after it.
    """
    before = _seconds(run, count)
    run.step()
    begun = time.perf_counter()
    assert checkpoints.save(CheckpointShard(run.vectors, run.layout), run.progress, 1)
    copied = time.perf_counter()
    steps = 0
    while any(thread.name == "checkpoint" for thread in threading.enumerate()):
        run.step()
        steps += 1
    written = time.perf_counter()
    checkpoints.wait()
    step = before / count if count else _seconds(run, steps) / steps
    return Turn(step, copied - begun, written - copied - steps * step, steps)


def _seconds(run: Run, steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        run.step()
    return time.perf_counter() - begun


def restore_seconds(run: Run, checkpoints: CheckpointStore) -> float:
    into = {key: torch.zeros_like(vector) for key, vector in run.vectors.items()}
    begun = time.perf_counter()
    restored = checkpoints.restore(into, layout=run.layout)
    seconds = time.perf_counter() - begun
    assert restored is not None
    return seconds


def measure(case: Case, run: Run, storage: Storage, scratch: Path) -> str:
    """Return a line of results."""
    checkpoints = CheckpointStore(
        storage, "benchmark", Checkpoints(keep=1), lambda line: print(line, file=sys.stderr), scratch
    )
    for _ in range(WARM_UP):
        run.step()
    turns: list[Turn] = []
    written = turn(run, checkpoints, 0).steps
    for number in range(case.turns):
        turns.append(turn(run, checkpoints, written if number % 2 else 0))
        if number % 4 == 3:
            print(f"{case.name}: {number + 1} of {case.turns} turns", file=sys.stderr, flush=True)
    size = sum(entry.size for entry in storage.list(paths.run("benchmark")))
    restore = statistics.median(restore_seconds(run, checkpoints) for _ in range(3))

    def fraction(value: Callable[[Turn], float]) -> float:
        return statistics.median(value(t) / t.step for t in turns)

    step = statistics.median(t.step for t in turns)
    return (
        f"{case.name}, {case.rows} x {case.length} tokens, {storage.url.split(':')[0]}://: {size / 1e6:,.1f} MB;"
        f" step {step:.3f} s;"
        f" copy {fraction(lambda t: t.copy):.4f}, slow {fraction(lambda t: t.slow):+.3f},"
        f" cost {fraction(lambda t: t.copy + t.slow):+.3f} steps; written during"
        f" {statistics.median(t.steps for t in turns):.0f} steps; restore {restore:.2f} s ({restore / step:.1f} steps)"
    )


@contextlib.contextmanager
def buckets(folder: Path) -> Iterator[list[Storage]]:
    """Yield a folder, and a bucket if there is a server for it."""
    found = [open_storage(str(folder / "bucket"))]
    if not any(cache_root().glob("fake-gcs-server-*/fake-gcs-server")):
        print("no fake-gcs-server in the cache: gs:// is left out (`python3 -m tools.go_tools fake-gcs-server`)")
        yield found
        return
    with fake_gcs_server(folder / "gcs.log") as address:
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://{address}"
        gcs.Client(project="test", credentials=AnonymousCredentials()).create_bucket("benchmark")
        yield [*found, open_storage("gs://benchmark")]


def main() -> int:
    with tempfile.TemporaryDirectory() as made, buckets(Path(made)) as storages:
        for case in CASES:
            run = Run(case)
            for storage in storages if case.bucket else storages[:1]:
                print(measure(case, run, storage, Path(made)), flush=True)
                for entry in storage.list(paths.RUNS):
                    storage.delete(entry.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
