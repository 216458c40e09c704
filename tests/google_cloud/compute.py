"""Compute Engine's resources: templates and groups; and the faults of VMs that tests request."""

import re
from typing import Any

from tests.google_cloud import catalog
from tests.google_cloud.clock import clock_of, epoch_of, stamp
from tests.google_cloud.cloud import Behaviour, Cloud, CloudError, Json
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.fleet import GROUP, TEMPLATE, Group, accelerators, fleet_of
from tests.google_cloud.metadata import ACCOUNT
from tests.google_cloud.storage_proxy import StorageFault, storage_faults

IMAGE = re.compile(r"(?:.*projects/)?(?P<project>[^/]+)/(?:global/images/family/)?(?P<family>[^/]+)")
LONGEST = 120 * 86400  # seconds that a VM may run


def last(path: str) -> str:
    """Return the name at the end of an id or a link (a template's unique link has its number behind a "?")."""
    return path.rpartition("/")[2].partition("?")[0]


def template_of(cloud: Cloud, group: Json) -> Json:
    """Return the newest version's template. Raise CloudError 404."""
    name = last(group["versions"][0]["instanceTemplate"])
    for resource in cloud.find(TEMPLATE, name=name, project=group["project"], region=group["region"]):
        return resource.state
    raise CloudError(404, "notFound", f"The resource 'instanceTemplates/{name}' was not found")


class Template(Behaviour):
    api = "compute.googleapis.com"

    def check_create(self, props: Json) -> None:
        for disk in props["disks"]:
            if disk.get("boot", True) and (source := disk.get("sourceImage")):
                match = IMAGE.fullmatch(source)
                if match is None or match["family"] not in catalog.FAMILIES.get(match["project"], ()):
                    raise CloudError(404, "notFound", f"The resource '{source}' was not found")
        zones = [zone for zone in catalog.zones() if catalog.region_of(zone) == props["region"]]
        if not any(catalog.machine(last(props["machineType"]), zone) for zone in zones):
            raise CloudError(400, "invalid", f"Machine type '{props['machineType']}' is not in {props['region']}.")
        for kind in accelerators(props):
            if not catalog.ACCELERATORS.get(kind, set()) & set(zones):
                raise CloudError(400, "invalid", f"Accelerator type '{kind}' is not in {props['region']}.")
        if until := (props.get("scheduling") or {}).get("terminationTime"):
            try:
                ahead = epoch_of(until) - clock_of(self.cloud).now()
            except ValueError:
                raise CloudError(400, "invalid", f"terminationTime: {until!r} is no RFC 3339 date.") from None
            if ahead > LONGEST:
                raise CloudError(400, "invalid", "terminationTime is more than 120 days ahead.")


class Groups(Behaviour):
    api = "compute.googleapis.com"

    def check_create(self, props: Json) -> None:
        template = template_of(self.cloud, props)
        for zone in _zones(props):
            if zone not in catalog.zones():
                raise CloudError(400, "invalid", f"Invalid value for field 'distributionPolicy.zones': '{zone}'.")
        if not _suitable(props, template):
            kinds = [last(template["machineType"]), *accelerators(template)]
            raise CloudError(400, "invalid", f"{kinds} do not exist in all of {_zones(props)}.")
        account = (template.get("serviceAccount") or {}).get("email")
        if account and not self.cloud.find(ACCOUNT, email=account):
            raise CloudError(404, "notFound", f"The resource '{account}' of type 'serviceAccount' was not found.")

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        group = Group(
            id=id,
            project=props["project"],
            region=props["region"],
            name=props["name"],
            base=props["baseInstanceName"],
            zones=_suitable(props, template := template_of(self.cloud, props)),
            shape=props.get("distributionPolicyTargetShape") or "EVEN",
            target=int(props.get("targetSize") or 0),
            repair=_repairs(props),
            change_zone=_changes_zone(props),
            template=template,
        )
        fleet_of(self.cloud).add(group)
        return {"fingerprint": "42WmSpB8rSM=", "creationTimestamp": stamp(clock_of(self.cloud).now())}

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        fleet = fleet_of(self.cloud)
        fleet.use_template(id, template_of(self.cloud, news), _repairs(news), _changes_zone(news))
        if news.get("targetSize") != olds.get("targetSize"):
            fleet.resize(id, int(news.get("targetSize") or 0))
        return {}

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        fleet_of(self.cloud).remove(id)


