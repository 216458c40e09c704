"""Metrics: every step's record is there in the end, whichever member wrote it and whatever was lost."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.contract.options import Checkpoints
from trainer.runs import metrics as metrics_module
from trainer.runs.metrics import Metrics
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.records import Record
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage
from trainer.storage.local import FileStorage
from trainer.training.checkpoint import CheckpointShard, CheckpointStore
from trainer.training.progress import Progress

RUN = "a-run"


def record(step: int, loss: float = 1.0, attempt: int = 1, validation: float | None = None) -> Record:
    if validation is not None:
        return Record(step=step, time=float(step), attempt=attempt, validation_loss=validation)
    return Record(step=step, time=float(step), attempt=attempt, loss=loss)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def new_metrics(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Metrics]:
    """Return a function that makes Metrics which write only on demand, without TensorBoard."""
    monkeypatch.setattr(metrics_module, "FLUSH", 1000.0)
    monkeypatch.setattr(Metrics, "_tensorboard", lambda *_: None)
    return lambda name="master-0", where=storage: Metrics(where, RUN, name, print)


def steps(storage: Storage) -> list[int]:
    return [r.step for r in read_metrics(storage, RUN).steps]


def test_records_not_yet_written_are_written_by_close(storage: Storage, new_metrics: Callable[..., Metrics]) -> None:
    metrics = new_metrics()
    for step in (1, 2):
        metrics.add(record(step), leads=True)
    metrics.add(record(2, validation=0.5), leads=True)
    metrics.close()
    found = read_metrics(storage, RUN)
    assert [(r.step, r.loss, r.validation_loss) for r in [*found.steps, *found.evaluations]] == [
        (1, 1.0, None),
        (2, 1.0, None),
        (2, None, 0.5),
    ]


def test_metrics_are_written_by_the_leader_alone(storage: Storage, new_metrics: Callable[..., Metrics]) -> None:
    metrics = new_metrics("worker-0")
    metrics.add(record(1), leads=False)
    metrics.close()
    assert steps(storage) == []


def test_next_leader_writes_records_of_steps_before_it_led(
    storage: Storage, new_metrics: Callable[..., Metrics]
) -> None:
    worker = new_metrics("worker-0")
    worker.add(record(1), leads=False)
    worker.add(record(2), leads=True)
    worker.close()
    assert steps(storage) == [1, 2]


def test_fill_in_writes_records_that_a_restarted_leader_lost(
    storage: Storage, new_metrics: Callable[..., Metrics]
) -> None:
    worker = new_metrics("worker-0")
    worker.add(record(1), leads=False)
    worker.fill_in()
    # The write happens at once: the process may be killed before it writes anything in the background.
    assert steps(storage) == [1]
    worker.add(record(2), leads=False)
    worker.close()
    assert steps(storage) == [1]  # the leader writes the records since then


def test_restarted_process_overwrites_no_metrics_file(
    storage: Storage, new_metrics: Callable[..., Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    for begun in (100.0, 200.0):
        monkeypatch.setattr(metrics_module.time, "time", lambda now=begun: now)
        metrics = new_metrics()
        metrics.add(record(int(begun)), leads=True)
        metrics.close()
    assert steps(storage) == [100, 200]


def test_step_taken_in_two_attempts_has_the_newest_record(
    storage: Storage, new_metrics: Callable[..., Metrics]
) -> None:
    for name, attempt, loss in (("master-0", 2, 2.0), ("worker-0", 1, 1.0)):
        metrics = new_metrics(name)
        metrics.add(record(1, loss, attempt), leads=True)
        metrics.close()
    assert [r.loss for r in read_metrics(storage, RUN).steps] == [2.0]


def test_metrics_file_that_is_large_is_followed_by_a_new_one(
    storage: Storage, new_metrics: Callable[..., Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "SEGMENT", 100)
    metrics = new_metrics()
    for step in range(1, 8):
        metrics.add(record(step), leads=True)
        metrics.flush()
    metrics.close()
    assert steps(storage) == list(range(1, 8))
    assert len(storage.list(f"runs/{RUN}/metrics")) > 1


class Away(FileStorage):
    """A bucket that refuses the first writes."""

    refuse = 2

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        if self.refuse:
            self.refuse -= 1
            raise StorageError("cannot write: the disk is full; free some space")
        return super().write(path, data, if_generation=if_generation)


def test_records_that_could_not_be_written_are_written_later(
    tmp_path: Path, new_metrics: Callable[..., Metrics]
) -> None:
    storage = Away(tmp_path)
    metrics = new_metrics(where=storage)
    for step in (1, 2, 3):
        metrics.add(record(step), leads=True)
        metrics.flush()
    metrics.add(record(4), leads=True)
    storage.refuse = 1  # the same holds at the very end
    metrics.close()
    assert steps(storage) == [1, 2, 3, 4]


def test_records_of_steps_in_a_checkpoint_are_written_before_it(
    storage: Storage, new_metrics: Callable[..., Metrics]
) -> None:
    """A process that is killed resumes from its checkpoint, so nobody takes the steps before it again."""
    metrics = new_metrics()
    for step in (1, 2, 3):
        metrics.add(record(step), leads=True)
    checkpoints = CheckpointStore(storage, RUN, Checkpoints(keep=2), print)
    shard = CheckpointShard({"parameters": torch.ones(64)}, [("a", 0, 64, True)])
    checkpoints.save(shard, Progress(step=3), 1, before=metrics.flush)
    checkpoints.wait()
    assert steps(storage) == [1, 2, 3]
    metrics.close()


def test_records_are_kept_when_several_threads_flush(storage: Storage, new_metrics: Callable[..., Metrics]) -> None:
    metrics = new_metrics()

    def flush() -> None:
        for _ in range(20):
            metrics.flush()

    threads = [threading.Thread(target=flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in range(1, 201):
        metrics.add(record(step), leads=True)
    for thread in threads:
        thread.join()
    metrics.close()
    assert steps(storage) == list(range(1, 201))


def test_tensorboard_reads_every_step(storage: Storage, tmp_path: Path) -> None:
    metrics = Metrics(storage, RUN, "master-0", print)
    for step in (1, 2, 3):
        metrics.add(record(step, loss=5.0 - step), leads=True)
    metrics.add(record(3, validation=2.5), leads=True)
    metrics.close()
    board = EventAccumulator(str(tmp_path / "runs" / RUN / "metrics" / "tensorboard"))
    board.Reload()
    shown = [(point.step, point.wall_time, point.value) for point in board.Scalars("loss/train")]
    assert shown == [(1, 1.0, 4.0), (2, 2.0, 3.0), (3, 3.0, 2.0)]
    assert [(point.step, point.value) for point in board.Scalars("loss/validation")] == [(3, 2.5)]
