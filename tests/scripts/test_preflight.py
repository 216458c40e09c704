"""scripts.preflight: Google's answers become ok, a problem with its fix, or unknown; unknown is never ok."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.exceptions import RefreshError, TransportError
from rich.console import Console

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.google.quotas import Check, QuotaLimits, check_quotas, effective
from scripts import preflight
from scripts.support import common
from scripts.support.common import UserError
from tests.scripts.google import ENOUGH, EVERYWHERE, Call, FakeGoogle, project

P = "projects/test-project"
AGENT = "serviceAccount:123456@cloudservices.gserviceaccount.com"


def service_agent(service: str) -> str:
    return f"serviceAccount:service-123456@gcp-sa-{service}.iam.gserviceaccount.com"


def quotas(limits: dict[str, float], used: dict[str, float] | None = None) -> dict[str, Any]:
    return {"quotas": [{"metric": m, "limit": v, "usage": (used or {}).get(m, 0.0)} for m, v in limits.items()]}


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a docker on PATH, and no other command."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))


@pytest.fixture
def ready(google: FakeGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGoogle:
    """Let Google have a project in which the stack can be made, by Compute Engine's own quotas."""
    monkeypatch.setattr(common, "CHECKOUT", project(tmp_path))
    (tmp_path / "data" / "gpt2-vocabulary").mkdir(parents=True)
    (tmp_path / "data" / "my.txt").write_text("It was the best of times, it was the worst of times.\n" * 20_000)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "data" / "gpt2-vocabulary" / name).write_text("{}")
    (tmp_path / "trainer").mkdir()
    docker(tmp_path, monkeypatch, "exit 0")
    found = {"projectId": "test-project", "projectNumber": "123456", "lifecycleState": "ACTIVE"}
    google.on("cloudresourcemanager", "GET", P, found)
    google.on("cloudresourcemanager", "POST", f"{P}:testIamPermissions", lambda call: call.body)
    agents = [
        {"role": f"roles/{service}.serviceAgent", "members": [service_agent(service)]}
        for service in ("cloudscheduler", "workflows")
    ]
    policy = {"bindings": [{"role": "roles/editor", "members": [AGENT]}, *agents]}
    google.on("cloudscheduler", "GET", f"{P}/locations", {"locations": [{"locationId": "us-central1"}]})
    google.on("workflows", "GET", f"{P}/locations", {"locations": [{"locationId": "us-central1"}]})
    google.on("cloudresourcemanager", "POST", f"{P}:getIamPolicy", policy)
    google.on("cloudresourcemanager", "POST", f"{P}:getEffectiveOrgPolicy", {})
    google.on("serviceusage", "GET", f"{P}/services:batchGet", enabled)
    google.on("compute", "GET", f"{P}/zones/us-central1-[abcf]/machineTypes/n1-highmem-(8|16)", {})
    google.on("compute", "GET", f"{P}/zones/us-central1-[abcf]/acceleratorTypes/nvidia-tesla-t4", {})
    image = {"name": "cos-129-19506-505-8", "diskSizeGb": "10"}
    google.on("compute", "GET", "projects/cos-cloud/global/images/family/cos-129-lts", image)
    google.on("compute", "GET", P, quotas(EVERYWHERE))
    google.on("compute", "GET", f"{P}/regions/us-central1", quotas(ENOUGH))
    google.deny("cloudquotas", message="Cloud Quotas API has not been used in project 123456 before")
    return google


def enabled(call: Call) -> dict[str, Any]:
    return {"services": [{"name": name, "state": "ENABLED"} for name in call.query["names"]]}


def checks() -> dict[str, Check]:
    return {check.name: check for check in preflight.run(common.google_stack("dev"))}


def states(*, leaving_out: str = "ok") -> dict[str, str]:
    return {name: check.state for name, check in checks().items() if check.state != leaving_out}