def resize(cloud: Cloud, id: str, size: int) -> None:  # noqa: A002
    """Resize a group without Pulumi, as REST does. Raise CloudError 404."""
    fleet_of(cloud).resize(id, size)
    cloud.change(GROUP, id, targetSize=size)


def _zones(props: Json) -> list[str]:
    """Return the zones of a group's distribution policy. Their order means nothing, as they are a set."""
    first_three = [f"{props['region']}-{letter}" for letter in catalog.ZONES[props["region"]][:3]]
    return sorted(last(zone) for zone in props.get("distributionPolicyZones") or first_three)


def _suitable(props: Json, template: Json) -> list[str]:
    """Return the group's zones that have such machines; none if the shape needs all of them and one has not."""
    kinds, zones = accelerators(template), _zones(props)
    suitable = [
        zone
        for zone in zones
        if catalog.machine(last(template["machineType"]), zone)
        and all(zone in catalog.ACCELERATORS.get(kind, set()) for kind in kinds)
    ]
    chooses = (props.get("distributionPolicyTargetShape") or "EVEN") in ("ANY", "ANY_SINGLE_ZONE")
    return suitable if chooses or suitable == zones else []


def _repairs(props: Json) -> bool:
    policy: Json = props.get("instanceLifecyclePolicy") or {}
    return bool(policy.get("defaultActionOnFailure", "REPAIR") == "REPAIR")


def _changes_zone(props: Json) -> bool:
    on_repair: Json = (props.get("instanceLifecyclePolicy") or {}).get("onRepair") or {}
    return bool(on_repair.get("allowChangingZone") == "YES")


def register(cloud: Cloud) -> list[Route]:
    for token, behaviour in ((TEMPLATE, Template), (GROUP, Groups)):
        cloud.behaviours[token] = behaviour(cloud, token)
    fleet, clock = fleet_of(cloud), clock_of(cloud)

    def vms(_: Request, __: re.Match[str]) -> tuple[int, Any]:
        """Return every name in every group, with the values that a test may read."""
        return 200, [
            {
                "name": instance.name,
                "group": group.name,
                "zone": instance.zone,
                "action": instance.action,
                "status": "RUNNING" if (machine := instance.machine) else "TERMINATED",
                "id": machine.id if machine else "",
                "serial": str(cloud.folder / "vms" / instance.name / "serial.log"),
                "scriptExit": machine.script_exit if machine else None,
                "environment": machine.environment() if machine else {},
            }
            for group in list(fleet.groups.values())
            for instance in list(group.instances.values())
        ]

    def fault(request: Request, match: re.Match[str]) -> tuple[int, Any]:
        asked = request.json()
        match match["fault"]:
            case "preempt":  # fields: instance, notice, after (seconds from the notice to the shutdown)
                fleet.preempt(asked["instance"], bool(asked.get("notice")), asked.get("after"))
            case "crash":  # field: instance
                fleet.machine(asked["instance"]).kill()
            case "freeze":  # field: instance
                fleet.machine(asked["instance"]).freeze()
            case "capacity":  # fields: zone, available
                change = fleet.exhausted.discard if asked.get("available") else fleet.exhausted.add
                change(asked["zone"])
            case "quota":  # fields: metric, limit
                fleet.limits[asked["metric"]] = float(asked["limit"])
            case "boot":  # field: never
                fleet.never_boot = bool(asked["never"])
            case "grace":  # field: seconds of every shutdown
                fleet.grace = float(asked["seconds"])
            case "clock":  # fields: epoch, or ahead in seconds
                clock.set(float(asked["epoch"]) if "epoch" in asked else clock.now() + float(asked["ahead"]))
            case "storage":  # fields: status, times, instance, only; without fields the fault ends
                with cloud.lock:
                    storage_faults(cloud)[:] = [StorageFault(**asked)] if asked else []
            case other:
                raise CloudError(404, "notFound", f"no fault is called {other}")
        fleet.settle()
        return 200, {"now": clock.now()}

    return [("GET", "/vms", vms), ("POST", "/faults/(?P<fault>[a-z]+)", fault)]
