"""What Google refuses of the machine types of a template: disks, network cards, placement, ways to get them.

Sources: Google's pages "Accelerator-optimized machine family", "About Hyperdisk Balanced", "gVNIC" and "About placement
policies" in public copies of 2026; dstack's list of offers that are not available on demand (gpuhunt, gcp.py).
"""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
HYPERDISK_ONLY = ("c4-", "c4d-", "n4-", "g4-", "a3-ultragpu-", "a4-")
NO_STANDARD_DISK = (*HYPERDISK_ONLY, "c3-", "c3d-", "a2-", "a3-", "g2-")
GVNIC_ONLY = ("c3-", "c3d-", "c4-", "c4d-", "n4-", "g4-", "a3-", "a4-")
NO_PLACEMENT = ("n1-", "e2-", "n4-")
PARTS = ("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g")
NOT_ON_DEMAND = (*PARTS, "a3-ultragpu-", "a4-")


def machine_problems(state: Json) -> Iterator[str]:
    """Yield why Google refuses a template."""
    machine, scheduling = str(state.get("machineType")), state.get("scheduling") or {}
    for disk in state.get("disks") or []:
        kind = disk.get("diskType") or "pd-standard"
        if machine.startswith(HYPERDISK_ONLY) and not kind.startswith("hyperdisk-"):
            yield f"[{kind}] features are not compatible for creating instance: {machine} takes Hyperdisk alone."
        if machine.startswith(NO_STANDARD_DISK) and kind == "pd-standard":
            yield f"[{kind}] features are not compatible for creating instance of {machine}."
        if kind.startswith("hyperdisk-") and machine.startswith(("n1-", "e2-", "g2-", "a2-")):
            yield f"[{kind}] features are not compatible for creating instance of {machine}."
        if kind.startswith("pd-") and (disk.get("provisionedIops") or disk.get("provisionedThroughput")):
            yield f"Provisioned performance cannot be given for {kind}."
    for interface in state.get("networkInterfaces") or []:
        if machine.startswith(GVNIC_ONLY) and interface.get("nicType") != "GVNIC":
            yield f"nicType must be GVNIC for {machine}."
    if state.get("resourcePolicies"):
        if machine.startswith(NO_PLACEMENT):
            yield f"Compact placement is not supported for {machine}."
        if scheduling.get("provisioningModel") == "FLEX_START":
            yield "FLEX_START cannot have a placement policy."
    reserved = (state.get("reservationAffinity") or {}).get("type") == "SPECIFIC_RESERVATION"
    model = scheduling.get("provisioningModel") or "STANDARD"
    if model == "STANDARD" and machine.startswith(NOT_ON_DEMAND) and (machine in PARTS or not reserved):
        yield f"{machine} is not available with provisioning model STANDARD."
