"""The reasons why machines do not come: the answers of Google's groups in words, and the calls that fetch them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.stack import config
from scripts.support.google_groups import ASK_EVERY, Groups, InstanceGroup, Stack, explain, stack_of
from tests.scripts.google import Call, FakeGoogle, project

NOW = 1_800_000_000.0
THEN = "2027-01-15T08:00:00.000-00:00"  # the same time as NOW
STACK = Stack(
    "dev",
    1,
    ("us-central1-b", "us-central1-c"),
    {"master": "n1-highmem-16", "worker": "n1-highmem-16 with nvidia-tesla-t4", "ps": "n1-highmem-8"},
    moves=True,
)
GROUPS = "projects/test-project/regions/us-central1/instanceGroupManagers"
# Google's own messages, from public reports of 2024 to 2026.
STOCKOUT: dict[str, Any] = {
    "code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "message": "The zone 'projects/p/zones/us-central1-b' does not have enough resources available to fulfill the"
    " request.  '(resource type:compute)'.",
    "errorDetails": [
        {"help": {"links": [{"description": "Troubleshooting", "url": "https://example.com"}]}},
        {
            "errorInfo": {
                "domain": "compute.googleapis.com",
                "reason": "resource_availability",
                "metadatas": {
                    "attachment": "nvidia-tesla-t4:1",
                    "vmType": "n1-highmem-16",
                    "zone": "us-central1-b",
                    "zonesAvailable": "us-central1-a,us-central1-f",
                },
            }
        },
    ],
}
QUOTA: dict[str, Any] = {
    "code": "QUOTA_EXCEEDED",
    "message": "Quota 'NVIDIA_T4_GPUS' exceeded.  Limit: 0.0 in region us-central1.",
}
GLOBAL_QUOTA = {"code": "QUOTA_EXCEEDED", "message": "Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally."}


def instance(name: str, state: str | None = "RUNNING", *errors: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "currentAction": "NONE" if state == "RUNNING" else "CREATING"}
    found["instance"] = f"https://www.googleapis.com/compute/v1/projects/p/zones/us-central1-b/instances/{name}"
    if state:
        found["instanceStatus"] = state
    if errors:
        found["lastAttempt"] = {"errors": {"errors": list(errors)}}
    return found


def noted(error: dict[str, Any], timestamp: str = THEN) -> dict[str, Any]:
    return {"error": {name: error[name] for name in ("code", "message")}, "timestamp": timestamp}


def worker(size: int, *instances: dict[str, Any], errors: list[dict[str, Any]] | None = None) -> InstanceGroup:
    return InstanceGroup("dev-worker-01234567", "worker", size, list(instances), errors or [])


def said(group: InstanceGroup, *heard: str, stack: Stack = STACK) -> list[str]:
    return explain(stack, [group], heard, NOW)


def test_stock_out_names_the_zone_and_the_machine_and_that_the_run_moves() -> None:
    group = worker(
        2,
        instance("dev-worker-01234567-aaaa", None, STOCKOUT),
        instance("dev-worker-01234567-bbbb", None, STOCKOUT),
        errors=[noted(STOCKOUT)],
    )
    (line,) = said(group)
    assert line == (
        "worker: zone us-central1-b has no n1-highmem-16 with nvidia-tesla-t4 now (Google names us-central1-a,"
        " us-central1-f instead); Google keeps trying, and the run moves to another zone if this lasts,"
        " unless the deadline is near"
    )


def test_stock_out_of_the_only_zone_asks_for_another() -> None:
    alone = Stack("dev", 4, ("us-central1-b",), STACK.machines)
    (line,) = said(worker(1, errors=[noted(STOCKOUT)]), stack=alone)
    assert "add another zone to gpt2-training:machines.zones and raise gpt2-training:launch to 5" in line


def test_stock_out_of_one_zone_is_google_s_to_heal_where_the_group_has_all() -> None:
    (line,) = said(worker(1, errors=[noted(STOCKOUT)]), stack=replace(STACK, spans=True, moves=False))
    assert line.endswith("nvidia-tesla-t4 now; Google keeps trying in us-central1-b, us-central1-c")


def test_groups_of_zones_where_the_run_is_not_are_no_missing_machines() -> None:
    here, elsewhere = worker(1, instance("dev-worker-01234567-aaaa", None)), worker(0)
    assert explain(STACK, [elsewhere, here, elsewhere], [], NOW) == [
        "worker: 0 of 1 machines run, Google is making the rest"
    ]
    (line,) = explain(STACK, [elsewhere, elsewhere], [], NOW)
    assert line.startswith("worker: its groups have size 0")


def test_machine_that_waits_in_a_queue_is_reported_as_such() -> None:
    (line,) = said(worker(1, instance("dev-worker-01234567-aaaa", None)), stack=replace(STACK, flex_start=True))
    assert line == (
        "worker: 0 of 1 machines run, the rest waits for capacity (machines.flexStart), which may take days;"
        " `pulumi destroy` ends it"
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (QUOTA, "quota NVIDIA_T4_GPUS is 0 in region us-central1: ask for more"),
        (GLOBAL_QUOTA, "quota GPUS_ALL_REGIONS is 0 globally: ask for more"),
        (
            {
                "code": "QUOTA_EXCEEDED",
                "message": "Quota exceeded",
                "errorDetails": [
                    {
                        "quotaInfo": {
                            "metricName": "compute.googleapis.com/cpus",
                            "limitName": "CPUS-per-project-region",
                            "limit": 24,
                            "dimensions": {"region": "us-central1"},
                        }
                    }
                ],
            },
            "quota CPUS-per-project-region is 24 in region us-central1: ask for more",
        ),
        (
            {"code": "PERMISSIONS_ERROR", "message": "Required 'compute.instances.create' permission for 'projects/p'"},
            "no permission: Required 'compute.instances.create' permission for 'projects/p'; `python -m",
        ),
        (
            {"code": "CONDITION_NOT_MET", "message": "Constraint constraints/compute.requireShieldedVm violated"},
            "an organisation's policy forbids it: Constraint constraints/compute.requireShieldedVm violated",
        ),
        ({"code": "SOMETHING_NEW", "message": "two\n lines"}, "Google says SOMETHING_NEW: two lines"),
        ({"code": "ONLY_A_CODE"}, "Google says ONLY_A_CODE"),
    ],
)
def test_cause_of_a_missing_machine_is_explained(error: dict[str, Any], words: str) -> None:
    (line,) = said(worker(3, instance("dev-worker-01234567-aaaa", None, error)))
    assert line.startswith(f"worker: {words}")


def test_error_noted_long_ago_is_not_reported() -> None:
    group = worker(1, instance("dev-worker-01234567-aaaa", "STAGING"), errors=[noted(QUOTA, "2027-01-15T07:00:00Z")])
    assert said(group) == ["worker: 0 of 1 machines run, Google is making the rest"]


def test_running_machines_without_a_heartbeat_are_reported_as_booting() -> None:
    group = worker(3, *(instance(f"dev-worker-01234567-{tail}") for tail in ("aaaa", "bbbb", "cccc")))
    assert said(group, "worker-aaaa", "worker-bbbb", "worker-cccc") == []
    (line,) = said(group, "worker-bbbb")
    assert line.startswith("worker: 2 of 3 machines booting")
    assert "python -m scripts.ssh worker --stack dev" in line
    master = InstanceGroup("dev-master-01234567", "master", 1, [instance("dev-master-01234567-zzzz")])
    assert said(master, "master-0") == []


def test_missing_group_and_group_of_size_zero_are_explained() -> None:
    assert "size 0" in said(worker(0))[0]
    assert "raise gpt2-training:launch to 2" in said(worker(0))[0]
    assert explain(STACK, [], [], NOW) == ["Google has no group of machines for this stack yet; `pulumi up` makes them"]


def loaded(folder: Path) -> config.StackConfig:
    return load.from_file("dev", project(folder))


def test_stack_gives_the_machines_of_each_role(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    stack = stack_of(config, resolve_fleet(config), 2)
    assert stack.machines == {
        "master": "n1-highmem-16 with nvidia-tesla-t4",
        "worker": "n1-highmem-16 with nvidia-tesla-t4",
        "ps": "n1-highmem-8",
    }
    assert (stack.zones[0], stack.moves, stack.spans) == ("us-central1-a", True, False)


def answers(google: FakeGoogle) -> None:
    names = ["dev-worker-01234567", "dev-master-01234567", "dev-worker-other", "device-master-01234567"]
    items = [{"name": name, "targetSize": 2 if "worker" in name else 1} for name in names]
    google.on("compute", "GET", GROUPS, {"items": items})

    def instances(call: Call) -> dict[str, Any]:
        if "master" in call.path:
            return {"managedInstances": [instance("dev-master-01234567-zzzz")]}
        if call.query.get("pageToken") == ["more"]:
            return {"managedInstances": [instance("dev-worker-01234567-bbbb", None, STOCKOUT)]}
        return {"managedInstances": [instance("dev-worker-01234567-aaaa")], "nextPageToken": "more"}

    google.on("compute", "POST", f"{GROUPS}/[^/]+/listManagedInstances", instances)
    google.on("compute", "GET", f"{GROUPS}/dev-worker-01234567/listErrors", {"items": [noted(STOCKOUT)]})


def test_groups_are_asked_again_only_after_an_interval(google: FakeGoogle, tmp_path: Path) -> None:
    answers(google)
    now = [NOW]
    groups = Groups(loaded(tmp_path), lambda: now[0])
    first = groups.lines(1, {"master-0", "worker-aaaa"})
    assert len(first) == 1
    assert first[0].startswith("worker: zone us-central1-b has no n1-highmem-16 with nvidia-tesla-t4 now")
    asked = len(google.calls)
    assert asked == 5  # the calls ask for the groups, two pages of workers, the master, and the errors of the workers
    now[0] += ASK_EVERY - 1
    assert groups.lines(1, set()) == first
    assert len(google.calls) == asked
    now[0] += 1
    groups.lines(1, set())
    assert len(google.calls) == 2 * asked
    assert "dev-(master|worker|ps)" in google.calls[0].query["filter"][0]


def test_missing_permission_is_reported_and_google_is_not_asked_again(google: FakeGoogle, tmp_path: Path) -> None:
    google.deny("compute", message="Required 'compute.instanceGroupManagers.list' permission")
    now = [NOW]
    groups = Groups(loaded(tmp_path), lambda: now[0])
    (line,) = groups.lines(1, set())
    assert line.startswith("cannot say why machines are missing: ")
    assert line.endswith("roles/compute.viewer is enough")
    now[0] += 1000
    assert groups.lines(1, set()) == [line]
    assert len(google.calls) == 1


@pytest.mark.usefixtures("nobody")
def test_missing_login_is_one_line(tmp_path: Path) -> None:
    (line,) = Groups(loaded(tmp_path), lambda: NOW).lines(1, set())
    assert "no Google credentials" in line
    assert "\n" not in line


def test_failing_google_is_asked_again_and_an_invalid_answer_is_one_line(google: FakeGoogle, tmp_path: Path) -> None:
    google.on("compute", "GET", GROUPS, {"error": {"message": "backend error"}}, 503)
    now = [NOW]
    groups = Groups(loaded(tmp_path), lambda: now[0])
    assert "503, backend error" in groups.lines(1, set())[0]
    google.on("compute", "GET", GROUPS, {"items": [{"targetSize": 3}]})
    now[0] += ASK_EVERY
    assert "KeyError in Google's answer" in groups.lines(1, set())[0]
    answers(google)
    now[0] += ASK_EVERY
    assert groups.lines(1, {"master-0", "worker-aaaa"})[0].startswith("worker: zone us-central1-b")
