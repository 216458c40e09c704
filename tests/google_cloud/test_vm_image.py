"""boot.sh on VMs of the three kinds of image: each starts the trainer, and each gets the notice of a shutdown."""

import json
import uuid
from pathlib import Path

import pytest
import requests

from infra.fleet.boot_image import image_project
from infra.google.groups import BOOT
from tests.google_cloud import names, vm_image
from tests.google_cloud.images import REPOSITORY
from tests.google_cloud.lab import GROUP, PROJECT, REGION, REGIONAL, Json, Lab, wait_until

ADDRESS = f"{REGION}-docker.pkg.dev/{PROJECT}/gpt2-dev/trainer"


@pytest.fixture
def image(lab: Lab) -> str:
    """Return an image in the registry, which machines may read."""
    lab.create(REPOSITORY, {"repositoryId": "gpt2-dev", "format": "DOCKER", "location": REGION})
    made = lab.create(names.IMAGE, {"name": "image", "push": True, "tags": [f"{ADDRESS}:1"]})
    reading = ("artifactregistry.repositories.downloadArtifacts", "storage.objects.get", "storage.objects.create")
    lab.grant(f"vm@{PROJECT}.iam.gserviceaccount.com", *reading)
    return f"{ADDRESS}@{made['state']['digest']}"


def attributes(image: str, **further: str) -> Json:
    known = {
        "run": "gpt2-0123abcd",
        "launch": "1",
        "role": "worker",
        "gpus": "2",
        "bucket": "gs://none",
        "image": image,
        **further,
    }
    return {
        "startup-script": BOOT.read_text(),
        **{f"gpt2-{name.replace('_', '-')}": value for name, value in known.items()},
    }


def boot(lab: Lab, family: str, metadata: Json) -> Json:
    """Boot a VM with two T4 from an image family; return it once its trainer starts."""
    source = f"projects/{image_project(family)}/global/images/family/{family}"
    accelerators = [{"type": "nvidia-tesla-t4", "count": 2}]
    disks = [{"boot": True, "sourceImage": source}]
    lab.group("", disks=disks, metadata=metadata, guestAccelerators=accelerators)
    [vm] = lab.vms()

    def started() -> Json | None:
        state = lab.folder / "vms" / vm["name"] / vm["id"] / "docker/containers/trainer.json"
        return json.loads(state.read_text() or "{}") if state.exists() else None

    container: Json = wait_until(started, lambda: f"a container: {lab.serial(vm)}")
    return {**vm, "container": container["options"]}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("cos-129-lts", {"--device", "--volume"}),
        ("ubuntu-accelerator-2204-amd64-with-nvidia-580", {"--runtime"}),
    ],
)
def test_vm_whose_image_has_docker_gives_the_container_its_gpus(
    lab: Lab, image: str, family: str, options: set[str]
) -> None:
    vm = boot(lab, family, attributes(image))
    assert options == {"--device", "--volume", "--runtime"} & set(vm["container"])
    lab.delete(GROUP, f"{REGIONAL}/instanceGroupManagers/g")
    said = lab.serial(vm)
    assert "gpt2-training: told to shut down: stopping the trainer\n" in said
    assert "gpt2-training: the trainer has left\n" in said
    # The script had its notice before Docker ended the container, and had left when the rest was stopped.
    assert "stops units\n" in said
    assert "stops Docker's containers" not in said
    assert "stops everything else" not in said


def test_vm_whose_image_has_no_docker_brings_it_from_the_bucket(
    lab: Lab, image: str, gcs_address: str, tmp_path: Path
) -> None:
    archive = tmp_path / "docker.tgz"
    hashed = vm_image.docker_archive(archive)
    bucket = f"lab-{uuid.uuid4().hex[:8]}"
    lab.create("gcp:projects/service:Service", {"service": "storage.googleapis.com", "disableOnDestroy": False})
    lab.create("gcp:storage/bucket:Bucket", {"name": bucket, "location": REGION})
    upload = f"http://{gcs_address}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=docker%2Fdocker.tgz"
    requests.post(upload, data=archive.read_bytes(), timeout=30).raise_for_status()
    further = {"docker": f"gs://{bucket}/docker/docker.tgz", "docker_sha256": hashed}
    vm = boot(lab, "common-cu129-ubuntu-2204-nvidia-580", attributes(image, **further))
    assert "gpt2-training: this image has no Docker: bringing it\n" in lab.serial(vm)
    assert vm["container"]["--runtime"] == ["nvidia"]
    lab.delete(GROUP, f"{REGIONAL}/instanceGroupManagers/g")
