"""REST of the stand-in cloud: storage from a VM, docker, time series, and calls that Google does not know."""

import subprocess
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.google_cloud.lab import FAMILY, PROJECT, REGION, STUBBORN, ZONE, Json, Lab, wait_until

pytestmark = pytest.mark.runs_on("the stand-in's answers are the subject, and the lab's end switches its machines off")


def test_vm_reads_a_bucket_only_with_a_grant_and_without_a_fault(lab: Lab) -> None:
    lab.create("gcp:storage/bucket:Bucket", {"name": "test-bucket-1", "location": "US-CENTRAL1"})
    lab.group()
    [vm] = lab.running(1)
    listing = f"{vm['environment']['STORAGE_EMULATOR_HOST']}/storage/v1/b/test-bucket-1/o"
    assert requests.get(listing, timeout=10).status_code == 403
    member = f"serviceAccount:vm@{PROJECT}.iam.gserviceaccount.com"
    grant = {"bucket": "test-bucket-1", "role": "roles/storage.objectViewer", "member": member}
    lab.create("gcp:storage/bucketIAMMember:BucketIAMMember", grant)
    assert requests.get(listing, timeout=10).status_code == 200
    upload = listing.replace("/storage/", "/upload/storage/") + "?uploadType=media&name=x"
    assert requests.post(upload, data=b"x", timeout=10).status_code == 403
    lab.fault("storage", status=503, times=1)
    assert requests.get(listing, timeout=10).status_code == 503
    assert requests.get(listing, timeout=10).status_code == 200


