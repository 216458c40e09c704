"""The controller's workflow, executed against the groups and machines of the stand-in cloud."""

import base64
import itertools
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from infra.estimate import extras
from tests.google_cloud.iam import SERVICE_IDENTITY
from tests.google_cloud.lab import GROUP, JOB, PROJECT, REGION, Lab, wait_until
from tests.google_cloud.workflows import WORKFLOW, problem
from trainer.contract import paths
from trainer.runs.placement import DEADLINE

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
        self.names: dict[str, str] = {}  # the ids of the groups
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

    def group(
        self, role: str, count: int, zone: str = ZONES[0], size: int | None = None, required: int = 1, **settings: Any
    ) -> str:
        """Make a group; return its id."""
        name = f"{role}-{zone[-1]}"
        made = self.lab.group(size=count if size is None else size, name=name, zone=zone, **settings)
        self.names[name] = made
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
        self.lab.create(SERVICE_IDENTITY, {"service": "workflows.googleapis.com"})
        name = "gpt2-dev-controller"
        settings = {"name": name, "region": REGION, "serviceAccount": account, "sourceContents": SOURCE}
        self.lab.create(WORKFLOW, {**settings, "deletionProtection": False})
        body = json.dumps({"argument": json.dumps(self.argument)}).encode()
        target = {
            "uri": f"https://workflowexecutions.googleapis.com/v1/{PLACE}/workflows/{name}/executions",
            "httpMethod": "POST", "body": base64.b64encode(body).decode(),
            "oauthToken": {"serviceAccountEmail": account}, "headers": {"Content-Type": "application/json"},
        }  # fmt: skip
        self.lab.create(JOB, {"name": name, "region": REGION, "schedule": "0 0 1 1 *", "httpTarget": target})

    def execute(self) -> str:
        """Run the scheduler's job; return the result of the execution."""
        known = len(self.executions())
        assert self.lab.rest("POST", f"cloudscheduler/v1/{self.job}:run", body={}).status_code == 200
        found = wait_until(
            lambda: [one for one in self.executions()[known:] if one["state"] != "ACTIVE"], lambda: "an execution", 90
        )
        [execution] = found
        assert execution["state"] == "SUCCEEDED", execution.get("error")
        return str(json.loads(execution["result"]))

    def execute_until(self, result: str) -> None:
        """Execute until this result, as the schedule does: on a busy machine one execution may not see the end."""
        results: list[str] = []
        while len(results) < 6 and results[-1:] != [result]:
            results.append(self.execute())
            assert results[-1] == result or "machines left" in results[-1], results
        assert results[-1] == result, results

    def executions(self) -> list[Json]:
        found: list[Json] = requests.get(f"{self.lab.url}/executions", timeout=10).json()
        return found

    def paused(self) -> bool:
        described: Json = self.lab.rest("GET", f"cloudscheduler/v1/{self.job}").json()
        return bool(described["state"] == "PAUSED")

    def sizes(self) -> dict[str, int]:
        found = {}
        for name, group in self.names.items():
            found[name] = self.lab.rest("GET", f"compute/v1/{group}").json()["targetSize"]
        return found


