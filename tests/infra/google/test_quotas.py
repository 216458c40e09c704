"""infra.google.quotas: which quotas machines take, by Google's names, and what their limits mean for a stack."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.google.quotas import Check, QuotaLimits, check_quotas, needs, quota_id
from tests.scripts.google import Call, FakeGoogle, google, project, service_account_key  # noqa: F401  fixtures
from trainer.gcloud.api import GoogleApi

P = "projects/test-project"
H100 = {"masterType": "a3-highgpu-8g", "hyperparameters": {"batchSize": 32}}


def counted(folder: Path, training: dict[str, Any], **machines: Any) -> dict[str, tuple[int, int]]:
    """Return what a stack needs of each quota, on demand and as Spot or flex-start."""
    stack = load.from_file("dev", project(folder, trainingInput=training, machines=machines, limits=None))
    return {need.metric: (need.on_demand, need.spot) for need in needs(resolve_fleet(stack), nat=False)}


def answer_quotas(google: FakeGoogle, found: dict[str, list[dict[str, Any]]]) -> None:  # noqa: F811
    """Let the Cloud Quotas API know these quotas, and Compute Engine none."""

    def answer(call: Call) -> dict[str, Any]:
        return {"dimensionsInfos": found[call.path.rpartition("/")[2]]}

    google.deny("cloudquotas", status=404, message="not found")
    google.deny("compute", status=403, message="no")
    names = "|".join(map(re.escape, found))
    google.on(
        "cloudquotas", "GET", rf"{P}/locations/global/services/compute\.googleapis\.com/quotaInfos/({names})", answer
    )


def judged(folder: Path, **further: Any) -> dict[str, Check]:
    stack = load.from_file("dev", project(folder, machines=None, **further))
    limits = QuotaLimits(GoogleApi(), "test-project", "us-central1")
    return {check.name: check for check in check_quotas(stack, resolve_fleet(stack), limits)}


def of(dimension: str, family: str, value: str) -> dict[str, Any]:
    dimensions = {"region": "us-central1", dimension: family}
    return {"dimensions": dimensions, "applicableLocations": ["us-central1"], "details": {"value": value}}


def test_needs_of_the_reference_job_are_its_gpus_cpus_disks_and_machines(tmp_path: Path) -> None:
    stack = load.from_file("dev", project(tmp_path, network={"nat": True}))
    found = {need.metric: (need.on_demand, need.spot) for need in needs(resolve_fleet(stack), nat=True)}
    assert found == {
        "NVIDIA_T4_GPUS": (1, 10),
        "GPUS_ALL_REGIONS": (1, 10),
        "CPUS": (16 + 3 * 8, 160),
        "CPUS_ALL_REGIONS": (40, 160),
        "SSD_TOTAL_GB": (2800, 0),
        "INSTANCES": (14, 0),
        "IN_USE_ADDRESSES": (1, 0),
    }


def test_machines_with_gpus_built_in_need_no_quota_of_cpus(tmp_path: Path) -> None:
    alone = {"masterType": "g2-standard-8", "hyperparameters": {"batchSize": 8}}
    assert set(counted(tmp_path, alone)) == {"NVIDIA_L4_GPUS", "GPUS_ALL_REGIONS", "SSD_TOTAL_GB", "INSTANCES"}


@pytest.mark.parametrize(
    ("machine", "cpus", "disk"),
    [
        ("e2-standard-8", "CPUS", "SSD_TOTAL_GB"),
        ("n2-standard-8", "N2_CPUS", "SSD_TOTAL_GB"),
        ("n2d-standard-8", "N2D_CPUS", "SSD_TOTAL_GB"),
        ("c3-standard-8", "C3_CPUS", "SSD_TOTAL_GB"),
        ("c3d-standard-8", "CPUS_PER_VM_FAMILY(C3D)", "SSD_TOTAL_GB"),
        ("c4-standard-8", "CPUS_PER_VM_FAMILY(C4)", "HDB_TOTAL_GB"),
        ("c4d-standard-8", "CPUS_PER_VM_FAMILY(C4D)", "HDB_TOTAL_GB"),
        ("n4-standard-8", "CPUS_PER_VM_FAMILY(N4)", "HDB_TOTAL_GB"),
    ],
)
def test_cpu_machines_need_the_quota_of_their_family_and_disk(
    tmp_path: Path, machine: str, cpus: str, disk: str
) -> None:
    found = counted(tmp_path, {"masterType": machine, "hyperparameters": {"batchSize": 8}})
    assert found == {cpus: (8, 0), "CPUS_ALL_REGIONS": (8, 0), disk: (200, 0), "INSTANCES": (1, 0)}


def test_flex_start_machines_need_the_preemptible_quota(tmp_path: Path) -> None:
    found = counted(tmp_path, {"masterType": "a4-highgpu-8g", "hyperparameters": {"batchSize": 8}}, flexStart=True)
    assert found["NVIDIA_B200_GPUS"] == (0, 8)
    assert found["HDB_TOTAL_GB"] == (200, 0)


@pytest.mark.parametrize(
    ("metric", "name", "dimensions"),
    [
        ("CPUS", "CPUS-per-project-region", {}),
        ("CPUS_PER_VM_FAMILY(C4D)", "CPUS-PER-VM-FAMILY-per-project-region", {"vm_family": "C4D"}),
        ("GPUS_ALL_REGIONS", "GPUS-ALL-REGIONS-per-project", {}),
        ("NVIDIA_A100_80GB_GPUS", "NVIDIA-A100-80GB-GPUS-per-project-region", {}),
        ("NVIDIA_H200_GPUS", "GPUS-PER-GPU-FAMILY-per-project-region", {"gpu_family": "NVIDIA_H200"}),
        ("NVIDIA_RTX_PRO_6000_GPUS", "GPUS-PER-GPU-FAMILY-per-project-region", {"gpu_family": "NVIDIA_RTX_PRO_6000"}),
        ("PREEMPTIBLE_NVIDIA_B200_GPUS", "PREEMPTIBLE-NVIDIA-B200-GPUS-per-project-region", {}),
        ("SSD_TOTAL_GB", "SSD-TOTAL-GB-per-project-region", {}),
    ],
)
def test_quota_id_of_a_metric_is_its_name_and_dimension(metric: str, name: str, dimensions: dict[str, str]) -> None:
    assert quota_id(metric) == (name, dimensions)


def test_quota_of_new_gpus_is_one_by_family(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    infos = [of("gpu_family", "NVIDIA_B200", "64"), of("gpu_family", "NVIDIA_H100", "4")]
    answer_quotas(google, {"GPUS-PER-GPU-FAMILY-per-project-region": infos})
    found = judged(tmp_path, trainingInput=H100, limits={"maxHours": 200})["quota NVIDIA_H100_GPUS"]
    assert (found.state, found.found) == ("problem", "8 needed, limit 4 in us-central1")
    assert "GPUS-PER-GPU-FAMILY-per-project-region" in found.fix


def test_quota_of_new_cpus_is_one_by_family(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    infos = [of("vm_family", "N4", "200"), of("vm_family", "C4", "24")]
    answer_quotas(google, {"CPUS-PER-VM-FAMILY-per-project-region": infos})
    training = {"masterType": "c4-standard-32", "hyperparameters": {"batchSize": 8}}
    found = judged(tmp_path, trainingInput=training, limits=None)["quota CPUS_PER_VM_FAMILY(C4)"]
    assert (found.state, found.found) == ("problem", "32 needed, limit 24 in us-central1")


@pytest.mark.parametrize(
    ("hours", "preemptible", "state"), [(24, "8", "unknown"), (200, "8", "problem"), (24, "4", "problem")]
)
def test_gpu_machines_that_end_within_a_week_may_take_the_preemptible_quota(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    hours: int,
    preemptible: str,
    state: str,
) -> None:
    found = {
        "GPUS-PER-GPU-FAMILY-per-project-region": [of("gpu_family", "NVIDIA_H100", "0")],
        "PREEMPTIBLE-NVIDIA-H100-GPUS-per-project-region": [{"details": {"value": preemptible}}],
    }
    answer_quotas(google, found)
    check = judged(tmp_path, trainingInput=H100, limits={"maxHours": hours})["quota NVIDIA_H100_GPUS"]
    assert check.state == state
    words = "; PREEMPTIBLE_NVIDIA_H100_GPUS has 8, which machines that end within 7 days may use too"
    assert check.found == "8 needed, limit 0 in us-central1" + (words if state == "unknown" else "")
