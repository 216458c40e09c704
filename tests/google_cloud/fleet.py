"""The managed instance groups and their VMs: as many as wanted, made anew when lost, within the capacity."""

import functools
import random
import string
import threading
from collections import Counter
from dataclasses import dataclass, field

from tests.google_cloud import catalog
from tests.google_cloud.clock import clock_of, epoch_of, stamp
from tests.google_cloud.cloud import Cloud, CloudError, Json
from tests.google_cloud.machines import NOTICE, Machine, Wanted

GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
LETTERS = string.ascii_lowercase + string.digits
DELETION = 180.0  # seconds that the deletion of a group waits for its VMs


@dataclass(eq=False)
class Instance:
    """A name in a group, with or without a VM."""

    name: str
    zone: str
    action: str = "CREATING"  # Google's currentAction
    machine: Machine | None = None
    leaving: bool = False  # the instance is being deleted


@dataclass(eq=False)
class Group:
    id: str
    project: str
    region: str
    name: str
    base: str  # the beginning of its VMs' names
    zones: list[str]
    shape: str  # the target shape of the distribution over them
    target: int  # the number of VMs
    repair: bool
    change_zone: bool  # whether a VM that is made anew may get another zone
    template: Json
    instances: dict[str, Instance] = field(default_factory=dict)
    errors: list[Json] = field(default_factory=list)  # the form is that of listErrors

    @property
    def flex_start(self) -> bool:
        return bool((self.template.get("scheduling") or {}).get("provisioningModel") == "FLEX_START")

    def wanted(self, name: str, zone: str) -> Wanted:
        scheduling = self.template.get("scheduling") or {}
        attributes = dict(self.template.get("metadata") or {})
        if script := self.template.get("metadataStartupScript"):
            attributes["startup-script"] = script
        machine_type = self.template["machineType"].rpartition("/")[2]
        known = catalog.machine(machine_type, zone)
        return Wanted(
            project=self.project,
            name=name,
            zone=zone,
            machine_type=machine_type,
            spot=scheduling.get("provisioningModel") == "SPOT" or bool(scheduling.get("preemptible")),
            gpus=sum(accelerators(self.template).values()) or (known[3] if known else 0),
            image=next(str(d["sourceImage"]) for d in self.template["disks"] if d.get("boot", True)),
            account=(self.template.get("serviceAccount") or {}).get("email", ""),
            attributes=attributes,
            template=self.template,
        )


def accelerators(template: Json) -> dict[str, int]:
    """Return the attached accelerators by type."""
    attached = template.get("guestAccelerators") or []
    return {one["type"].rpartition("/")[2]: int(one.get("count", 1)) for one in attached if one.get("count", 1)}


