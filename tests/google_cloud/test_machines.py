"""VMs, groups and the scheduler of the stand-in cloud, over HTTP and without Pulumi."""

import subprocess
import sys
import time
from datetime import UTC, datetime

import psutil
import pytest
import requests

from infra.local import processes
from tests.google_cloud.conftest import CHECKOUT
from tests.google_cloud.lab import (
    FAMILY,
    GROUP,
    JOB,
    PROJECT,
    REGION,
    REGIONAL,
    STUBBORN,
    TEMPLATE,
    ZONE,
    Json,
    Lab,
    wait_until,
)

pytestmark = pytest.mark.runs_on("the stand-in's machines are the subject, and the lab's end switches them off")


def test_group_boots_vms_that_know_their_names_and_attributes(lab: Lab) -> None:
    lab.group(size=2)
    vms = lab.running(2)
    assert len({vm["name"] for vm in vms}) == 2
    for vm in vms:
        assert vm["name"].startswith("g-")
        assert len(vm["name"]) == len("g-xxxx")
        assert f"up {vm['name']}" in lab.serial(vm)
        said = {
            "instance/name": vm["name"],
            "instance/attributes/gpt2-run": "run-1",
            "instance/network-interfaces/0/ip": "127.0.0.1",
            "project/project-id": PROJECT,
            "instance/service-accounts/default/email": f"vm@{PROJECT}.iam.gserviceaccount.com",
            "instance/preempted": "FALSE",
        }
        assert {path: lab.metadata(vm, path).text for path in said} == said
        assert lab.metadata(vm, "instance/zone").text.endswith(f"/zones/{ZONE}")
        assert lab.metadata(vm, "instance/attributes/no-such").status_code == 404
        plain = requests.get(
            f"http://{vm['environment']['GCE_METADATA_HOST']}/computeMetadata/v1/instance/name", timeout=10
        )
        assert plain.status_code == 403


def test_google_auth_on_a_vm_finds_its_account(lab: Lab) -> None:
    lab.group()
    [vm] = lab.running(1)
    program = (
        "import google.auth, google.auth.transport.requests as r;"
        "c, p = google.auth.default(scopes=['https://www.googleapis.com/auth/cloud-platform']);"
        "c.refresh(r.Request()); print(p, c.service_account_email, c.token)"
    )
    environment = {k: v for k, v in vm["environment"].items() if k != "GPT2_TRAINING_MACHINE"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=CHECKOUT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    project, account, token = done.stdout.split()
    assert (project, account) == (PROJECT, f"vm@{PROJECT}.iam.gserviceaccount.com")
    lab.grant(account, "compute.zones.list")
    assert lab.rest("GET", f"compute/v1/projects/{PROJECT}/zones", token).status_code == 200


def test_preemption_with_notice_is_announced_then_comes_and_is_repaired(lab: Lab) -> None:
    lab.group()
    [vm] = lab.running(1)
    first = lab.metadata(vm, "instance/preempted")
    assert first.text == "FALSE"
    lab.fault("preempt", instance=vm["name"], notice=True)
    changed = lab.metadata(vm, "instance/preempted", wait_for_change="true", last_etag=first.headers["ETag"])
    assert changed.text == "TRUE"
    lab.fault("clock", ahead=100)
    assert lab.running(1) == [vm]  # the two minutes are not over
    lab.fault("clock", ahead=30)
    [again] = lab.running(1, but=vm["id"])
    assert again["name"] == vm["name"]
    assert "asked to leave" in lab.serial(vm)
    assert lab.metadata(again, "instance/preempted").text == "FALSE"


def test_long_poll_of_the_metadata_waits_for_the_change(lab: Lab) -> None:
    lab.group()
    [vm] = lab.running(1)
    address = (
        f"http://{vm['environment']['GCE_METADATA_HOST']}/computeMetadata/v1/instance/preempted?wait_for_change=true"
    )
    poll = subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--header", "Metadata-Flavor: Google", address], stdout=subprocess.PIPE
    )
    wait_until(lambda: psutil.Process(poll.pid).net_connections(), lambda: "the poll to be there")
    assert poll.poll() is None
    lab.fault("preempt", instance=vm["name"], notice=True)
    assert poll.communicate(timeout=30)[0] == b"TRUE"


def test_preemption_without_notice_leaves_no_process(lab: Lab) -> None:
    lab.group(script=STUBBORN)
    [vm] = lab.running(1)
    mark = vm["environment"]["GPT2_TRAINING_MACHINE"]
    assert processes.marked(mark)
    lab.fault("preempt", instance=vm["name"], notice=False)
    assert not processes.marked(mark)
    [again] = lab.running(1, but=vm["id"])
    assert again["name"] == vm["name"]


