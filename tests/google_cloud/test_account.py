"""The account of the stand-in cloud: what is billed by the second, what by its number, and what is billed on."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests

from tests.google_cloud.account import operation_class
from tests.google_cloud.bill import bill, nothing_runs_on, table
from tests.google_cloud.lab import FAMILY, PROJECT, ZONE, Json, Lab

HOUR = 3600
EMPTY: Json = {"now": 0.0, "entries": [], "counts": [], "stored": {}, "runs_on": []}


def entries(account: Json, kind: str) -> list[Json]:
    return [entry for entry in account["entries"] if entry["kind"] == kind]


def test_vm_is_billed_from_its_creation_to_its_end_and_not_while_it_waits(lab: Lab) -> None:
    lab.fault("capacity", zone=ZONE, available=False)
    t4 = [{"type": "nvidia-tesla-t4", "count": 1}]
    group = lab.group(guestAccelerators=t4, disks=[{"boot": True, "sourceImage": FAMILY, "diskSizeGb": 200}])
    lab.fault("clock", ahead=HOUR)
    waiting = lab.bill()
    assert waiting["entries"] == []
    (vm,) = lab.vms()
    assert waiting["runs_on"] == ["group g has the size 1", f"VM {vm['name']} is waited for (CREATING)"]

    lab.fault("capacity", zone=ZONE, available=True)
    lab.running(1)
    lab.fault("clock", ahead=2 * HOUR)
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=0").status_code == 200
    lab.gone()
    account = lab.bill()
    (billed,), (disk,) = entries(account, "VM"), entries(account, "disk")
    assert billed["what"] == {
        "type": "n1-standard-4", "zone": ZONE, "spot": True, "accelerators": {"nvidia-tesla-t4": 1},
    }  # fmt: skip
    assert disk["what"]["gb"] == 200
    assert 2 * HOUR <= billed["until"] - billed["since"] < 3 * HOUR  # and not the hour without capacity
    assert (disk["since"], disk["until"]) == pytest.approx((billed["since"], billed["until"]), abs=5)
    assert account["runs_on"] == []
    vm_line, disk_line = bill(account)
    assert vm_line.usd == pytest.approx(2 * (4 * 0.01115 + 15 * 0.001494 + 0.175), rel=0.05)
    assert disk_line.usd == pytest.approx(2 * 200 * 0.1 / 730, rel=0.05)


def test_operations_of_a_vm_are_counted_by_their_class(lab: Lab) -> None:
    bucket, member = "test-account", f"serviceAccount:vm@{PROJECT}.iam.gserviceaccount.com"
    lab.create("gcp:storage/bucket:Bucket", {"name": bucket, "location": "US-CENTRAL1"})
    grant = {"bucket": bucket, "role": "roles/storage.objectUser", "member": member}
    lab.create("gcp:storage/bucketIAMMember:BucketIAMMember", grant)
    group = lab.group()
    (vm,) = lab.running(1)
    url = vm["environment"]["STORAGE_EMULATOR_HOST"]
    objects = f"{url}/storage/v1/b/{bucket}/o"
    assert requests.post(f"{url}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=x", data=b"1", timeout=10).ok
    assert requests.get(objects, timeout=10).ok
    assert requests.get(f"{objects}/x?alt=media", timeout=10).ok
    assert requests.get(f"{objects}/absent", timeout=10).status_code == 404  # nothing is billed for it
    assert requests.delete(f"{objects}/x", timeout=10).ok
    assert lab.bill()["counts"] == [
        {"what": "class A", "who": vm["name"], "number": 2},
        {"what": "class B", "who": vm["name"], "number": 1},
    ]
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=0").status_code == 200
    lab.gone()


@pytest.mark.parametrize(
    ("verb", "path", "kind"),
    [
        ("POST", "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=x", "A"),
        ("PUT", "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=x&upload_id=1", ""),
        ("POST", "/storage/v1/b/bucket/o/x/compose", "A"),
        ("PATCH", "/storage/v1/b/bucket/o/x", "A"),
        ("GET", "/storage/v1/b/bucket/o?prefix=runs", "A"),
        ("GET", "/download/storage/v1/b/bucket/o/a%2Fb?alt=media", "B"),
        ("DELETE", "/storage/v1/b/bucket/o/x?generation=1", ""),
    ],
)
def test_operation_has_the_class_of_google_price_list(verb: str, path: str, kind: str) -> None:
    assert operation_class(verb, path) == kind


def ended(account: Json, *marks: pytest.Mark) -> None:
    by_name = {mark.name: mark for mark in marks}
    node = SimpleNamespace(name="a test", get_closest_marker=by_name.get)
    nothing_runs_on(lambda: account, cast(Any, node))


def test_test_that_leaves_a_machine_fails_unless_it_says_why() -> None:
    running = {**EMPTY, "runs_on": ["VM dev-master-abcd is on (NONE)"]}
    with pytest.raises(AssertionError, match=r"something bills on.*dev-master-abcd"):
        ended(running)
    ended(running, pytest.mark.runs_on("it is the subject").mark)
    with pytest.raises(AssertionError, match="the reason"):
        ended(running, pytest.mark.runs_on.mark)
    ended(EMPTY)


def test_bill_shows_each_resource_with_its_seconds() -> None:
    disk = {
        "kind": "disk",
        "name": "d",
        "since": 0.0,
        "until": 7300.0,
        "what": {"type": "pd-ssd", "gb": 10.0, "zone": ZONE},
    }
    counted = {"what": "class A", "who": "dev-master-abcd", "number": 2000}
    shown = table({**EMPTY, "entries": [disk], "counts": [counted]})
    assert "7300.0 s  disk d: pd-ssd, 10 GB" in shown
    assert "2000 class A of dev-master-abcd" in shown