class Fleet:
    """All groups of a cloud. Its lock is never held while a VM shuts down."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud, self._clock = cloud, clock_of(cloud)
        self._changed = threading.Condition()  # its lock guards all of this
        self._closed = False
        self.groups: dict[str, Group] = {}
        self.exhausted: set[str] = set()  # zones without capacity
        self.limits: dict[str, float] = {}  # quotas with a limit: metric -> limit, in every region
        self.never_boot = False  # if set, new VMs are switched on but run no startup script
        self.grace: float | None = None  # seconds of a shutdown, instead of Google's

    # -- groups ----------------------------------------------------------------------------------------------------

    def add(self, group: Group) -> None:
        with self._changed:
            if group.shape == "ANY_SINGLE_ZONE":  # chosen once, by the capacity of that moment
                group.zones = [self._zone_with_capacity(group) or group.zones[0]]
            self.groups[group.id] = group
            self._settle(group)

    def group(self, id: str) -> Group:  # noqa: A002
        """Return a group. Raise CloudError 404."""
        with self._changed:
            if id not in self.groups:
                raise CloudError(404, "notFound", f"The resource '{id}' was not found")
            return self.groups[id]

    def resize(self, id: str, target: int) -> None:  # noqa: A002
        """Set a group's size; its VMs are made and deleted after that. Raise CloudError 404."""
        with self._changed:
            group = self.group(id)
            group.target = target
            self._settle(group)

    def use_template(self, id: str, template: Json, repair: bool, change_zone: bool) -> None:  # noqa: A002
        """Set the template of new VMs: the update policy is OPPORTUNISTIC."""
        with self._changed:
            group = self.group(id)
            group.template, group.repair, group.change_zone = template, repair, change_zone

    def remove(self, id: str) -> None:  # noqa: A002
        """Delete a group; returns when its VMs are gone. Raise CloudError where they do not end."""
        with self._changed:
            group = self.group(id)
            group.target = 0
            self._settle(group)
            if not self._changed.wait_for(lambda: not group.instances, timeout=DELETION):
                raise CloudError(503, "backendError", f"{', '.join(group.instances)} cannot be deleted")
            del self.groups[id]

    def recreate(self, id: str, names: list[str]) -> None:  # noqa: A002
        """Make VMs anew. Raise CloudError 400 for a name that is not in the group."""
        with self._changed:
            group = self.group(id)
            for name in names:
                if name not in group.instances:
                    raise CloudError(400, "invalid", f"Instance '{name}' does not belong to the group '{group.name}'.")
            for name in names:
                instance = group.instances[name]
                instance.action = "RECREATING"
                if instance.machine is not None:
                    instance.machine.stop(self.grace)
            self._settle(group)

    def settle(self) -> None:
        """Try again to make VMs, as capacity or a quota may have changed."""
        with self._changed:
            for group in self.groups.values():
                self._settle(group)

    def close(self) -> None:
        """Switch all VMs off."""
        with self._changed:
            self._closed = True
            machines = self.machines()
        for machine in machines:
            machine.kill()

    # -- single VMs ------------------------------------------------------------------------------------------------

    def machines(self) -> list[Machine]:
        with self._changed:
            return [
                machine for group in self.groups.values() for i in group.instances.values() if (machine := i.machine)
            ]

    def machine(self, name: str) -> Machine:
        """Return a VM. Raise CloudError 404 for one that is not on."""
        for machine in self.machines():
            if machine.wanted.name == name:
                return machine
        raise CloudError(404, "notFound", f"The resource 'instances/{name}' was not found")

    def preempt(self, name: str, notice: bool, after: float | None = None) -> None:
        """Preempt a VM. `after`: seconds from the notice to the shutdown."""
        machine = self.machine(name)
        machine.preempt(notice)
        if notice:
            delay = NOTICE if after is None else after
            self._clock.at(self._clock.now() + delay, lambda: machine.stop(self.grace))

    # -- making the groups what they should be ----------------------------------------------------------------------

    def _settle(self, group: Group) -> None:
        staying = [instance for instance in group.instances.values() if not instance.leaving]
        staying.sort(key=lambda instance: instance.machine is None)  # instances without a VM leave first
        for instance in staying[group.target :]:
            self._delete(group, instance)
        for _ in range(group.target - len(staying)):
            name = self._new_name(group)
            group.instances[name] = Instance(name, group.zones[len(group.instances) % len(group.zones)])
        for instance in list(group.instances.values()):
            if instance.machine is None and instance.action in ("CREATING", "RECREATING") and not self._closed:
                self._boot(group, instance)
        self._changed.notify_all()

    def _new_name(self, group: Group) -> str:
        while (name := f"{group.base}-{''.join(random.choices(LETTERS, k=4))}") in group.instances:
            pass
        return name

    def _delete(self, group: Group, instance: Instance) -> None:
        instance.leaving, instance.action = True, "DELETING"
        if instance.machine is None:
            del group.instances[instance.name]
        else:
            instance.machine.stop(self.grace)

    def _zone_with_capacity(self, group: Group) -> str | None:
        return next((zone for zone in group.zones if zone not in self.exhausted), None)

    def _boot(self, group: Group, instance: Instance) -> None:
        # A VM that was never there gets any zone with capacity. One made anew keeps its own, unless it may change it.
        if group.shape == "ANY" and (instance.action == "CREATING" or group.change_zone):
            instance.zone = self._zone_with_capacity(group) or instance.zone
        if problem := self._problem(group, instance.zone):
            if not group.flex_start:  # its machines wait in a queue, which is no error
                self._note(group, instance, *problem)
            return
        machine = Machine(self._cloud, group.wanted(instance.name, instance.zone), self._on_end)
        instance.machine, instance.action = machine, "NONE"
        if (end := self._end_of(group)) is not None:
            self._clock.at(end, lambda: machine.stop(self.grace))
        if not self.never_boot:
            machine.boot()

    def _problem(self, group: Group, zone: str) -> tuple[str, str] | None:
        """Return why no VM can be made: code and message of Google's error."""
        end, wanted = self._end_of(group), group.wanted("", zone)
        if end is not None and end <= self._clock.now():
            text = f"Invalid value for field 'resource.scheduling.terminationTime': '{stamp(end)}'. It is in the past."
            return "INVALID_FIELD_VALUE", text
        if zone in self.exhausted:
            place = f"projects/{group.project}/zones/{zone}"
            text = f"The zone '{place}' does not have enough resources available to fulfill the request."
            return "ZONE_RESOURCE_POOL_EXHAUSTED", f"{text} Try a different zone, or try again later."
        used = self._used(group.region)
        needs = catalog.quotas_of(wanted.machine_type, zone, accelerators(group.template), wanted.spot)
        for metric, need in needs.items():
            limit = self.limits.get(metric, catalog.PLENTY)
            if used[metric] + need > limit:
                where = "globally" if metric in catalog.PROJECT_QUOTAS else f"in region {group.region}"
                return "QUOTA_EXCEEDED", f"Quota '{metric}' exceeded. Limit: {limit} {where}."
        return None

    def _used(self, region: str) -> Counter[str]:
        used: Counter[str] = Counter()
        for group in self.groups.values():
            wanted = group.wanted("", group.zones[0])
            needs = catalog.quotas_of(wanted.machine_type, wanted.zone, accelerators(group.template), wanted.spot)
            running = sum(instance.machine is not None for instance in group.instances.values())
            for metric, need in needs.items():
                if group.region == region or metric in catalog.PROJECT_QUOTAS:
                    used[metric] += int(need * running)
        return used

    def used(self, region: str) -> Counter[str]:
        """Return how much of each quota the VMs take."""
        with self._changed:
            return self._used(region)

    def _end_of(self, group: Group) -> float | None:
        """Return when a VM that boots now must end."""
        scheduling = group.template.get("scheduling") or {}
        if until := scheduling.get("terminationTime"):
            return epoch_of(until)
        seconds = (scheduling.get("maxRunDuration") or {}).get("seconds")
        return self._clock.now() + float(seconds) if seconds else None

    def _note(self, group: Group, instance: Instance, code: str, message: str) -> None:
        """Note one error for each VM and cause, though Google tries again and again."""
        action = {"action": instance.action, "instance": instance_url(group, instance)}
        for error in group.errors:
            if error["instanceActionDetails"] == action and error["error"]["code"] == code:
                return
        group.errors.append(
            {
                "error": {"code": code, "message": message},
                "instanceActionDetails": action,
                "timestamp": stamp(self._clock.now()),
            }
        )

    def _on_end(self, machine: Machine) -> None:
        with self._changed:
            for group in self.groups.values():
                instance = group.instances.get(machine.wanted.name)
                if instance is None or instance.machine is not machine:
                    continue
                instance.machine = None
                if instance.leaving:
                    del group.instances[instance.name]
                elif group.repair or instance.action == "RECREATING":
                    instance.action = "RECREATING"
                self._settle(group)
            self._changed.notify_all()


def instance_url(group: Group, instance: Instance) -> str:
    place = f"projects/{group.project}/zones/{instance.zone}"
    return f"https://www.googleapis.com/compute/v1/{place}/instances/{instance.name}"


@functools.cache
def fleet_of(cloud: Cloud) -> Fleet:
    fleet = Fleet(cloud)
    cloud.closing.append(fleet.close)
    return fleet
