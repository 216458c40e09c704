"""Compute Engine's REST methods: groups, and the offer of a zone."""

import re
from collections.abc import Callable
from typing import Any

from tests.google_cloud import catalog, compute
from tests.google_cloud.clock import clock_of, stamp
from tests.google_cloud.cloud import CloudError, Json
from tests.google_cloud.fleet import Group, Instance, fleet_of, instance_url
from tests.google_cloud.metadata import project_number
from tests.google_cloud.rest import Call, Played

BASE = "https://www.googleapis.com/compute/v1/"
GROUPS = "compute.regionInstanceGroupManagers"


def _group(call: Call) -> Group:
    place = "projects/{project}/regions/{region}/instanceGroupManagers/{instanceGroupManager}"
    return fleet_of(call.cloud).group(place.format(**call.parts))


def _operation(call: Call, kind: str, target: str) -> Json:
    now = stamp(clock_of(call.cloud).now())
    return {
        "kind": "compute#operation",
        "id": str(abs(hash((kind, target, now)))),
        "name": f"operation-{kind}",
        "operationType": kind,
        "targetLink": BASE + target,
        "status": "DONE",
        "progress": 100,
        "insertTime": now,
        "user": call.account,
    }


def _described(group: Group) -> Json:
    instances = list(group.instances.values())
    actions = {"creating": "CREATING", "recreating": "RECREATING", "deleting": "DELETING", "none": "NONE"}
    return {
        "kind": "compute#instanceGroupManager",
        "name": group.name,
        "region": f"{BASE}projects/{group.project}/regions/{group.region}",
        "selfLink": f"{BASE}{group.id}",
        "baseInstanceName": group.base,
        "instanceTemplate": group.template.get("selfLink", ""),
        "distributionPolicy": {
            "zones": [{"zone": f"{BASE}projects/{group.project}/zones/{zone}"} for zone in group.zones],
            "targetShape": group.shape,
        },
        "targetSize": group.target,
        "currentActions": {key: sum(i.action == action for i in instances) for key, action in actions.items()},
        "status": {"isStable": all(i.action == "NONE" for i in instances)},
    }


def _get(call: Call) -> Json:
    return _described(_group(call))


def _list(call: Call) -> Json:
    parts = call.parts
    here = [
        g for g in fleet_of(call.cloud).groups.values() if (g.project, g.region) == (parts["project"], parts["region"])
    ]
    return call.page("items", _filtered(call, [_described(group) for group in here]))


def _resize(call: Call) -> Json:
    group = _group(call)
    compute.resize(call.cloud, group.id, int(call.query["size"]))
    return _operation(call, "resize", group.id)


def _list_errors(call: Call) -> Json:
    return call.page("items", list(_group(call).errors))


def _managed(group: Group, instance: Instance) -> Json:
    last = [
        error
        for error in group.errors
        if error["instanceActionDetails"]["instance"] == instance_url(group, instance) and instance.machine is None
    ]
    attempt = {"lastAttempt": {"errors": {"errors": [error["error"] for error in last]}}} if last else {}
    status = {"instanceStatus": "STOPPING" if instance.leaving else "RUNNING"} if instance.machine else {}
    return {
        "instance": instance_url(group, instance),
        "name": instance.name,
        "currentAction": instance.action,
        **({"id": instance.machine.id} if instance.machine else {}),
        **status,
        **attempt,
    }


def _list_managed(call: Call) -> Json:
    group = _group(call)
    return call.page("managedInstances", [_managed(group, instance) for instance in list(group.instances.values())])


def _recreate(call: Call) -> Json:
    group = _group(call)
    fleet_of(call.cloud).recreate(group.id, [compute.last(one) for one in call.body.get("instances", [])])
    return _operation(call, "recreateInstances", group.id)


# -- the offer of a zone ----------------------------------------------------------------------------------------------


def _machine_type(project: str, zone: str, name: str) -> Json:
    known = catalog.machine(name, zone)
    if known is None:
        raise CloudError(
            404, "notFound", f"The resource 'projects/{project}/zones/{zone}/machineTypes/{name}' was not found"
        )
    cpus, memory, accelerator, count = known
    built_in = [{"guestAcceleratorType": accelerator, "guestAcceleratorCount": count}] if accelerator else []
    return {
        "kind": "compute#machineType",
        "name": name,
        "zone": zone,
        "guestCpus": cpus,
        "memoryMb": int(memory * 1024),
        "selfLink": f"{BASE}projects/{project}/zones/{zone}/machineTypes/{name}",
        **({"accelerators": built_in} if built_in else {}),
    }


