"""The controller's workflow, executed against the groups and machines of the stand-in cloud."""

import base64
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from tests.google_cloud.lab import JOB, PROJECT, REGION, Lab, wait_until
from tests.google_cloud.workflows import WORKFLOW, problem
from trainer.contract import paths

SOURCE = (Path(__file__).parents[2] / "infra" / "google" / "controller.yaml").read_text()
RIGHTS = (
    "compute.instanceGroupManagers.get",
    "compute.instanceGroupManagers.update",
    "cloudscheduler.jobs.pause",
    "workflows.executions.create",
)
ZONES = [f"{REGION}-a", f"{REGION}-b", f"{REGION}-c"]
PLACE = f"projects/{PROJECT}/locations/{REGION}"
Json = dict[str, Any]


class Controlled:
    """A run of the lab with its records, its groups, and the controller that the scheduler's job starts."""

    def __init__(self, lab: Lab, bucket: gcs.Bucket, **argument: Any) -> None:
        self.lab, self.bucket = lab, bucket
        self.job = f"{PLACE}/jobs/gpt2-dev-controller"
        self.argument = {
            "project": PROJECT, "region": REGION, "bucket": bucket.name, "run": "run-1", "launch": 1,
            "current": paths.CURRENT, "started": paths.launch("run-1", 1), "placement": paths.placement("run-1", 1),
            "end": paths.end("run-1", 1), "ends": int(time.time()) + 36000,
            "job": self.job, "wait_seconds": 1200, "max_moves": 6, "zones": [], "groups": [], **argument,
        }  # fmt: skip
        self.put(paths.CURRENT, {"run": "run-1", "launch": 1})
        self.put(paths.launch("run-1", 1), {"started": int(time.time()), "zone": ZONES[0]})

    def put(self, path: str, content: Json) -> None:
        self.bucket.blob(path).upload_from_string(json.dumps(content))

    def get(self, path: str) -> Json:
        found: Json = json.loads(self.bucket.blob(path).download_as_bytes())
        return found

    def placement(self) -> Json:
        return self.get(paths.placement("run-1", 1))

    def group(self, role: str, count: int, zone: str = ZONES[0], size: int | None = None, required: int = 1) -> str:
        name = f"{role}-{zone[-1]}"
        made = self.lab.group(size=count if size is None else size, name=name, zone=zone)
        row = {"name": name, "role": role, "zone": zone, "count": count, "required": required}
        self.argument["groups"].append(row)
        return made

    def declare(self, *rights: str) -> None:
        """Make the controller, which has these rights or all that it needs."""
        account = self.lab.account("controller")
        self.lab.grant(account, *(rights or RIGHTS))
        member = f"serviceAccount:{account}"
        grant = {"bucket": self.bucket.name, "role": "roles/storage.objectUser", "member": member}
        self.lab.create("gcp:storage/bucketIAMMember:BucketIAMMember", grant)
        name = "gpt2-dev-controller"
        settings = {"name": name, "region": REGION, "serviceAccount": account, "sourceContents": SOURCE}
        self.lab.create(WORKFLOW, {**settings, "deletionProtection": False})
        body = json.dumps({"argument": json.dumps(self.argument)}).encode()
        target = {
            "uri": f"https://workflowexecutions.googleapis.com/v1/{PLACE}/workflows/{name}/executions",
            "httpMethod": "POST", "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": account}, "headers": {"Content-Type": "application/json"},
        }  # fmt: skip
        self.lab.create(JOB, {"name": name, "region": REGION, "schedule": "*/5 * * * *", "httpTarget": target})

    def execute(self) -> str:
        """Run the scheduler's job; return the result of the execution."""
        known = len(self.executions())
        assert self.lab.rest("POST", f"cloudscheduler/v1/{self.job}:run", body={}).status_code == 200
        found = wait_until(
            lambda: [one for one in self.executions()[known:] if one["state"] != "ACTIVE"], lambda: "an execution", 90
        )
        [execution] = found
        assert execution["state"] == "SUCCEEDED", execution
        return str(json.loads(execution["result"]))

    def executions(self) -> list[Json]:
        found: list[Json] = requests.get(f"{self.lab.url}/executions", timeout=10).json()
        return found

    def paused(self) -> bool:
        described: Json = self.lab.rest("GET", f"cloudscheduler/v1/{self.job}").json()
        return bool(described["state"] == "PAUSED")

    def sizes(self) -> dict[str, int]:
        found = {}
        for group in self.argument["groups"]:
            path = f"compute/v1/projects/{PROJECT}/regions/{REGION}/instanceGroupManagers/{group['name']}"
            found[group["name"]] = self.lab.rest("GET", path).json()["targetSize"]
        return found


@pytest.fixture
def bucket(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> gcs.Bucket:
    """Return a bucket of the stand-in cloud, on which grants count."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    lab.create("gcp:storage/bucket:Bucket", {"name": name, "location": "US"})
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", lab.environment["STORAGE_EMULATOR_HOST"])
    return gcs.Client(project=PROJECT, credentials=AnonymousCredentials()).bucket(name)


def test_source_is_what_google_accepts() -> None:
    assert problem(SOURCE) == ""


def test_run_that_is_over_is_scaled_down_although_three_tries_fail(lab: Lab, bucket: gcs.Bucket) -> None:
    run = Controlled(lab, bucket)
    run.group("worker", 2)
    run.group("master", 1)
    run.declare()
    lab.running(3)
    assert run.execute() == "one zone: nothing to move"
    assert len(lab.running(3)) == 3
    run.put(paths.end("run-1", 1), {"reason": "SUCCEEDED", "time": 1})
    lab.post("/rest/faults", {"method": "resize.*worker", "status": 503, "times": 3})
    assert run.execute() == "ended: no machine is left"
    lab.gone()
    assert run.paused()
