"""infra.checks.machines: what Google refuses of machine types and GPUs is one line with its reason and fix."""

from pathlib import Path
from typing import Any

import pytest

from infra.fleet.catalog import TOO_OLD
from infra.fleet.fleet import resolve_fleet
from infra.job import job_spec
from tests.infra.checks.test_google import ALONE, PINNED, changed, problems
from tests.infra.google_graph import make_root
from tests.infra.google_graph import read as load

TYPE = "gpt2-training:machines.accelerator.type: "
T4 = {"accelerator": {"type": "nvidia-tesla-t4"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def on(machine: str, workers: int = 0, **machines: Any) -> dict[str, Any]:
    """Return the changes that make a stack of a master and workers of one type, without limits of money."""
    training = {"masterType": machine, "hyperparameters": {"batchSize": 8}}
    if workers:
        training |= {"workerType": machine, "workerCount": workers}
    return {"trainingInput": training, "machines": machines, "limits": {}}


@pytest.mark.parametrize("model", TOO_OLD)
@pytest.mark.parametrize("image", [{}, {"image": PINNED}])
def test_gpu_that_is_too_old_is_refused_with_its_reason(root: Path, model: str, image: dict[str, Any]) -> None:
    (line,) = problems(changed({"machines.accelerator": {"type": model}, **image}), root)
    assert line.startswith(f"{TYPE}{model} has compute capability {TOO_OLD[model]:g}, ")
    assert "PyTorch for CUDA 13 starts at 7.5; use nvidia-tesla-t4" in line


@pytest.mark.parametrize("model", ["nvidia-tesla-p5", "nvidia-tesla-v1000", "nvidia-b300", "P100"])
def test_unknown_gpu_is_never_taken_for_an_old_one(root: Path, model: str) -> None:
    (line,) = problems(changed({"machines.accelerator": {"type": model}}), root)
    assert line.startswith(f"{TYPE}unknown accelerator '{model}'; ")
    assert "capability" not in line
    assert not any(old in line.partition("; ")[2] for old in TOO_OLD)


@pytest.mark.parametrize("name", ["c2-standard-4", "large", "n1-x", "g2", "c4-standard-5", "e2-standart-4"])
def test_unknown_machine_type_is_not_corrected_to_another_family(root: Path, name: str) -> None:
    (line,) = problems(changed({"trainingInput.masterType": name}), root)
    assert "did you mean" not in line or f"did you mean {name[:2]}" in line
    known = "known are N1, E2, N2, N2D, C3, C3D, C4, C4D, N4 and, with GPUs built in, A2, A3, A4, G2, G4;" in line
    assert known == (name[:2] not in ("n1", "g2", "c4", "e2"))
    assert len(line) < 250


@pytest.mark.parametrize("name", ["a4x-highgpu-4g", "c4a-standard-8"])
def test_machine_with_arm_cpus_is_refused_with_its_reason(root: Path, name: str) -> None:
    (line,) = problems(changed({"trainingInput.masterType": name}), root)
    assert f"{name} has Arm CPUs, and the trainer's image is for x86; use " in line


def test_gpus_are_attached_to_n1_alone(root: Path) -> None:
    (line,) = problems(changed({"trainingInput.masterType": "n2-highmem-16"}), root)
    assert (
        "machines.accelerator: GPUs can be attached to N1 machines only, not to n2-highmem-16 (trainingInput." in line
    )


@pytest.mark.parametrize(
    ("machine", "machines", "said"),
    [
        (
            "a3-highgpu-1g",
            {},
            "given out as Spot or flex-start, not on demand; set machines.flexStart: true, or use a3-",
        ),
        ("a3-highgpu-4g", {"reservation": "mine"}, "given out as Spot or flex-start, not reservation"),
        ("a3-ultragpu-8g", {}, "given out as Spot, flex-start or reservation, not on demand"),
        ("a4-highgpu-8g", {}, "given out as Spot, flex-start or reservation, not on demand"),
        ("a3-highgpu-1g", {"flexStart": True}, ""),
        ("a4-highgpu-8g", {"reservation": "mine"}, ""),
        ("a4-highgpu-8g", {"flexStart": True}, ""),
        ("a3-highgpu-8g", {}, ""),
        ("a3-megagpu-8g", {}, ""),
        ("g4-standard-48", {}, ""),
    ],
)
def test_machine_is_refused_in_a_way_in_which_google_does_not_give_it_out(
    root: Path, machine: str, machines: dict[str, Any], said: str
) -> None:
    changes = changed(on(machine, **machines))
    if not said:
        job_spec(load(changes, root))
        return
    (line,) = problems(changes, root)
    assert line.startswith("gpt2-training:trainingInput.masterType: ")
    assert said in line


def test_spot_workers_may_be_of_a_type_that_is_not_available_on_demand(root: Path) -> None:
    """Only the number of its GPUs differs here from the master's."""
    mixed = on("a3-highgpu-8g", 2, spot=True)
    mixed["trainingInput"]["workerType"] = "a3-highgpu-4g"
    (line,) = problems(changed(mixed), root)
    assert line == (
        "gpt2-training:trainingInput.workerType: a3-highgpu-4g has 4 x nvidia-h100-80gb, and the master,"
        " a3-highgpu-8g, has 8 x nvidia-h100-80gb; trainers share each step evenly, so give both the same GPUs"
    )


@pytest.mark.parametrize(
    ("master", "worker", "said"),
    [
        ("g2-standard-8", "a2-highgpu-1g", "a2-highgpu-1g has 1 x nvidia-tesla-a100, and the master, g2-standard-8, "),
        ("n1-standard-8", "g2-standard-8", "g2-standard-8 has 1 x nvidia-l4, and the master, n1-standard-8, has no GP"),
        ("g2-standard-8", "n1-standard-8", "n1-standard-8 has no GPUs, and the master, g2-standard-8, has 1 x nvidia"),
        ("g2-standard-8", "g2-standard-32", ""),
    ],
)
def test_trainers_with_unlike_gpus_are_refused(root: Path, master: str, worker: str, said: str) -> None:
    mixed = on(master, 2)
    mixed["trainingInput"]["workerType"] = worker
    if not said:
        assert resolve_fleet(load(changed(mixed), root)).gpus_per_trainer == 1
        return
    (line,) = problems(changed(mixed), root)
    assert line.startswith(f"gpt2-training:trainingInput.workerType: {said}")


@pytest.mark.parametrize("machine", ["a3-ultragpu-8g", "a4-highgpu-8g"])
def test_several_machines_that_need_rdma_are_refused(root: Path, machine: str) -> None:
    (line,) = problems(changed(on(machine, 1, flexStart=True)), root)
    assert line.startswith(f"gpt2-training:trainingInput.workerType: several {machine} talk over a network for RDMA, ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machines.compactPlacement": True}, "Google places no n1-highmem-16 or n1-highmem-8 compactly; remove it"),
        (on("c3-standard-8", compactPlacement=True), "there is one machine; remove it, or add workers"),
        (on("g2-standard-8", 1, compactPlacement=True, flexStart=True), "cannot go with machines.flexStart"),
        (on("a2-highgpu-1g", 1, compactPlacement=True, reservation="mine"), "cannot go with machines.reservation"),
        (on("a2-highgpu-1g", 3, compactPlacement=True), ""),
    ],
)
def test_compact_placement_is_refused_where_google_refuses_it(root: Path, changes: dict[str, Any], said: str) -> None:
    if not said:
        job_spec(load(changed(changes), root))
        return
    (line,) = problems(changed(changes), root)
    assert line.startswith("gpt2-training:machines.compactPlacement: ")
    assert said in line


