"""The images that machines boot from: what a plan makes of them, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from infra.inputs import docker
from tests.infra.checks.test_google import ALONE, changed, planned, problems
from tests.infra.checks.test_google import root as root  # the fixture
from tests.infra.google_graph import read as load

DEEP_LEARNING = "common-cu129-ubuntu-2204-nvidia-580"
G2 = {**ALONE, "machines.accelerator": ..., "machines.spot": ..., "trainingInput.masterType": "g2-standard-4"}


def test_plan_boots_container_optimized_os_with_secure_boot_and_no_update(root: Path) -> None:
    for group in planned(load(changed({}), root)):
        metadata = group.template["metadata"]
        source = "projects/cos-cloud/global/images/family/cos-129-lts"
        assert group.template["disks"][0]["source_image"] == source
        assert group.template["shielded_instance_config"]["enable_secure_boot"] is True
        assert metadata["cos-update-strategy"] == "update_disabled"
        assert not {"install-nvidia-driver", "gpt2-docker", "google-logging-enabled"} & set(metadata)


@pytest.mark.parametrize(
    ("family", "where"),
    [
        (DEEP_LEARNING, "deeplearning-platform-release"),
        ("ubuntu-accelerator-2204-amd64-with-nvidia-580", "ubuntu-os-accelerator-images"),
    ],
)
def test_plan_on_another_image_brings_docker_and_boots_gpus_without_secure_boot(
    root: Path, monkeypatch: pytest.MonkeyPatch, family: str, where: str
) -> None:
    monkeypatch.setattr(docker, "SHA256", hashlib.sha256(b"").hexdigest())
    read = load(changed({"machines.imageFamily": family}), root)
    docker.archive_file(read).touch()
    plan = {group.role: group.template for group in planned(read)}
    master = plan["master"]
    assert master["disks"][0]["source_image"] == f"projects/{where}/global/images/family/{family}"
    secure = {role: template["shielded_instance_config"]["enable_secure_boot"] for role, template in plan.items()}
    assert secure == {"master": False, "worker": False, "ps": True}
    assert master["metadata"]["gpt2-docker"] == "gs://my-project-dev-gpt2-data/docker/docker-29.9.0.tgz"
    assert master["metadata"]["gpt2-docker-sha256"] == docker.SHA256
    assert "cos-update-strategy" not in master["metadata"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            G2 | {"machines.imageFamily": DEEP_LEARNING},
            "which Google refuses on g2-standard-4 (trainingInput.masterType)",
        ),
        (G2 | {"machines.imageFamily": "ubuntu-2204-lts"}, "ubuntu-2204-lts has no NVIDIA driver for g2-standard-4"),
        ({"machines.imageFamily": "ubuntu-2204-lts"}, "ubuntu-2204-lts has no NVIDIA driver for n1-highmem-16"),
        ({"machines.imageFamily": "My Image"}, "found 'My Image', must be an image family's name"),
        ({"machines.imageFamily": DEEP_LEARNING}, "may have no Docker, and machines without internet cannot fetch it;"),
    ],
)
def test_image_that_machines_cannot_boot_from_is_refused(root: Path, changes: dict[str, Any], said: str) -> None:
    (problem,) = problems(changed(changes), root)
    assert problem.startswith("gpt2-training:machines.imageFamily: ")
    assert said in problem