def test_frozen_vm_ends_at_the_deadline_of_its_template(lab: Lab) -> None:
    until = time.time() + 3600
    limit = {"terminationTime": datetime.fromtimestamp(until, UTC).isoformat().replace("+00:00", "Z")}
    group = lab.group(script=STUBBORN, scheduling=limit)
    [vm] = lab.running(1)
    lab.fault("freeze", instance=vm["name"])
    lab.fault("grace", seconds=0.5)
    lab.fault("clock", epoch=until + 1)
    wait_until(lambda: lab.vms()[0]["status"] == "TERMINATED", lambda: f"its end: {lab.vms()}")
    errors = lab.rest("GET", f"compute/v1/{group}/listErrors").json()["items"]
    assert "terminationTime" in errors[0]["error"]["message"]  # the group cannot make it anew
    lab.delete(GROUP, group)
    lab.gone()


def test_limit_of_the_run_time_counts_for_each_vm(lab: Lab) -> None:
    lab.group(scheduling={"maxRunDuration": {"seconds": 3600}})
    [vm] = lab.running(1)
    lab.fault("clock", ahead=3601)
    [again] = lab.running(1, but=vm["id"])
    assert again["name"] == vm["name"]


def job(lab: Lab, group: str, account: str, date: datetime | None = None, retries: int = 0) -> str:
    when = date or datetime.fromtimestamp(time.time() + 86400 * 10, UTC)
    uri = f"https://compute.googleapis.com/compute/v1/{group}/resize?size=0"
    props = {
        "name": "deadline", "region": REGION, "schedule": f"{when.minute} {when.hour} {when.day} {when.month} *",
        "timeZone": "Etc/UTC",
        "httpTarget": {"uri": uri, "httpMethod": "POST", "oauthToken": {"serviceAccountEmail": account}},
        "retryConfig": {"retryCount": retries, "minBackoffDuration": "5s", "maxBackoffDuration": "60s"},
    }  # fmt: skip
    lab.create(JOB, props)
    return f"projects/{PROJECT}/locations/{REGION}/jobs/deadline"


def attempt(lab: Lab, name: str) -> Json:
    """Return the job's last attempt, once there is one."""
    asked = lambda: requests.get(f"{lab.url}/jobs/{name}", timeout=10).json()  # noqa: E731
    wait_until(lambda: "lastAttemptTime" in asked(), lambda: f"an attempt of {name}")
    status: Json = asked()["status"]
    return status


def test_master_scales_down_by_the_scheduler_only_with_grants(lab: Lab) -> None:
    group = lab.group(size=2)
    vm = lab.running(2)[0]
    caller = lab.account("caller")
    name = job(lab, group, caller)
    run = f"cloudscheduler/v1/{name}:run"
    assert lab.rest("POST", run, "no-such-token", {}).status_code == 401
    assert lab.rest("POST", run, lab.token(vm), {}).status_code == 403
    lab.grant(f"vm@{PROJECT}.iam.gserviceaccount.com", "cloudscheduler.jobs.run")
    direct = lab.rest("POST", f"compute/v1/{group}/resize?size=0", lab.token(vm))
    assert direct.status_code == 403  # the VM itself may resize nothing
    assert lab.rest("POST", run, lab.token(vm), {}).status_code == 200
    assert attempt(lab, name)["code"] == 7  # the account has no permission yet
    assert len(lab.running(2)) == 2
    lab.grant(caller, "compute.instanceGroupManagers.update")
    assert lab.rest("POST", run, lab.token(vm), {}).status_code == 200
    lab.gone()
    read = lab.post("/provider/read", {"token": GROUP, "id": group, "project": PROJECT})
    assert read["state"]["targetSize"] == 0  # a refresh reads this state


def test_deadline_fires_at_its_date(lab: Lab) -> None:
    group = lab.group()
    lab.running(1)
    caller = lab.account("caller")
    lab.grant(caller, "compute.instanceGroupManagers.update")
    date = datetime.fromtimestamp(time.time() + 86400, UTC).replace(second=0, microsecond=0)
    name = job(lab, group, caller, date)
    lab.fault("clock", epoch=date.timestamp() - 60)
    assert "lastAttemptTime" not in requests.get(f"{lab.url}/jobs/{name}", timeout=10).json()
    assert len(lab.running(1)) == 1
    lab.fault("clock", epoch=date.timestamp() + 1)
    assert attempt(lab, name) == {}
    lab.gone()


def test_failed_job_is_tried_again(lab: Lab) -> None:
    group = lab.group()
    lab.running(1)
    caller = lab.account("caller")
    name = job(lab, group, caller, retries=2)
    assert lab.rest("POST", f"cloudscheduler/v1/{name}:run", body={}).status_code == 200
    assert attempt(lab, name)["code"] == 7
    lab.grant(caller, "compute.instanceGroupManagers.update")
    lab.fault("clock", ahead=60)
    lab.gone()