def test_ready_project_has_every_check_ok(ready: FakeGoogle, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight.main([]) == 0
    out = capsys.readouterr().out
    assert "ok: project: test-project is there\n" in out
    assert "ok: quota NVIDIA_T4_GPUS: 1 needed, limit 20 in us-central1\n" in out
    assert "ok: quota PREEMPTIBLE_NVIDIA_T4_GPUS: 10 needed, limit 20 in us-central1\n" in out
    assert "ok: quota SSD_TOTAL_GB: 2,800 needed, limit 5,000 in us-central1\n" in out
    # The need is that of the master and three servers.
    assert "ok: quota CPUS: 40 needed, limit 1,000 in us-central1\n" in out
    assert "ok: quota GPUS_ALL_REGIONS: 11 needed, limit 20 in all regions\n" in out
    assert out.count("unknown: ") == 1
    assert "unknown: billing: a deployer cannot see it; `gcloud billing projects describe test-project`" in out
    assert out.endswith("24 ok, 0 problem, 1 unknown, 1 note\n")


def test_json_lists_checks_with_name_and_state(ready: FakeGoogle, capsys: pytest.CaptureFixture[str]) -> None:
    ready.on("compute", "GET", f"{P}/regions/us-central1", quotas({**ENOUGH, "PREEMPTIBLE_NVIDIA_T4_GPUS": 4}))
    assert preflight.main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (bad,) = [check for check in found if check["state"] == "problem"]
    assert bad["name"] == "quota PREEMPTIBLE_NVIDIA_T4_GPUS"
    assert bad["found"] == "10 needed, limit 4 in us-central1"
    assert bad["fix"].startswith("ask for 10 or more of PREEMPTIBLE-NVIDIA-T4-GPUS-per-project-region")


def test_terminal_shows_a_table() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    preflight.show([Check("image family", "problem", "there is no [x]", "set machines.imageFamily")], console)
    assert re.search(r"problem\s+image family\s+there is no \[x\]\s+set machines\.imageFamily", out.getvalue())


@pytest.mark.usefixtures("nobody")
def test_missing_login_is_the_last_problem(tmp_path: Path) -> None:
    last = preflight.run(load.from_file("dev", project(tmp_path)))[-1]
    assert (last.name, last.state, last.found) == ("credentials", "problem", "no Google credentials")
    assert last.fix.startswith("run `gcloud auth application-default login`")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read (No such file or directory)"),
        ("", "is not JSON"),
        ("{}", "has no `type`, as every key file has"),
        ("[]", "has no `type`"),
        ('{"type": "robot"}', "Google's library does not take"),
    ],
)
def test_invalid_key_file_is_named(
    ready: FakeGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    found = checks()["credentials"]
    assert found.state == "problem"
    assert found.found.startswith(f"GOOGLE_APPLICATION_CREDENTIALS names {path}, which {said}")
    assert found.fix == "name a key file there, or unset it and run `gcloud auth application-default login`"


def test_missing_network_is_one_problem(
    ready: FakeGoogle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER", "http://127.0.0.1:9/")
    assert preflight.main([]) == 1
    out = capsys.readouterr().out
    assert "problem: network: Google cannot be reached (127.0.0.1: connection refused); check the network\n" in out
    assert out.count("cannot be reached") == 1
    assert "login" not in out
    assert "unknown: " not in out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Failed to resolve 'x' ([Errno -2] Name or service not known)", "x.example: its name is not found"),
        ("Read timed out.", "x.example: no answer in time"),
        ("certificate verify failed", "x.example: its certificate is not trusted"),
        ("Unable to connect to proxy", "x.example: the proxy does not let it through"),
    ],
)
def test_reason_for_a_missing_network_is_short(
    ready: FakeGoogle, monkeypatch: pytest.MonkeyPatch, said: str, words: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        """google-auth raises this when it fetches a token."""
        raise TransportError(requests.ConnectionError(f"HTTPSConnectionPool(host='x.example', port=443): {said}"))

    monkeypatch.setattr("google.auth.transport.requests.AuthorizedSession.request", broken)
    found = checks()["network"]
    assert (found.state, found.found, found.fix) == (
        "problem",
        f"Google cannot be reached ({words})",
        "check the network",
    )


def test_portal_in_place_of_google_is_no_traceback(ready: FakeGoogle, monkeypatch: pytest.MonkeyPatch) -> None:
    def portal(*_: object, **__: object) -> requests.Response:
        answer = requests.Response()
        answer.status_code, answer._content = 200, b"<html>Welcome to the hotel</html>"
        return answer

    monkeypatch.setattr("google.auth.transport.requests.AuthorizedSession.request", portal)
    assert checks()["network"].found == "Google cannot be reached (something else answers in its place)"


def test_rejected_login_is_one_problem(
    ready: FakeGoogle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready.deny("cloudresourcemanager", P, 401, "invalid authentication credentials")
    assert preflight.main([]) == 1
    out = capsys.readouterr().out
    assert out.count("problem: ") == 1
    assert "problem: credentials: Google does not accept the login (invalid authentication credentials); run `gc" in out
    assert "ok: credentials" not in out

    def expired(*_: object, **__: object) -> None:
        raise RefreshError("Reauthentication is needed.", {"error": "invalid_grant"})

    monkeypatch.setattr("google.auth.transport.requests.AuthorizedSession.request", expired)
    assert checks()["credentials"].found == "Google does not accept the login (Reauthentication is needed.)"


# This machine.


@pytest.mark.usefixtures("nobody")
def test_data_and_vocabulary_are_checked_without_a_login(ready: FakeGoogle, tmp_path: Path) -> None:
    (tmp_path / "data" / "my.txt").unlink()
    (tmp_path / "data" / "gpt2-vocabulary" / "vocab.json").unlink()
    found = checks()
    assert found["gpt2-training:data.path"].found == "there is no file data/my.txt"
    assert found["gpt2-training:data.path"].state == "problem"
    assert found["gpt2-training:data.tokenizer"].fix.startswith("run `python -m scripts.prepare_data --stack dev`")
    (tmp_path / "data" / "my.txt.lock.json").write_text("{}")
    lock = checks()["lock file"]
    assert (lock.state, lock.found.endswith("my.txt.lock.json: url is missing")) == ("problem", True)
    assert lock.fix == "`python -m scripts.upload_data gs://BUCKET/OBJECT` writes it anew"


def test_docker_is_checked_where_the_stack_builds_its_image(
    ready: FakeGoogle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker(tmp_path, monkeypatch, "echo '[info]'; echo 'Cannot connect to the Docker daemon?' >&2; exit 1")
    found = checks()["docker"]
    assert (found.state, found.found) == ("problem", "`docker info` fails: Cannot connect to the Docker daemon")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checks()["docker"]
    assert found.state == "problem"
    assert found.found.startswith("is not on PATH")
    assert "run `python -m scripts.build_image --stack dev`" in found.fix
    project(tmp_path, image="us-docker.pkg.dev/p/r/trainer@sha256:" + "0" * 64)
    assert "docker" not in checks()


def test_missing_project_is_the_only_check(ready: FakeGoogle) -> None:
    ready.deny("cloudresourcemanager", P)
    assert list(states()) == ["project"]
    ready.on("cloudresourcemanager", "GET", P, {"lifecycleState": "DELETE_REQUESTED"})
    assert checks()["project"].found == "test-project is DELETE_REQUESTED"


def test_fresh_project_with_disabled_apis_is_unknown_and_never_ok(ready: FakeGoogle) -> None:
    off = "X API has not been used in project 123456 before or it is disabled"
    for service in ("cloudresourcemanager", "serviceusage", "compute"):
        ready.deny(service, message=off)
    found = states()
    assert preflight.main([]) == 1  # nothing is known of the project
    assert "gcloud services enable cloudresourcemanager.googleapis.com" in checks()["project"].fix
    assert found.pop("machines tried") == "note"
    assert set(found.values()) == {"unknown"}
    assert {"project", "APIs", "your permissions", "service agents", "image family"} <= set(found)
    assert {"machines in us-central1-a", "quota NVIDIA_T4_GPUS", "quota GPUS_ALL_REGIONS"} <= set(found)


def test_machines_that_were_never_tried_are_noted(ready: FakeGoogle, tmp_path: Path) -> None:
    found = checks()["machines tried"]
    assert found.state == "note"
    assert found.found.endswith("knows: n1-highmem-16 + 1 x nvidia-tesla-t4, n1-highmem-8")
    large = {"masterType": "a3-megagpu-8g", "workerType": "a3-megagpu-8g", "workerCount": 1}
    large |= {"hyperparameters": {"batchSize": 16}}
    project(tmp_path, trainingInput=large, machines=None)
    network = checks()["network of machines"]
    assert (network.state, network.fix) == (
        "note",
        "GPUDirect is not built here, so the exchange of gradients is the limit",
    )
    assert "200 of 1,800 Gbit/s at most" in network.found


def test_image_of_a3_high_and_the_price_of_waiting_are_noted(ready: FakeGoogle, tmp_path: Path) -> None:
    large = {"masterType": "a3-highgpu-8g", "workerType": "a3-highgpu-8g", "workerCount": 1}
    project(tmp_path, trainingInput=large | {"hyperparameters": {"batchSize": 16}}, machines={"flexStart": True})
    found = checks()
    image, waiting = found["image of machines"], found["waiting for machines"]
    assert (image.state, image.fix) == ("note", "start with one machine, or set machines.imageFamily: cos-121-lts")
    assert (waiting.state, waiting.fix) == ("note", "keep limits.maxHours low, or use one machine")


def test_grants_on_the_project_are_read_once(ready: FakeGoogle) -> None:
    read = []
    policy = {"bindings": []}
    ready.on("cloudresourcemanager", "POST", f"{P}:getIamPolicy", lambda call: read.append(call) or policy)
    found = checks()
    assert found["Google APIs service agent"].state == "problem"
    assert found["agents of Cloud Scheduler and Workflows"].state == "problem"
    assert len(read) == 1


def test_free_trial_is_named_where_a_stack_wants_gpus(ready: FakeGoogle, tmp_path: Path) -> None:
    assert "free trial gets no GPU until it is upgraded" in checks()["billing"].fix
    project(tmp_path, machines=None)
    assert "free trial" not in checks()["billing"].fix


def test_login_without_a_quota_project_gets_the_command_that_names_one(ready: FakeGoogle) -> None:
    ready.deny("cloudresourcemanager", message="The X API requires a quota project, which is not set by default.")
    found = checks()["project"]
    assert found.state == "unknown"
    assert "set-quota-project" in found.fix


def test_disabled_apis_are_named(ready: FakeGoogle) -> None:
    def some(call: Call) -> dict[str, Any]:
        states = ["DISABLED" if "scheduler" in name else "ENABLED" for name in call.query["names"]]
        return {"services": [{"name": n, "state": s} for n, s in zip(call.query["names"], states, strict=True)]}

    ready.on("serviceusage", "GET", f"{P}/services:batchGet", some)
    found = checks()["APIs"]
    assert (found.state, found.found) == (
        "note",
        "not enabled yet: cloudscheduler.googleapis.com; `pulumi up` enables them",
    )


def test_stack_with_a_pipeline_needs_the_apis_of_its_login_and_no_owner(ready: FakeGoogle, tmp_path: Path) -> None:
    project(tmp_path, pipeline={"repository": "acme/models", "repositoryId": 1})
    asked: dict[str, list[str]] = {}

    def off(call: Call) -> dict[str, Any]:
        return {"services": [{"name": name, "state": "DISABLED"} for name in call.query["names"]]}

    def granted(call: Call) -> dict[str, Any]:
        asked.update(call.body)
        return {"permissions": call.body["permissions"]}

    ready.on("serviceusage", "GET", f"{P}/services:batchGet", off)
    ready.on("cloudresourcemanager", "POST", f"{P}:testIamPermissions", granted)
    found = checks()["APIs"].found
    assert "iamcredentials.googleapis.com" in found
    assert "sts.googleapis.com; `python -m scripts.bootstrap --stack dev` enables them" in found
    assert not [permission for permission in asked["permissions"] if permission.startswith(("iam.", "resourcemanager"))]


def test_missing_permissions_are_named(ready: FakeGoogle) -> None:
    def half(call: Call) -> dict[str, Any]:
        return {"permissions": [p for p in call.body["permissions"] if "iam." not in p]}

    ready.on("cloudresourcemanager", "POST", f"{P}:testIamPermissions", half)
    found = checks()["your permissions"]
    assert found.state == "problem"
    assert found.found == "missing: iam.roles.create, iam.serviceAccounts.actAs, iam.serviceAccounts.create"


@pytest.mark.parametrize(
    ("bindings", "state", "words"),
    [
        ([], "problem", "no role"),
        ([{"role": "roles/editor", "members": ["user:a@b.c"]}], "problem", "no role"),
        ([{"role": "roles/viewer", "members": [AGENT]}], "unknown", "has roles/viewer, which may not"),
        ([{"role": "roles/owner", "members": [AGENT]}], "ok", "has roles/owner"),
        (
            [{"role": f"roles/{r}", "members": [AGENT]} for r in ("compute.admin", "iam.serviceAccountUser")],
            "ok",
            "has roles/compute.admin and",
        ),
        (
            [{"role": "roles/editor", "members": [AGENT], "condition": {"expression": "false"}}],
            "problem",
            "no role",
        ),
    ],
)
def test_service_agent_that_makes_machines_needs_its_role(
    ready: FakeGoogle, bindings: list[Any], state: str, words: str
) -> None:
    ready.on("cloudresourcemanager", "POST", f"{P}:getIamPolicy", {"bindings": bindings})
    found = checks()["Google APIs service agent"]
    assert found.state == state
    assert words in found.found


def test_region_without_the_scheduler_and_an_agent_without_its_role_are_problems(ready: FakeGoogle) -> None:
    ready.on("cloudscheduler", "GET", f"{P}/locations", {"locations": [{"locationId": "europe-west1"}]})
    bindings = [{"role": "roles/workflows.serviceAgent", "members": [service_agent("workflows")]}]
    ready.on("cloudresourcemanager", "POST", f"{P}:getIamPolicy", {"bindings": bindings})
    found = checks()
    assert (found["Cloud Scheduler"].state, found["Cloud Scheduler"].found) == ("problem", "is not in us-central1")
    assert found["Workflows"].state == "ok"
    agents = found["agents of Cloud Scheduler and Workflows"]
    assert agents.state == "problem"
    assert agents.fix == (
        "`gcloud projects add-iam-policy-binding test-project --member"
        f" {service_agent('cloudscheduler')} --role roles/cloudscheduler.serviceAgent`"
    )


def test_agents_are_not_asked_for_before_their_apis_are_enabled(ready: FakeGoogle) -> None:
    for service in ("cloudscheduler", "workflows"):
        ready.deny(service, message=f"{service} API has not been used in project 123456 before")
    found = checks()
    assert found["Workflows"].state == found["Cloud Scheduler"].state == "unknown"
    assert "agents of Cloud Scheduler and Workflows" not in found


def test_machine_types_are_checked_in_each_zone(ready: FakeGoogle) -> None:
    ready.on("compute", "GET", f"{P}/zones/us-central1-[ac]/acceleratorTypes/.*", {"error": {"message": "no"}}, 404)
    found = checks()
    assert found["machines in us-central1-a"].state == "problem"
    assert found["machines in us-central1-a"].found == "has no nvidia-tesla-t4"
    assert found["machines in us-central1-c"].state == "problem"  # the run may move there
    assert found["machines in us-central1-b"].state == "ok"


def test_image_family_is_checked_for_size_and_deprecation(ready: FakeGoogle) -> None:
    path = "projects/cos-cloud/global/images/family/.*"
    ready.on("compute", "GET", path, {"name": "i", "diskSizeGb": "250"})
    assert checks()["image family"].fix == "raise machines.bootDiskGb to 250 or more"
    ready.on("compute", "GET", path, {"name": "i", "diskSizeGb": "50", "deprecated": {"state": "DEPRECATED"}})
    assert checks()["image family"].state == "note"
    ready.on("compute", "GET", path, {"error": {"message": "not found"}}, 404)
    assert checks()["image family"].state == "problem"


@pytest.mark.parametrize(
    ("family", "where", "state", "found"),
    [
        ("cos-129-lts", "cos-cloud", "ok", "cos-129-lts is i; it has Docker, and gets NVIDIA's driver at each boot"),
        (
            "common-cu129-ubuntu-2204-nvidia-580",
            "deeplearning-platform-release",
            "ok",
            "common-cu129-ubuntu-2204-nvidia-580 is i; it has no Docker; the stack brings its own",
        ),
        (
            "ubuntu-accelerator-2404-amd64-with-nvidia-580",
            "ubuntu-os-accelerator-images",
            "unknown",
            "ubuntu-accelerator-2404-amd64-with-nvidia-580 is i, which is not known here",
        ),
        ("cos-dev", "cos-cloud", "unknown", "cos-dev is i, which is not known here"),
    ],
)
def test_image_family_is_asked_for_in_its_own_project(
    ready: FakeGoogle, tmp_path: Path, family: str, where: str, state: str, found: str
) -> None:
    project(tmp_path, machines={"imageFamily": family})
    ready.on("compute", "GET", f"projects/{where}/global/images/family/{family}", {"name": "i", "diskSizeGb": "10"})
    check = checks()["image family"]
    assert (check.state, check.found) == (state, found)


# Quotas.


def limits(google: FakeGoogle) -> QuotaLimits:
    return QuotaLimits(preflight.GoogleApi(), "test-project", "us-central1")


def judged(google: FakeGoogle, folder: Path, **further: Any) -> dict[str, Check]:
    stack = load.from_file("dev", project(folder, **further))
    return {check.name: check for check in check_quotas(stack, resolve_fleet(stack), limits(google))}


def cloud_quotas(google: FakeGoogle, found: dict[str, list[dict[str, Any]]]) -> None:
    def answer(call: Call) -> dict[str, Any]:
        return {"dimensionsInfos": found[call.path.rpartition("/")[2]]}

    names = "|".join(map(re.escape, found))
    path = rf"{P}/locations/global/services/compute\.googleapis\.com/quotaInfos/({names})"
    google.deny("cloudquotas", status=404, message="not found")
    google.on("cloudquotas", "GET", path, answer)


def test_quota_of_zero_gpus_in_all_regions_is_a_problem(ready: FakeGoogle, tmp_path: Path) -> None:
    ready.on("compute", "GET", P, quotas({**EVERYWHERE, "GPUS_ALL_REGIONS": 0}))
    found = judged(ready, tmp_path)["quota GPUS_ALL_REGIONS"]
    assert (found.state, found.found) == ("problem", "11 needed, limit 0 in all regions")


def test_quota_of_spot_machines_without_one_of_their_own_is_the_usual_one(ready: FakeGoogle, tmp_path: Path) -> None:
    without = {**ENOUGH, "PREEMPTIBLE_NVIDIA_T4_GPUS": 0, "NVIDIA_T4_GPUS": 8}
    ready.on("compute", "GET", f"{P}/regions/us-central1", quotas(without))
    found = judged(ready, tmp_path)["quota NVIDIA_T4_GPUS"]
    assert found.state == "problem"
    assert found.found == "11 needed (Spot too, without quota of its own), limit 8 in us-central1"


def test_quota_that_sources_disagree_about_is_unknown(ready: FakeGoogle, tmp_path: Path) -> None:
    ready.on("compute", "GET", P, quotas({**EVERYWHERE, "GPUS_ALL_REGIONS": 1}))
    assert judged(ready, tmp_path)["quota GPUS_ALL_REGIONS"].state == "unknown"


def test_quota_counts_what_is_in_use(ready: FakeGoogle, tmp_path: Path) -> None:
    ready.on("compute", "GET", f"{P}/regions/us-central1", quotas(ENOUGH, {"SSD_TOTAL_GB": 2500}))
    found = judged(ready, tmp_path)["quota SSD_TOTAL_GB"]
    assert found.state == "unknown"
    assert found.found.endswith("limit 5,000 in us-central1, 2,500 in use")


def test_quota_of_the_cloud_quotas_api_takes_precedence(ready: FakeGoogle, tmp_path: Path) -> None:
    here = {"applicableLocations": ["us-central1"], "dimensions": {"region": "us-central1"}, "details": {"value": "3"}}
    rest = {"applicableLocations": ["us-central1", "us-east1"], "details": {"value": "100"}}
    cloud_quotas(
        ready,
        {
            "PREEMPTIBLE-NVIDIA-T4-GPUS-per-project-region": [here, rest],
            "NVIDIA-T4-GPUS-per-project-region": [{"applicableLocations": ["us-central1"], "details": {}}],
            "GPUS-ALL-REGIONS-per-project": [{"applicableLocations": ["global"], "details": {"value": "-1"}}],
        },
    )
    found = judged(ready, tmp_path)
    assert found["quota PREEMPTIBLE_NVIDIA_T4_GPUS"].found == "10 needed, limit 3 in us-central1"
    assert found["quota NVIDIA_T4_GPUS"].found == "1 needed, limit 0 in us-central1"
    assert found["quota GPUS_ALL_REGIONS"].found == "11 needed, limit none in all regions"
    # Compute Engine gives the quotas that it does not know.
    assert found["quota CPUS"].found == "40 needed, limit 1,000 in us-central1"


def test_effective_quota_of_an_unnamed_region_is_unknown() -> None:
    assert effective([{"applicableLocations": ["us-east1"], "details": {"value": "5"}}], {"region": "us-west1"}) is None
    assert effective([], {"region": "us-west1"}) is None


def test_local_stack_is_refused_as_nothing_is_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "CHECKOUT", tmp_path)
    (tmp_path / "Pulumi.local.yaml").write_text(
        "config:\n  gpt2-training:trainingInput: {}\n  gpt2-training:model: {size: tiny}\n"
        "  gpt2-training:data: {path: x.txt}\n"
    )
    with pytest.raises(UserError, match="local runs on this machine"):
        preflight.main(["--stack", "local"])