@pytest.fixture
def run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controlled]:
    """Return a run whose records are in a bucket of the stand-in cloud; its job and bucket go at the end."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    lab.create("gcp:storage/bucket:Bucket", {"name": name, "location": "US"})
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", lab.environment["STORAGE_EMULATOR_HOST"])
    found = Controlled(lab, gcs.Client(project=PROJECT, credentials=AnonymousCredentials()).bucket(name))
    yield found
    lab.delete(JOB, found.job)


def test_source_is_what_google_accepts() -> None:
    assert problem(SOURCE) == ""


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("main: {steps: [{a: {cal: sys.log}}]}", "parse error"),
        ("main: {steps: [{a: {return: '${" + "1 + " * 100 + "1}'}}]}", "longer than 400 characters"),
        ("main: {steps: [{a: {return: 'x ${1}'}}]}", "not a whole value"),
    ],
)
def test_source_that_google_refuses_is_refused(source: str, why: str) -> None:
    assert why in problem(source)


def test_run_that_is_over_is_scaled_down_although_three_tries_fail(run: Controlled) -> None:
    lab = run.lab
    run.group("worker", 2)
    run.group("master", 1)
    run.declare()
    lab.running(3)
    assert run.execute() == "one zone: nothing to move"
    assert len(lab.running(3)) == 3
    run.put(paths.CURRENT, {"run": "run-2", "launch": 1})  # the end of this launch remains its own
    run.put(paths.end("run-1", 1), {"reason": "SUCCEEDED", "time": 1})
    lab.post("/rest/faults", {"method": "resize.*worker", "status": 503, "times": 3})
    run.execute_until("ended: no machine is left")
    lab.gone()
    assert run.paused()
    assert run.execute() == "ended: no machine is left"  # the master may have asked twice


def test_master_stays_until_the_others_are_seen_gone_but_not_beyond_the_deadline(run: Controlled) -> None:
    lab = run.lab
    run.group("master", 1)
    run.group("worker", 1)
    run.declare()
    lab.running(2)
    lab.post("/rest/faults", {"method": "listManagedInstances.*worker", "status": 403})
    run.put(paths.end("run-1", 1), {"reason": "FAILED", "time": 1})
    assert run.execute() == "ending: machines left: 2"
    assert run.sizes() == {"master-a": 1, "worker-a": 0}
    assert "worker-a is not seen" in " ".join(run.executions()[-1]["log"])
    assert not run.paused()  # so the next tick tries again
    lab.fault("clock", epoch=run.argument["ends"] + 1)
    assert run.execute() == "ending: machines left: 2"
    assert run.sizes() == {"master-a": 0, "worker-a": 0}
    lab.delete(GROUP, run.names["master-a"])  # a group that is deleted has no machines
    lab.post("/rest/faults", {})
    run.execute_until("ended: no machine is left")
    assert run.paused()
    assert run.get(paths.end("run-1", 1))["reason"] == DEADLINE  # so no `up` makes machines under a paused job


def test_deadline_ends_the_machines_although_the_bucket_cannot_be_read(run: Controlled) -> None:
    run.group("master", 1)
    run.declare()
    run.lab.running(1)
    run.lab.fault("storage", status=400, only="^GET")
    run.lab.fault("clock", epoch=run.argument["ends"] + 1)
    run.execute_until("ended: no machine is left")
    run.lab.fault("storage")


def test_controller_without_a_right_does_not_pause_its_job(run: Controlled) -> None:
    run.group("master", 1)
    run.argument["groups"][0]["zone"] = ""  # as of a run of one machine, which may be in any zone
    run.declare("compute.instanceGroupManagers.get", "cloudscheduler.jobs.pause", "workflows.executions.create")
    run.lab.running(1)
    run.put(paths.end("run-1", 1), {"reason": "SUCCEEDED", "time": 1})
    assert run.execute() == "ending: machines left: 2"  # the machine, and the size that the group still has
    assert not run.paused()
    assert "master-a is not resized" in " ".join(run.executions()[-1]["log"])
    run.lab.grant(f"controller@{PROJECT}.iam.gserviceaccount.com", "compute.instanceGroupManagers.update")
    run.execute_until("ended: no machine is left")


def test_run_moves_out_of_two_zones_without_capacity_and_stays_in_the_third(run: Controlled) -> None:
    lab = run.lab
    for zone in ZONES[:2]:
        lab.fault("capacity", zone=zone, available=False)
    for zone in ZONES:
        run.group("master", 1, zone, size=1 if zone == ZONES[0] else 0)
        run.group("worker", 3, zone, size=3 if zone == ZONES[0] else 0, required=2)
    run.argument["zones"] = ZONES
    run.declare()
    assert run.execute() == "machines are missing from now on"
    since = run.placement()["waiting_since"]
    assert run.execute() == "machines are missing"

    for old, new in itertools.pairwise(ZONES):
        lab.fault("clock", ahead=1300)
        if old == ZONES[1]:  # this execution is lost after it has declared the move
            lab.post("/rest/faults", {"method": f"resize.*{new[-1]}/resize", "status": 500, "times": 8})
            assert run.execute() == "moving: a group could not be resized"
            assert (run.placement()["zone"], sum(run.sizes().values())) == (new, 0)
            lab.post("/rest/faults", {})
        run.execute_until(f"moved to {new}")
        assert {name: size for name, size in run.sizes().items() if size} == {
            f"master-{new[-1]}": 1,
            f"worker-{new[-1]}": 3,
        }
        assert run.placement()["waiting_since"] is None
        if new == ZONES[1]:
            assert run.execute() == "machines are missing from now on"
    lab.running(4)
    assert run.execute() == "enough machines"
    moves = run.placement()["moves"]
    assert [(move["from"], move["to"]) for move in moves] == list(itertools.pairwise(ZONES))
    assert moves[0]["time"] >= since + 1200

    # An `up` that did not know of the move yet has given a group of the old zone its size again.
    lab.rest("POST", f"compute/v1/{run.names['worker-' + ZONES[0][-1]]}/resize?size=3")
    assert run.execute() == "enough machines"
    assert run.sizes()[f"worker-{ZONES[0][-1]}"] == 0

    # A run that lost more than it can spare waits, and stops waiting when Google brings machines back.
    lab.fault("capacity", zone=ZONES[2], available=False)
    for vm in [vm for vm in lab.vms() if "worker" in vm["name"]][:2]:
        lab.fault("crash", instance=vm["name"])
    assert run.execute() == "machines are missing from now on"
    lab.fault("capacity", zone=ZONES[2], available=True)
    lab.running(4)
    assert run.execute() == "enough machines again"
    assert run.placement()["waiting_since"] is None

    # Neither the groups of another declared run nor groups that a person emptied are moved.
    run.put(paths.CURRENT, {"run": "run-1", "launch": 2})
    assert run.execute() == "another run or launch is declared"
    run.put(paths.CURRENT, {"run": "run-1", "launch": 1})
    for group in (name for name in run.names.values() if name.endswith("-c")):
        lab.rest("POST", f"compute/v1/{group}/resize?size=0")
    assert run.execute() == "the groups have size 0: somebody ended the run"
    lab.gone()


def test_run_without_moves_or_time_left_waits_where_it_is(run: Controlled) -> None:
    run.lab.fault("capacity", zone=ZONES[0], available=False)
    for zone in ZONES[:2]:
        run.group("master", 1, zone, size=1 if zone == ZONES[0] else 0)
    run.argument |= {"zones": ZONES[:2], "ends": int(time.time()) + 2400}
    run.declare()
    run.put(paths.placement("run-1", 1), {"zone": ZONES[0], "moves": [], "waiting_since": int(time.time()) - 1200})
    run.lab.fault("clock", ahead=1210)
    assert run.execute() == "machines are missing, and the moves or the time are used up"
    assert run.sizes() == {"master-a": 1, "master-b": 0}
    run.lab.fault("clock", ahead=1200)
    run.execute_until("ended: no machine is left")


@pytest.mark.runs_on("an execution that ends nothing is the subject")
def test_execution_that_changes_nothing_takes_about_the_steps_that_the_estimate_counts(run: Controlled) -> None:
    zones = [*ZONES, f"{REGION}-f"]
    run.argument["zones"] = zones
    run.lab.fault("boot", never=True)
    for zone in zones:
        for role in ("master", "worker", "ps"):
            run.group(role, 1, zone=zone, size=int(zone == zones[0]))
    run.declare()
    assert run.execute() == "enough machines"
    [steps] = [count["number"] for count in run.lab.bill()["counts"] if count["what"] == "workflow steps"]
    assert 0.5 * extras.STEPS_A_TICK <= steps <= extras.STEPS_A_TICK