def test_docker_needs_a_login_a_grant_and_a_pushed_image(lab: Lab) -> None:
    lab.group(script=STUBBORN)
    [vm] = lab.running(1)
    host, repository = f"{REGION}-docker.pkg.dev", f"projects/{PROJECT}/locations/{REGION}/repositories/images"

    def docker(*arguments: str, text: str = "", home: str = "/tmp") -> "subprocess.CompletedProcess[str]":
        environment = {**vm["environment"], "HOME": home}
        return subprocess.run(
            ["docker", *arguments], env=environment, input=text, capture_output=True, text=True, timeout=60
        )

    def login(token: str) -> int:
        return docker(
            "login", "--username", "oauth2accesstoken", "--password-stdin", f"https://{host}", text=token
        ).returncode

    lab.create(
        "gcp:artifactregistry/repository:Repository", {"repositoryId": "images", "location": REGION, "format": "DOCKER"}
    )
    name = f"{host}/{PROJECT}/images/trainer"
    build = {"images": [f"{name}:abc"], "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "."]}]}
    made = lab.rest("POST", f"cloudbuild/v1/projects/{PROJECT}/builds", body=build).json()["metadata"]["build"]
    look = lambda: lab.rest("GET", f"cloudbuild/v1/projects/{PROJECT}/builds/{made['id']}").json()  # noqa: E731
    image = wait_until(lambda: look().get("results"), lambda: "the build")["images"][0]
    pinned = f"{name}@{image['digest']}"

    assert "authentication" in docker("pull", "--quiet", pinned).stderr
    assert login("wrong") == 1
    given = ("--username", "oauth2accesstoken", "--password-stdin", f"https://{host}")
    refused = docker("login", *given, text=lab.token(vm), home="/root")
    assert "read-only file system" in refused.stderr  # as on Container-Optimized OS
    assert login(lab.token(vm)) == 0
    assert "Permission" in docker("pull", "--quiet", pinned).stderr
    member = f"serviceAccount:vm@{PROJECT}.iam.gserviceaccount.com"
    grant = {"repository": repository, "location": REGION, "role": "roles/artifactregistry.reader", "member": member}
    lab.create("gcp:artifactregistry/repositoryIamMember:RepositoryIamMember", grant)
    assert docker("pull", "--quiet", pinned).returncode == 0
    assert "manifest unknown" in docker("pull", "--quiet", f"{name}@sha256:{'0' * 64}").stderr

    run = ("run", "--rm", "--name", "trainer", "--network", "host", "--env", "NOTHING=1")
    assert "unknown flag: --privileged" in docker(*run, "--privileged", pinned).stderr
    assert docker(*run, "--gpus", "all", pinned).returncode == 125
    wrong = docker(*run, pinned, "--bucket", "nowhere", "--run", "r", "--name", "master-0", "--role", "master")
    assert wrong.returncode not in (0, 125), wrong.stdout  # the trainer itself refused
    assert docker("inspect", "trainer").returncode == 1


def test_time_series_are_kept_by_googles_rules(lab: Lab) -> None:
    resource = {"type": "global", "labels": {"project_id": PROJECT}}

    def write(seconds_ago: float, value: Json, **more: Any) -> int:
        end = datetime.fromtimestamp(time.time() - seconds_ago, UTC).isoformat().replace("+00:00", "Z")
        point = {"interval": {"endTime": end}, "value": value}
        metric = {"type": "custom.googleapis.com/gpt2/step"}
        series = {"metric": metric, "resource": resource, "points": [point], **more}
        return lab.rest(
            "POST", f"monitoring/v3/projects/{PROJECT}/timeSeries", body={"timeSeries": [series]}
        ).status_code

    assert write(60, {"int64Value": "1"}) == 200
    assert write(61, {"int64Value": "1"}) == 400  # the point is older
    assert write(58, {"int64Value": "1"}) == 400  # the point comes too soon
    assert write(40, {"doubleValue": 1.0}) == 400  # the value has another type
    assert write(40, {"int64Value": "2"}, resource={"type": "moon", "labels": {}}) == 400
    assert write(40, {"int64Value": "2"}) == 200
    query = {
        "filter": 'metric.type="custom.googleapis.com/gpt2/step"',
        "interval.startTime": "2026-01-01T00:00:00Z",
        "interval.endTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    found = lab.rest("GET", f"monitoring/v3/projects/{PROJECT}/timeSeries?{urlencode(query)}").json()["timeSeries"]
    assert [point["value"]["int64Value"] for point in found[0]["points"]] == ["2", "1"]


def test_call_that_google_does_not_know_is_a_violation(lab: Lab) -> None:
    group = lab.group(size=0)
    assert lab.rest("GET", f"compute/v1/{group}/resize?size=0").status_code == 400
    assert lab.rest("POST", f"compute/v1/{group}/resize?sizes=0").status_code == 400
    said = lab.violations()
    assert "only knows POST" in said[0]
    assert "'sizes'" in said[1]
    lab.post("/violations/clear", {})


def test_calls_of_preflight_are_answered_as_google_would(lab: Lab) -> None:
    """The daemon checks that each answer fits Google's documents."""
    lab.create(
        "gcp:artifactregistry/repository:Repository", {"repositoryId": "images", "location": REGION, "format": "DOCKER"}
    )
    zone, project = f"compute/v1/projects/{PROJECT}/zones/{ZONE}", f"projects/{PROJECT}"

    def get(path: str, key: str = "name") -> Any:
        answer = lab.rest("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()[key]

    assert get(f"{zone}/machineTypes/n1-highmem-16", "guestCpus") == 16
    assert get(f"{zone}/acceleratorTypes/nvidia-tesla-t4") == "nvidia-tesla-t4"
    assert lab.rest("GET", f"{zone}/acceleratorTypes/nvidia-tesla-p100").status_code == 404
    assert [one["name"] for one in get(f"{zone}/machineTypes?filter=name%3Dn1-highmem-8", "items")] == ["n1-highmem-8"]
    kinds = get(f"compute/v1/{project}/aggregated/acceleratorTypes", "items")
    assert "acceleratorTypes" in kinds[f"zones/{ZONE}"]
    assert get(f"compute/v1/{FAMILY}", "family") == FAMILY.rpartition("/")[2]
    assert {quota["metric"] for quota in get(f"compute/v1/{project}", "quotas")} >= {"GPUS_ALL_REGIONS"}
    lab.create("gcp:projects/service:Service", {"service": "cloudquotas.googleapis.com", "disableOnDestroy": False})
    lab.fault("quota", metric="GPUS_ALL_REGIONS", limit=0)
    quotas = f"cloudquotas/v1/{project}/locations/global/services/compute.googleapis.com/quotaInfos"
    infos = get(f"{quotas}/GPUS-ALL-REGIONS-per-project", "dimensionsInfos")
    assert [info["details"]["value"] for info in infos] == ["0"]
    assert "NVIDIA-T4-GPUS-per-project-region" in [info["quotaId"] for info in get(quotas, "quotaInfos")]
    names = "&".join(f"names={project}/services/{name}.googleapis.com" for name in ("compute", "billingbudgets"))
    states = [one["state"] for one in get(f"serviceusage/v1/{project}/services:batchGet?{names}", "services")]
    assert states == ["ENABLED", "DISABLED"]
    assert get(f"cloudresourcemanager/v1/{project}", "projectId") == PROJECT
    repository = f"artifactregistry/v1/{project}/locations/{REGION}/repositories/images"
    assert get(repository, "format") == "DOCKER"
    assert lab.rest("GET", f"{repository}/packages/trainer/tags/none").status_code == 404
    policy = lab.rest("POST", f"cloudresourcemanager/v1/{project}:getIamPolicy", body={}).json()
    assert "roles/owner" in [binding["role"] for binding in policy["bindings"]]
    asked = {"permissions": ["compute.instances.create"]}
    mine = lab.rest("POST", f"cloudresourcemanager/v1/{project}:testIamPermissions", body=asked).json()
    assert mine == asked


def test_disabled_api_is_403(lab: Lab) -> None:
    answer = lab.rest("GET", "compute/v1/projects/another-project/zones")
    assert answer.status_code == 403
    assert "has not been used" in answer.json()["error"]["message"]
