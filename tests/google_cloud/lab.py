"""A small Google Cloud for tests without Pulumi: the daemon, a project with its APIs on, a service account."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from infra.local import processes
from tests.google_cloud.conftest import daemon_url, start_daemon, stop, wait_for
from tests.google_cloud.install import environment, without_google

PROJECT, REGION, ZONE = "test-project", "us-central1", "us-central1-a"
REGIONAL = f"projects/{PROJECT}/regions/{REGION}"
ACCOUNT = "gcp:serviceaccount/account:Account"
GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
JOB = "gcp:cloudscheduler/job:Job"
FAMILY = "projects/cos-cloud/global/images/family/cos-129-lts"
SLEEPER = """
echo "up $(curl --silent --header 'Metadata-Flavor: Google' \
    "http://$GCE_METADATA_HOST/computeMetadata/v1/instance/name")"
trap 'echo "asked to leave"; exit 0' TERM
sleep 1000 &
wait
"""
STUBBORN = """
trap '' TERM
echo "up"
while true; do sleep 1000; done
"""
Json = dict[str, Any]


@dataclass
class Lab:
    """A daemon with a project in which APIs are on and a service account exists."""

    url: str
    folder: Path
    environment: dict[str, str]

    def post(self, path: str, body: Json, status: int = 200) -> Any:
        answer = requests.post(self.url + path, json=body, timeout=100)
        assert answer.status_code == status, answer.text
        return answer.json()

    def create(self, token: str, props: Json, status: int = 200) -> Json:
        props = {"project": PROJECT, **props}
        made: Json = self.post(
            "/provider/create",
            {"token": token, "props": props, "given": list(props), "project": PROJECT},
            status,
        )
        return made

    def account(self, name: str) -> str:
        self.create(ACCOUNT, {"accountId": name})
        return f"{name}@{PROJECT}.iam.gserviceaccount.com"

    def grant(self, email: str, *permissions: str) -> None:
        """Grant a custom role with just these permissions on the project."""
        role = f"role_{abs(hash((email, permissions)))}"
        self.create(
            "gcp:projects/iAMCustomRole:IAMCustomRole",
            {"roleId": role, "title": role, "permissions": list(permissions)},
        )
        props = {"role": f"projects/{PROJECT}/roles/{role}", "member": f"serviceAccount:{email}"}
        self.create("gcp:projects/iAMMember:IAMMember", props)

    def group(
        self,
        script: str = SLEEPER,
        size: int = 1,
        name: str = "g",
        status: int = 200,
        zone: str = ZONE,
        policy: Json | None = None,
        **template: Any,
    ) -> str:
        """Make a template and a group of it, which has these policies too; return the group's id."""
        boot = {"boot": True, "sourceImage": FAMILY}
        scheduling = {
            "provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False,
            "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE",
        }  # fmt: skip
        props: Json = {
            "name": f"{name}-template", "region": REGION, "machineType": "n1-standard-4", "disks": [boot],
            "serviceAccount": {"email": f"vm@{PROJECT}.iam.gserviceaccount.com", "scopes": ["cloud-platform"]},
            "metadata": {"startup-script": script, "gpt2-run": "run-1"},
            "scheduling": scheduling | template.pop("scheduling", {}), **template,
        }  # fmt: skip
        made = self.create(TEMPLATE, props)
        group = {
            "name": name, "region": REGION, "baseInstanceName": name, "targetSize": size,
            "versions": [{"instanceTemplate": made["state"]["selfLink"]}], "distributionPolicyZones": [zone],
            "instanceLifecyclePolicy": {"defaultActionOnFailure": "REPAIR"}, **(policy or {}),
        }  # fmt: skip
        self.create(GROUP, group, status)
        return f"{REGIONAL}/instanceGroupManagers/{name}"

    def delete(self, token: str, id: str, status: int = 200) -> Any:  # noqa: A002
        return self.post("/provider/delete", {"token": token, "id": id, "project": PROJECT}, status)

    def vms(self) -> list[Json]:
        found: list[Json] = requests.get(f"{self.url}/vms", timeout=10).json()
        return found

    def bill(self) -> Json:
        """Return what is billed: see account.py."""
        found: Json = requests.get(f"{self.url}/account", timeout=10).json()
        return found

    def running(self, count: int, but: str = "") -> list[Json]:
        """Wait until this many VMs are on and have printed "up"; none has the id `but`."""

        def found() -> list[Json] | None:
            vms = [vm for vm in self.vms() if vm["status"] == "RUNNING" and vm["id"] != but]
            said = [vm for vm in vms if "\nup" in self.serial(vm).rpartition(f"({vm['id']})")[2]]
            return vms if len(said) == len(vms) == count == len(self.vms()) else None

        vms: list[Json] = wait_until(found, lambda: f"{count} VMs: {self.vms()}")
        return vms

    def gone(self) -> None:
        wait_until(lambda: not self.vms(), lambda: f"no VMs: {self.vms()}")
        assert not processes.marked(f"{self.folder}::")

    def serial(self, vm: Json) -> str:
        path = Path(vm["serial"])
        return path.read_text() if path.exists() else ""

    def metadata(self, vm: Json, path: str, **query: str) -> requests.Response:
        host = vm["environment"]["GCE_METADATA_HOST"]
        headers = {"Metadata-Flavor": "Google"}
        url = f"http://{host}/computeMetadata/v1/{path}"
        return requests.get(url, params=query, headers=headers, timeout=60)

    def token(self, vm: Json) -> str:
        return str(self.metadata(vm, "instance/service-accounts/default/token").json()["access_token"])

    def rest(
        self, verb: str, path: str, token: str = "stand-in-deployer", body: Json | None = None
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(verb, f"{self.url}/{path}", json=body, headers=headers, timeout=60)

    def fault(self, name: str, **body: Any) -> Json:
        done: Json = self.post(f"/faults/{name}", body)
        return done

    def violations(self) -> list[str]:
        found: list[str] = requests.get(f"{self.url}/violations", timeout=10).json()
        return found


def wait_until(condition: Callable[[], Any], what: Callable[[], str], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    return pytest.fail(f"waited {seconds} s for {what()}")


@contextlib.contextmanager
def laboratory(folder: Path, gcs_address: str) -> Iterator[Lab]:
    """Start a lab; at its end there must be no violation, and no process of a VM."""
    storage, base = f"http://{gcs_address}", without_google()
    folder.mkdir()
    daemon = start_daemon(folder, {**base, "STORAGE_EMULATOR_HOST": storage, "STAND_IN_WORKFLOW_SPEED": "60"})
    url = ""
    try:
        url = wait_for(lambda: daemon_url(folder, daemon), "the daemon")
        lab = Lab(url, folder, {**base, **environment(url, storage, folder)})
        for service in (
            *("compute", "iam", "cloudscheduler", "cloudresourcemanager", "artifactregistry", "cloudbuild"),
            *("workflows", "workflowexecutions"),
        ):
            lab.create(
                "gcp:projects/service:Service", {"service": f"{service}.googleapis.com", "disableOnDestroy": False}
            )
        lab.account("vm")
        yield lab
        assert lab.violations() == []
    finally:
        stop(daemon, url)
    assert not processes.marked(f"{folder}::")