def _accelerator_type(project: str, zone: str, name: str) -> Json:
    path = f"projects/{project}/zones/{zone}/acceleratorTypes/{name}"
    if zone not in catalog.ACCELERATORS.get(name, ()):
        raise CloudError(404, "notFound", f"The resource '{path}' was not found")
    most = 1 if name.endswith("80gb") else 4
    return {
        "kind": "compute#acceleratorType",
        "name": name,
        "zone": f"{BASE}projects/{project}/zones/{zone}",
        "maximumCardsPerInstance": most,
        "selfLink": BASE + path,
    }


def _offers(describe: Callable[[str, str, str], Json], names: Callable[[str], list[str]], key: str) -> dict[str, Any]:
    """Return get, list and aggregatedList of a kind of resource that zones offer."""

    def get(call: Call) -> Json:
        return describe(call.parts["project"], call.parts["zone"], call.parts[key.removesuffix("s")])

    def here(call: Call, zone: str) -> list[Json]:
        return _filtered(call, [describe(call.parts["project"], zone, name) for name in names(zone)])

    def listed(call: Call) -> Json:
        return call.page("items", here(call, _zone(call)["name"]))

    def aggregated(call: Call) -> Json:
        found = {zone: here(call, zone) for zone in catalog.zones()}
        nothing = {"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "There are no results for this scope."}}
        return {"items": {f"zones/{zone}": {key: items} if items else nothing for zone, items in found.items()}}

    return {"get": get, "list": listed, "aggregatedList": aggregated}


def _zone(call: Call) -> Json:
    zone, project = call.parts["zone"], call.parts["project"]
    if zone not in catalog.zones():
        raise CloudError(404, "notFound", f"The resource 'projects/{project}/zones/{zone}' was not found")
    return {
        "kind": "compute#zone",
        "name": zone,
        "status": "UP",
        "region": f"{BASE}projects/{project}/regions/{catalog.region_of(zone)}",
        "selfLink": f"{BASE}projects/{project}/zones/{zone}",
    }


def _zones(call: Call) -> Json:
    zones = [Call(call.cloud, call.account, {**call.parts, "zone": zone}, {}, {}) for zone in catalog.zones()]
    return call.page("items", _filtered(call, [_zone(one) for one in zones]))


def _capacity(call: Call) -> Json:
    """Advise on the machines of one selection: they are likely where no test has used up the zone's capacity."""
    policy: Json = call.body["distributionPolicy"]
    (selection,) = call.body["instanceFlexibilityPolicy"]["instanceSelections"].values()
    (name,), gpus = selection["machineTypes"], selection.get("guestAccelerators", [])
    model = call.body["instanceProperties"]["scheduling"]["provisioningModel"]
    if gpus:
        raise CloudError(400, "invalid", "Machine specification is not supported: N1 with GPUs.")
    zones = []
    for zone in policy["zones"]:
        if "zones/" not in zone["zone"]:
            raise CloudError(400, "invalid", f"Invalid value '{zone['zone']}'. The URL is malformed.")
        zones.append(compute.last(zone["zone"]))
    if lacking := [zone for zone in zones if catalog.machine(name, zone) is None]:
        raise CloudError(
            400, "invalid", f"Machine specification is not supported in locations: [{', '.join(lacking)}]."
        )
    free = [zone for zone in zones if zone not in fleet_of(call.cloud).exhausted]
    shard = {"zone": (free or zones)[0], "machineType": name, "instanceCount": call.body["size"]}
    scores = {"obtainability": 0.9 if free else 0.1, "estimatedUptime": "3600s" if free else "60s"}
    return {"recommendations": [{"scores": scores, "shards": [{**shard, "provisioningModel": model}]}]}


def quotas(call: Call, metrics: tuple[str, ...], region: str) -> list[Json]:
    fleet = fleet_of(call.cloud)
    used = fleet.used(region)
    return [
        {"metric": metric, "limit": fleet.limits.get(metric, catalog.PLENTY), "usage": float(used[metric])}
        for metric in metrics
    ]


def _region(call: Call) -> Json:
    region, project = call.parts["region"], call.parts["project"]
    if region not in catalog.ZONES:
        raise CloudError(404, "notFound", f"The resource 'projects/{project}/regions/{region}' was not found")
    return {
        "kind": "compute#region",
        "name": region,
        "status": "UP",
        "quotas": quotas(call, catalog.REGION_QUOTAS, region),
        "zones": [f"{BASE}projects/{project}/zones/{region}-{letter}" for letter in catalog.ZONES[region]],
        "selfLink": f"{BASE}projects/{project}/regions/{region}",
    }


def _regions(call: Call) -> Json:
    regions = [Call(call.cloud, call.account, {**call.parts, "region": name}, {}, {}) for name in catalog.ZONES]
    return call.page("items", _filtered(call, [_region(one) for one in regions]))


def _project(call: Call) -> Json:
    project = call.parts["project"]
    return {
        "kind": "compute#project",
        "id": project_number(project),
        "name": project,
        "quotas": quotas(call, catalog.PROJECT_QUOTAS, ""),
        "selfLink": f"{BASE}projects/{project}",
    }


def _family(call: Call) -> Json:
    project, family = call.parts["project"], call.parts["family"]
    if family not in catalog.FAMILIES.get(project, ()):
        path = f"projects/{project}/global/images/family/{family}"
        raise CloudError(404, "notFound", f"The resource '{path}' was not found")
    name = f"{family}-v20261101"
    link = f"{BASE}projects/{project}/global/images/{name}"
    return {
        "kind": "compute#image",
        "name": name,
        "family": family,
        "status": "READY",
        "diskSizeGb": "50",
        "selfLink": link,
    }


def _filtered(call: Call, items: list[Json]) -> list[Json]:
    """Return the items that a filter keeps: name = x, or name eq and a regular expression; several joined by OR."""
    if not (text := call.query.get("filter")):
        return items
    term = re.compile(r"""\(?name\s*(?P<how>=|\beq\b)\s*(?P<quote>["']?)(?P<value>\S+?)(?P=quote)\)?""")
    terms = [term.fullmatch(part.strip()) for part in re.split(r"\s+OR\s+", text)]
    patterns = [found["value"] if found["how"] == "eq" else re.escape(found["value"]) for found in terms if found]
    if len(patterns) < len(terms):
        raise CloudError(501, "notImplemented", f"the stand-in cloud does not play the filter {text}")
    return [item for item in items if any(re.fullmatch(pattern, item["name"]) for pattern in patterns)]


def _methods() -> dict[str, Played]:
    project = "projects/{project}"
    table: dict[str, tuple[str, Any]] = {
        f"{GROUPS}.get": ("instanceGroupManagers.get", _get),
        f"{GROUPS}.list": ("instanceGroupManagers.list", _list),
        f"{GROUPS}.resize": ("instanceGroupManagers.update", _resize),
        f"{GROUPS}.listErrors": ("instanceGroupManagers.get", _list_errors),
        f"{GROUPS}.listManagedInstances": ("instanceGroupManagers.get", _list_managed),
        f"{GROUPS}.recreateInstances": ("instanceGroupManagers.update", _recreate),
        "compute.zones.get": ("zones.get", _zone),
        "compute.zones.list": ("zones.list", _zones),
        "compute.regions.get": ("regions.get", _region),
        "compute.regions.list": ("regions.list", _regions),
        "compute.projects.get": ("projects.get", _project),
        "compute.advice.capacity": ("advice.capacity", _capacity),
    }
    kinds = {
        "machineTypes": (_machine_type, catalog.machines),
        "acceleratorTypes": (_accelerator_type, lambda zone: [k for k, v in catalog.ACCELERATORS.items() if zone in v]),
    }
    for key, (describe, names) in kinds.items():
        for verb, play in _offers(describe, names, key).items():
            table[f"compute.{key}.{verb}"] = (f"{key}.{'get' if verb == 'get' else 'list'}", play)
    methods = {name: Played(f"compute.{permission}", project, play) for name, (permission, play) in table.items()}
    # Deep Learning VM images are public by grants of their own project, which the stand-in cloud does not have.
    return {**methods, "compute.images.getFromFamily": Played("", project, _family)}


METHODS = _methods()