def test_machines_of_today_train_alone_on_their_cpus(root: Path) -> None:
    for machine in (
        "e2-standard-8",
        "n2d-highcpu-32",
        "c3d-standard-30",
        "c4-highmem-8",
        "c4d-standard-16",
        "n4-standard-8",
    ):
        job = job_spec(load(changed({"trainingInput.masterType": machine, "machines": {}, "limits": {}} | ALONE), root))
        assert job.hardware["master"].machine_type == machine


@pytest.mark.parametrize(
    ("machine", "machines", "precision", "said"),
    [
        ("n1-highmem-8", T4, "bf16", "found bf16, which a nvidia-tesla-t4 emulates slowly; use fp16, fp32 or auto"),
        ("n1-highmem-8", {}, "fp16", "found fp16, which needs a GPU, and n1-highmem-8 has none; use auto or fp32"),
    ],
)
def test_precision_that_the_machine_does_not_compute_in_is_refused(
    root: Path, machine: str, machines: dict[str, Any], precision: str, said: str
) -> None:
    changes = on(machine, **machines)
    changes["trainingInput"]["hyperparameters"]["precision"] = precision
    assert problems(changed(changes), root) == [f"gpt2-training:trainingInput.hyperparameters.precision: {said}"]


@pytest.mark.parametrize(
    ("machine", "machines", "precision"), [("n1-highmem-8", T4, "fp16"), ("g2-standard-4", {}, "bf16")]
)
def test_precision_of_the_gpu_is_accepted(root: Path, machine: str, machines: dict[str, Any], precision: str) -> None:
    changes = on(machine, **machines)
    changes["trainingInput"]["hyperparameters"]["precision"] = precision
    assert load(changed(changes), root).file.training_input.hyperparameters.precision == precision
