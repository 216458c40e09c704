"""FSDP in two real processes on gloo: the same training as in one, the same checkpoints, and all end together."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.faults import all_records
from tests.trainer.parallel.fsdp_process import HYPER, RUN, Task, new_model, rows
from tests.trainer.running import PATIENCE, ROOT, Run
from tests.warm import Process
from trainer.cluster.announcement import Tally
from trainer.compute.exit_codes import LEFT
from trainer.contract.options import Checkpoints
from trainer.model.flat import Flat
from trainer.model.loss import make_loss
from trainer.storage.factory import open_storage
from trainer.training.checkpoint import CheckpointShard, CheckpointStore
from trainer.training.optimizer import Optimizer, norm, segments, squares
from trainer.training.progress import Progress, decide

pytestmark = pytest.mark.slow


@dataclass
class Plain:
    """The same training in one process, made of the replicas' parts."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flat, self.progress = Flat(new_model(), torch.device("cpu")), Progress()
        total = len(self.flat.parameters)
        parts = segments(self.flat.layout, total, [(0, total)])
        self.optimizer = Optimizer(self.flat.parameters, self.flat.gradients, parts, HYPER)
        self.loss = make_loss(self.flat.model, None, torch.device("cpu"))
        self.vectors = {"parameters": self.flat.parameters}
        self.vectors |= {f"moment{i + 1}": moment for i, moment in enumerate(self.optimizer.vectors)}

    def train(self, steps: int) -> "Plain":
        while self.progress.step < steps:
            inputs, targets = rows(self.progress.step)
            self.flat.gradients.zero_()
            loss = self.loss(inputs, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            size = norm(squares(self.flat.gradients, 65536))
            decision = decide(HYPER, self.progress, Tally(loss.item(), targets.numel(), size))
            self.flat.gradients.mul_(decision.factor)
            self.optimizer.update(decision.rate)
            self.progress.commit(decision, "plain", scaled=False)
            self.losses.append(decision.loss)
            self.norms.append(decision.gradient_norm)
        return self

    def restore(self, folder: Path) -> "Plain":
        checkpoints = CheckpointStore(open_storage(str(folder)), RUN, Checkpoints(keep=5), print)
        restored = checkpoints.restore(self.vectors, layout=self.flat.layout)
        assert restored is not None
        self.progress, self.optimizer.updates = restored.progress, restored.progress.updates
        return self

    def save(self, folder: Path) -> None:
        checkpoints = CheckpointStore(open_storage(str(folder)), RUN, Checkpoints(keep=5), print)
        checkpoints.save(CheckpointShard(self.vectors, self.flat.layout), self.progress, 1)
        checkpoints.wait()


def ended(task: Task) -> tuple[int, str]:
    """Return the first process's exit code, and the output of both."""
    with Path(task.folder, "output").open("w+") as output:
        code = Process(task.start(), ROOT, os.environ, output.fileno()).wait(PATIENCE)
        return code, Path(output.name).read_text()


def run(task: Task, expected: int = 0) -> dict[str, Any]:
    """Wait until both processes have ended; return the results that the first one wrote."""
    code, said = ended(task)
    assert code == expected, said
    results = [json.loads(Path(task.folder, f"result-{rank}.json").read_text()) for rank in range(2)]
    for key in ("losses", "norms", "attempt", "step"):
        assert results[0][key] == results[1][key]
    assert not any("does not count" in line or "could not" in line for result in results for line in result["said"])
    return dict(results[0])


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain().train(HYPER.steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a run of two processes with a checkpoint at step 25."""
    folder = tmp_path_factory.mktemp("fsdp")
    return folder, run(Task(str(folder), save_at=25))


def test_fsdp_in_two_processes_has_the_losses_and_norms_of_one(
    plain: Plain, trained: tuple[Path, dict[str, Any]]
) -> None:
    _, found = trained
    assert plain.losses[-1] < 0.7 * plain.losses[0]  # the losses fall, so there is something to compare
    assert found["losses"] == pytest.approx(plain.losses, rel=0, abs=1e-5)
    assert found["norms"] == pytest.approx(plain.norms, rel=1e-4)
    assert found["norms"][0] == pytest.approx(plain.norms[0], rel=1e-6)


def test_fsdp_evaluates_and_exports_the_whole_model(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, found = trained
    model = new_model()
    model.load_state_dict(torch.load(folder / "exported.pt", weights_only=True))
    inputs, targets = rows(10_000)
    with torch.no_grad():
        loss = make_loss(model, None, torch.device("cpu"))(inputs[:3], targets[:3])
    assert found["evaluated"] == pytest.approx(float(loss), rel=1e-5)
    at_the_end = Plain().restore(folder)
    for name, parameter in at_the_end.flat.model.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_fsdp_checkpoint_of_two_processes_restores_into_one(
    plain: Plain, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = trained
    storage, copy = open_storage(str(folder)), open_storage(str(tmp_path))
    for entry in storage.list(f"runs/{RUN}/checkpoints/step-00000025-attempt-1"):
        copy.write(entry.path, storage.read(entry.path))
    resumed = Plain().restore(tmp_path)
    assert resumed.progress.step == 25
    assert resumed.train(HYPER.steps).losses == pytest.approx(plain.losses[25:], rel=0, abs=1e-5)


def test_fsdp_in_two_processes_restores_the_checkpoint_of_one(plain: Plain, tmp_path: Path) -> None:
    Plain().train(25).save(tmp_path)
    found = run(Task(str(tmp_path), steps=30))
    assert found["from"] == 25
    assert found["losses"] == pytest.approx(plain.losses[25:30], rel=0, abs=1e-5)


def test_fsdp_checkpoint_with_a_part_damaged_for_one_process_is_skipped_by_both(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, before = trained
    storage, copy = open_storage(str(folder)), open_storage(str(tmp_path))
    for entry in storage.list(f"runs/{RUN}/checkpoints"):
        copy.write(entry.path, storage.read(entry.path))
    copy.write(f"runs/{RUN}/checkpoints/step-00000050-attempt-1/part-00001-of-00002.safetensors", b"damaged")
    found = run(Task(str(tmp_path), steps=27))
    assert found["from"] == 25
    # The losses are equal: the same processes start from the same state.
    assert found["losses"] == before["losses"][25:27]


def test_fsdp_notice_to_one_process_lets_all_leave_after_the_same_step(tmp_path: Path) -> None:
    found = run(Task(str(tmp_path), stop_at=3), expected=LEFT)
    assert (found["step"], found["attempt"], found["whole"]) == (3, 1, True)
    again = run(Task(str(tmp_path), steps=4))
    assert (again["from"], again["step"], again["attempt"]) == (3, 4, 2)


def test_fsdp_in_bf16_has_losses_near_those_in_fp32(plain: Plain, tmp_path: Path) -> None:
    found = run(Task(str(tmp_path), steps=20, precision="bf16"))
    assert found["losses"] == pytest.approx(plain.losses[:20], rel=0, abs=3e-2)
    assert found["losses"] != pytest.approx(plain.losses[:20], rel=0, abs=1e-5)  # the precision is not fp32


def test_fsdp_failure_of_one_process_ends_all(tmp_path: Path) -> None:
    code, said = ended(Task(str(tmp_path), fail_at=2))
    assert code == 1
    assert "ValueError: a fault" in said


@pytest.mark.parametrize("killed", [1])
def test_fsdp_kill_of_one_process_ends_all(tmp_path: Path, killed: int) -> None:
    first = Process(Task(str(tmp_path), hang_at=1).start(), ROOT, os.environ)
    try:
        end = time.monotonic() + PATIENCE
        while not all((tmp_path / f"pid-{rank}").exists() for rank in range(2)):
            assert first.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        both = [psutil.Process(int((tmp_path / f"pid-{rank}").read_text())) for rank in range(2)]
        listening = [c.laddr.ip for p in both for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert set(listening) == {"127.0.0.1"}  # the store listens, and nothing that another machine could reach
        both[killed].kill()
        assert first.wait(PATIENCE) != 0
        assert psutil.wait_procs(both, PATIENCE)[1] == []
    finally:
        first.kill()
        first.wait()


FSDP: dict[str, Any] = {"parallel": {"parallelism": "fsdp"}, "cluster": {"workers": 0, "threads": 1, "processes": 2}}


def test_fsdp_run_that_loses_a_process_resumes_with_the_same_losses(new_run: Callable[..., Run]) -> None:
    """All processes start again at the newest checkpoint and take the steps since then again."""
    run = new_run(**FSDP, hyperparameters={"steps": 250}, evaluation={"every": 125}, checkpoints={"every": 25})
    run.start().until_step(30)
    first = run.machine("master-0").trainer_pid
    assert first is not None
    (second,) = psutil.Process(first).children()
    second.kill()
    assert run.wait().state == "SUCCEEDED"
    assert run.machine("master-0").restarts == 1
    assert [record.step for record in run.steps()] == list(range(1, 251))
    assert all(record.trainers == 2 for record in run.steps())
    taken: dict[int, set[float | None]] = {}
    for record in all_records(run):
        if record.learning_rate is not None:
            taken.setdefault(record.step, set()).add(record.loss)
    assert [step for step, losses in taken.items() if len(losses) > 1] == []
    assert run.validation()[-1] < run.validation()[0]
    assert run.storage.read(f"runs/{run.spec.run}/model/manifest.json")


def test_fsdp_run_that_gets_a_notice_ends_all_processes_with_a_checkpoint(new_run: Callable[..., Run]) -> None:
    run = new_run(**FSDP, hyperparameters={"steps": 100_000}, checkpoints={"every": 100_000})
    run.start(forked=False).until_step(3)
    run.machines["master-0"].terminate()
    run.machines["master-0"].wait(PATIENCE)
    found = [entry.path for entry in run.storage.list(f"runs/{run.spec.run}/checkpoints")]
    assert sum(path.endswith("manifest.json") for path in found) == 1
    assert sum(path.endswith("-of-00002.safetensors") for path in found) == 2