def test_missing_capacity_is_an_error_of_the_group_until_there_is_some(lab: Lab) -> None:
    lab.fault("capacity", zone=ZONE, available=False)
    group = lab.group(size=2)
    assert {vm["status"] for vm in lab.vms()} == {"TERMINATED"}
    errors = lab.rest("GET", f"compute/v1/{group}/listErrors").json()["items"]
    assert [error["error"]["code"] for error in errors] == ["ZONE_RESOURCE_POOL_EXHAUSTED"] * 2
    managed = lab.rest("POST", f"compute/v1/{group}/listManagedInstances").json()["managedInstances"]
    assert {one["currentAction"] for one in managed} == {"CREATING"}
    described = lab.rest("GET", f"compute/v1/{group}").json()
    assert (described["targetSize"], described["status"]["isStable"]) == (2, False)
    lab.fault("capacity", zone=ZONE, available=True)
    lab.running(2)


def test_quota_of_zero_prevents_vms(lab: Lab) -> None:
    lab.fault("quota", metric="PREEMPTIBLE_NVIDIA_T4_GPUS", limit=0)
    group = lab.group(guestAccelerators=[{"type": "nvidia-tesla-t4", "count": 1}])
    [error] = lab.rest("GET", f"compute/v1/{group}/listErrors").json()["items"]
    assert error["error"]["code"] == "QUOTA_EXCEEDED"
    quotas = lab.rest("GET", f"compute/v1/{REGIONAL}").json()["quotas"]
    assert {"metric": "PREEMPTIBLE_NVIDIA_T4_GPUS", "limit": 0, "usage": 0} in quotas


def test_vm_that_never_boots_is_running(lab: Lab) -> None:
    lab.fault("boot", never=True)
    lab.group()
    [vm] = lab.vms()
    assert vm["status"] == "RUNNING"
    assert lab.serial(vm) == ""


def test_template_with_unknown_image_type_or_account_is_refused(lab: Lab) -> None:
    image = {"disks": [{"boot": True, "sourceImage": FAMILY.replace("129", "117")}]}
    for wrong, status in ((image, 404), ({"machineType": "n1-highmem-17"}, 400)):
        with pytest.raises(AssertionError, match=f"^{{.*{status}"):
            lab.group(name="wrong", **wrong)
    lab.group(name="other", serviceAccount={"email": f"no@{PROJECT}.iam.gserviceaccount.com"}, status=404)
    p100 = [{"type": "nvidia-tesla-p100", "count": 1}]  # this zone has none
    lab.group(name="gpu", guestAccelerators=p100, status=400)


def test_template_in_use_cannot_be_deleted(lab: Lab) -> None:
    group = lab.group()
    lab.delete(TEMPLATE, f"{REGIONAL}/instanceTemplates/g-template", status=400)
    lab.delete(GROUP, group)
    lab.gone()
    lab.delete(TEMPLATE, f"{REGIONAL}/instanceTemplates/g-template")


def test_size_of_a_group_is_changed_by_resize_and_by_an_update(lab: Lab) -> None:
    group = lab.group(size=1)
    lab.running(1)
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=3").status_code == 200
    lab.running(3)
    read = {"token": GROUP, "id": group, "project": PROJECT}
    assert lab.post("/provider/read", read)["state"]["targetSize"] == 3
    lab.post("/provider/update", {**read, "changed": {"targetSize": 1}, "removed": []})
    lab.running(1)


def test_startup_script_that_ends_does_not_end_its_vm(lab: Lab) -> None:
    lab.group(script="echo up; exit 3")
    [vm] = lab.running(1)
    [vm] = wait_until(lambda: [one for one in lab.vms() if one["scriptExit"] is not None], lambda: "the script's end")
    assert (vm["status"], vm["scriptExit"]) == ("RUNNING", 3)


def test_vm_that_a_person_recreates_keeps_its_name(lab: Lab) -> None:
    group = lab.group()
    [vm] = lab.running(1)
    body = {"instances": [f"projects/{PROJECT}/zones/{ZONE}/instances/{vm['name']}"]}
    assert lab.rest("POST", f"compute/v1/{group}/recreateInstances", body=body).status_code == 200
    [again] = lab.running(1, but=vm["id"])
    assert again["name"] == vm["name"]


def test_daemon_that_ends_ends_all_vms(lab: Lab) -> None:
    lab.group(script=STUBBORN, size=2)
    lab.running(2)
    assert processes.marked(f"{lab.folder}::")  # the fixture looks for them after the daemon's end
