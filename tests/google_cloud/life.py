"""A small run on the stand-in cloud: its stack file, and the questions of tests while it runs."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from infra import load
from infra.job import job_spec
from tests.google_cloud.conftest import StandIn, wait_for
from tests.trainer.running import text
from trainer.contract.spec import JobSpec
from trainer.runs.records import Status
from trainer.runs.status import read_status
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
JOB = "gcp:cloudscheduler/job:Job"
FIREWALL = "gcp:compute/firewall:Firewall"
BUCKET = "gcp:storage/bucket:Bucket"
PATIENCE = 300.0  # seconds that anything may take on a busy machine with two cores
# The smallest run with all parts: a master, Spot workers, checkpoints.
STACK = """config:
  gcp:project: {project}
  gcp:region: us-central1
  gpt2-training:platform: google
  gpt2-training:trainingInput:
    masterType: n1-standard-2
    workerType: n1-standard-2
    workerCount: {workers}
    hyperparameters:
      {{learningRate: 0.01, batchSize: 8, sequenceLength: 32, steps: {steps}, warmupSteps: 20, microBatchSize: 2}}
  gpt2-training:model: {{layers: 2, heads: 2, width: 32, positions: 32}}
  gpt2-training:data: {{path: data/text.txt, tokenizer: byte}}
  gpt2-training:evaluation: {{every: 1000, sequences: 32}}
  gpt2-training:checkpoints: {{every: {every}}}
  gpt2-training:machines: {{spot: {spot}}}
  gpt2-training:limits: {{maxHours: 5}}
"""


class Life:
    """A stack on the stand-in cloud, with the calls of a test."""

    def __init__(self, cloud: StandIn, *, workers: int = 1, steps: int = 60, every: int = 20) -> None:
        self.cloud, self.root = cloud, cloud.root
        spot = "true" if workers else "false"
        (self.root / "data" / "text.txt").write_text(text())
        stack = STACK.format(project=cloud.project, workers=workers, steps=steps, every=every, spot=spot)
        (self.root / "Pulumi.dev.yaml").write_text(stack)

    @property
    def storage(self) -> Storage:
        return open_storage(load.bucket_of("dev", self.root))

    def job(self) -> JobSpec:
        return job_spec(load.from_file("dev", self.root))

    def status(self, run: str = "") -> Status | None:
        return read_status(self.storage, run or self.job().run)

    def vms(self, role: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cloud.call("GET", "/vms")[1]
        return [vm for vm in found if f"-{role}" in vm["group"]]

    def sizes(self) -> dict[str, int]:
        """Return the number of machines that each role should have, in all zones together."""
        every = self.cloud.call("GET", "/resources")[1]
        sizes: Counter[str] = Counter()
        for group in (one["state"] for one in every if one["token"] == GROUP):
            sizes[group["name"].split("-")[1]] += group["targetSize"]
        return dict(sizes)

    def control(self, ahead: float = 0) -> str:
        """Let the controller look once, `ahead` seconds later; return the result of its execution."""
        if ahead:
            self.fault("clock", ahead=ahead)
        (job,) = self.cloud.resources()[JOB]
        known = len(self._executions())
        headers = {"Authorization": "Bearer stand-in-deployer"}
        url = f"{self.cloud.url}/cloudscheduler/v1/{job}:run"
        assert requests.post(url, json={}, headers=headers, timeout=60).status_code == 200
        over = wait_for(
            lambda: len(now := self._executions()) > known and all(one["state"] != "ACTIVE" for one in now) and now,
            "an execution of the controller",
            PATIENCE,
        )
        assert {one["state"] for one in over} == {"SUCCEEDED"}, over
        return str(json.loads(over[-1]["result"]))

    def _executions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cloud.call("GET", "/executions")[1]
        return found

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        def look() -> Any:
            status = self.status()
            assert status is None or status.state != "FAILED", status
            return condition()

        try:
            # Each look reads the stack file and the bucket: without a pause it would take a core from the trainers.
            return wait_for(look, what, PATIENCE, every=0.25)
        except BaseException:
            for vm in self.vms():
                serial = Path(vm["serial"])
                print(f"== {vm['name']} {vm['action']}\n{serial.read_text()[-1500:] if serial.exists() else ''}")
            for entry in self.storage.list(f"runs/{self.job().run}/machines"):
                print(entry.path, self.storage.read(entry.path).decode()[-1500:])
            raise

    def finished(self) -> None:
        self.until(lambda: (now := self.status()) and now.state == "SUCCEEDED", "SUCCEEDED")
        self.until(lambda: set(self.sizes().values()) == {0} and not self.vms(), "the groups at zero")
        # The controller's last execution pauses its job a moment later.
        self.until(lambda: self.cloud.state(JOB).get("state") == "PAUSED", "the controller's job paused")

    def training(self, step: int = 1) -> None:
        """Wait until this many steps are done and every machine takes part."""

        def there() -> bool:
            now = self.status()
            return now is not None and now.state == "RUNNING" and now.step >= step

        self.until(there, f"step {step}")

    def fault(self, name: str, **body: Any) -> None:
        status, answer = self.cloud.call("POST", f"/faults/{name}", body)
        assert status == 200, answer

    def changes(self, *arguments: str) -> dict[str, str]:
        found = self.cloud.steps("dev", *arguments)
        return {name: op for name, op in found.items() if op != "refresh"}


def no_violations(cloud: StandIn) -> None:
    """Assert that no call was unknown to Google's documents."""
    status, found = cloud.call("GET", "/violations")
    assert (status, found) == (200, []), found
