"""The stand-in refuses templates and networks as Google does, and offers the machine types that the project knows."""

from typing import Any

import pytest

from infra.fleet.catalog import MACHINE_TYPES
from tests.google_cloud import catalog, rules
from tests.google_cloud.errors import CloudError

TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
NETWORK = "gcp:compute/network:Network"
FLEX: dict[str, Any] = {
    "provisioningModel": "FLEX_START",
    "automaticRestart": False,
    "instanceTerminationAction": "DELETE",
    "maxRunDuration": {"seconds": 3600},
    "onHostMaintenance": "TERMINATE",
}
GPU = {"onHostMaintenance": "TERMINATE"}
RESERVED = {"type": "SPECIFIC_RESERVATION"}


def template(machine: str, disk: str = "pd-balanced", nic: str | None = "GVNIC", **further: Any) -> dict[str, Any]:
    boot = {"boot": True, "sourceImage": "image", "diskType": disk}
    return {"machineType": machine, "disks": [boot], "networkInterfaces": [{"nicType": nic}], **further}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (template("c4-standard-4"), r"\[pd-balanced\] features are not compatible .* Hyperdisk alone"),
        (template("n4-standard-4"), r"\[pd-balanced\] features are not compatible"),
        (template("g4-standard-48", scheduling=GPU), r"\[pd-balanced\] features are not compatible"),
        (template("a4-highgpu-8g", scheduling=FLEX), r"\[pd-balanced\] features are not compatible"),
        (template("a3-ultragpu-8g", scheduling=FLEX), r"\[pd-balanced\] features are not compatible"),
        (template("n1-standard-4", "hyperdisk-balanced"), r"\[hyperdisk-balanced\] features are not compatible"),
        (template("c3-standard-4", "pd-standard"), r"\[pd-standard\] features are not compatible"),
        (template("c3-standard-4", nic=None), "nicType must be GVNIC"),
        (template("a3-highgpu-1g", scheduling=GPU), "not available with provisioning model STANDARD"),
        (template("a3-highgpu-1g", scheduling=GPU, reservationAffinity=RESERVED), "not available with provisioning"),
        (template("a4-highgpu-8g", "hyperdisk-balanced", scheduling=GPU), "not available with provisioning model"),
        (template("n1-standard-4", resourcePolicies="p"), "Compact placement is not supported for n1-standard-4"),
        (template("g2-standard-4", scheduling=FLEX, resourcePolicies="p"), "FLEX_START cannot have a placement policy"),
        (template("e2-standard-4", guestAccelerators=[{"type": "nvidia-tesla-t4", "count": 1}]), "cannot be attached"),
    ],
)
def test_template_that_google_would_refuse_is_refused(state: dict[str, Any], said: str) -> None:
    with pytest.raises(CloudError, match=said):
        rules.check(TEMPLATE, state)


@pytest.mark.parametrize(
    "state",
    [
        template("n1-standard-4", nic=None),
        template("c4-standard-4", "hyperdisk-balanced"),
        template("a4-highgpu-8g", "hyperdisk-balanced", scheduling=FLEX),
        template("a4-highgpu-8g", "hyperdisk-balanced", scheduling=GPU, reservationAffinity=RESERVED),
        template("a3-highgpu-8g", scheduling=GPU),
        template("a2-highgpu-1g", scheduling=GPU, resourcePolicies="p"),
    ],
)
def test_template_that_google_would_take_is_taken(state: dict[str, Any]) -> None:
    rules.check(TEMPLATE, state)


@pytest.mark.parametrize(("mtu", "taken"), [(None, True), (1300, True), (8896, True), (8897, False), (1299, False)])
def test_network_takes_frames_up_to_8896_bytes(mtu: int | None, taken: bool) -> None:
    if taken:
        rules.check(NETWORK, {"mtu": mtu})
        return
    with pytest.raises(CloudError, match="is not between 1300 and 8896"):
        rules.check(NETWORK, {"mtu": mtu})


def test_catalog_has_the_figures_of_the_machines_that_it_shares_with_ours() -> None:
    """Two copies of Google's pages, written apart: a wrong digit in one of them shows."""
    there = {name: catalog.machine(name, zone) for zone in catalog.zones() for name in catalog.machines(zone)}
    for name in there.keys() & MACHINE_TYPES.keys():
        own = MACHINE_TYPES[name]
        found = there[name]
        assert found is not None
        vcpus, memory, accelerator, count = found
        assert (own.vcpus, own.accelerator, own.accelerators) == (vcpus, accelerator, count), name
        assert own.memory_gb == pytest.approx(memory, rel=0.2), name  # N1 and N2 have less in their largest sizes
    assert {"e2", "n1", "n2", "n2d", "n4", "c3", "c3d", "c4", "c4d", "g2", "g4", "a2", "a3", "a4"} <= {
        name.partition("-")[0] for name in there.keys() & MACHINE_TYPES.keys()
    }
