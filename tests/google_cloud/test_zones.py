"""Groups in several zones on the stand-in cloud: which zone a VM gets, and what Google refuses."""

from typing import Any

import pytest

from tests.google_cloud.lab import FAMILY, REGIONAL, Lab, wait_until

pytestmark = pytest.mark.runs_on("the groups are the subject, and the lab ends their VMs")
A, B, C = (f"us-central1-{letter}" for letter in "abc")
UPDATE = {
    "type": "OPPORTUNISTIC", "minimalAction": "REPLACE", "replacementMethod": "RECREATE",
    "instanceRedistributionType": "NONE", "maxSurgeFixed": 0, "maxUnavailableFixed": 3,
}  # fmt: skip


def spread(shape: str = "ANY", **lifecycle: Any) -> dict[str, Any]:
    """Return the policies of a group in three zones."""
    return {
        "distributionPolicyZones": [A, B, C],
        "distributionPolicyTargetShape": shape,
        "updatePolicy": UPDATE,
        "instanceLifecyclePolicy": {"forceUpdateOnRepair": "YES", **lifecycle},
    }


MOVES: dict[str, Any] = {"onRepair": {"allowChangingZone": "YES"}}


def test_group_of_any_shape_gets_its_machine_in_a_zone_with_capacity(lab: Lab) -> None:
    for zone in (A, B, C):
        lab.fault("capacity", zone=zone)
    group = lab.group(policy=spread(**MOVES))
    (waiting,) = lab.vms()
    assert waiting["status"] == "TERMINATED"
    (error,) = lab.rest("GET", f"compute/v1/{group}/listErrors").json()["items"]
    assert error["error"]["code"] == "ZONE_RESOURCE_POOL_EXHAUSTED"
    lab.fault("capacity", zone=C, available=True)
    (vm,) = lab.running(1)
    assert vm["zone"] == C
    described = lab.rest("GET", f"compute/v1/{group}").json()
    assert described["distributionPolicy"]["targetShape"] == "ANY"
    assert len(described["distributionPolicy"]["zones"]) == 3


@pytest.mark.parametrize(("lifecycle", "zone"), [(MOVES, B), ({}, None)])
def test_preempted_machine_changes_its_zone_only_if_it_may(
    lab: Lab, lifecycle: dict[str, Any], zone: str | None
) -> None:
    lab.group(policy=spread(**lifecycle))
    (vm,) = lab.running(1)
    assert vm["zone"] == A
    lab.fault("capacity", zone=A)
    lab.fault("preempt", instance=vm["name"])
    if zone is None:
        wait_until(lambda: lab.vms()[0]["action"] == "RECREATING", lambda: "the VM made anew")
        assert (lab.vms()[0]["status"], lab.vms()[0]["zone"]) == ("TERMINATED", A)
    else:
        (again,) = lab.running(1, but=vm["id"])
        assert (again["name"], again["zone"]) == (vm["name"], zone)


def test_group_of_a_single_zone_chooses_it_once(lab: Lab) -> None:
    lab.fault("capacity", zone=A)
    group = lab.group(size=2, policy=spread("ANY_SINGLE_ZONE"))
    assert {vm["zone"] for vm in lab.running(2)} == {B}
    lab.fault("capacity", zone=A, available=True)
    lab.fault("capacity", zone=B)
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=3").status_code == 200
    assert [vm["zone"] for vm in lab.vms()] == [B] * 3


def test_group_that_google_does_not_take_is_refused(lab: Lab) -> None:
    refused = (
        spread("ANY_SINGLE_ZONE", **MOVES),
        spread(**MOVES, forceUpdateOnRepair="NO"),
        {**spread(), "updatePolicy": {**UPDATE, "maxUnavailableFixed": 1}},
        {**spread(), "updatePolicy": {**UPDATE, "maxSurgeFixed": 3}},
        {**spread(), "updatePolicy": {**UPDATE, "instanceRedistributionType": "PROACTIVE"}},
    )
    for number, policy in enumerate(refused):
        lab.group(name=f"g{number}", policy=policy, status=400)


def test_flex_start_machine_waits_without_an_error_until_its_group_is_resized_to_zero(lab: Lab) -> None:
    lab.fault("capacity", zone=A)
    lab.fault("capacity", zone=B)
    lab.fault("capacity", zone=C)
    scheduling = {
        "provisioningModel": "FLEX_START", "preemptible": False, "maxRunDuration": {"seconds": 3600},
    }  # fmt: skip
    policy = spread(defaultActionOnFailure="DO_NOTHING")
    disks = [{"boot": True, "sourceImage": FAMILY, "diskType": "pd-balanced"}]
    group = lab.group(policy=policy, machineType="a2-highgpu-1g", scheduling=scheduling, disks=disks)
    assert [vm["status"] for vm in lab.vms()] == ["TERMINATED"]
    assert lab.rest("GET", f"compute/v1/{group}/listErrors").json().get("items", []) == []
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=0").status_code == 200
    assert lab.vms() == []
    lab.fault("capacity", zone=B, available=True)
    assert lab.vms() == []
    assert lab.rest("POST", f"compute/v1/{group}/resize?size=1").status_code == 200
    (vm,) = lab.running(1)
    assert vm["zone"] == B
    lab.fault("clock", ahead=3601)
    wait_until(lambda: lab.vms()[0]["status"] == "TERMINATED", lambda: "the end of its time")


def test_advice_on_capacity_is_by_zone_and_knows_no_n1_with_gpus(lab: Lab) -> None:
    def ask(zone: str, machine: str = "g2-standard-8", **more: Any) -> Any:
        body = {
            "distributionPolicy": {"targetShape": "ANY_SINGLE_ZONE", "zones": [{"zone": zone}]},
            "instanceFlexibilityPolicy": {"instanceSelections": {"machines": {"machineTypes": [machine], **more}}},
            "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
            "size": 10,
        }
        return lab.rest("POST", f"compute/v1/{REGIONAL}/advice/capacity", body=body)

    lab.fault("capacity", zone=A)
    scores = [ask(f"zones/{zone}").json()["recommendations"][0]["scores"]["obtainability"] for zone in (A, B)]
    assert scores == [0.1, 0.9]
    assert "is malformed" in ask(A).text
    assert "not supported in locations: [us-central1-f]" in ask("zones/us-central1-f").text
    gpus = [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}]
    assert ask(f"zones/{A}", "n1-highmem-16", guestAccelerators=gpus).status_code == 400
