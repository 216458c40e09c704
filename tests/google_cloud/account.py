"""Keep the account of a cloud: what Google would bill, by resource and second, and what would bill on from now.

Seconds are those of the cloud's clock, which a test can set. A VM and its disks are billed from its creation until its
power is off; a VM that waits for capacity is not billed. GET /account is the whole account; bill.py prices it.
"""

import functools
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.google_cloud import lifecycle
from tests.google_cloud.buckets import BUCKET, Storage
from tests.google_cloud.clock import clock_of, stamp
from tests.google_cloud.cloud import Cloud, Json, Resource
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.fleet import accelerators, fleet_of
from tests.google_cloud.machines import Machine
from tests.google_cloud.scheduler import JOB, scheduler_of

DEFAULT_DISK = 10.0  # GB of a boot disk whose template names no size: about that of the image
# Resources that are billed while they exist, whatever they do.
STANDING = {
    JOB: "scheduler job",
    "gcp:compute/routerNat:RouterNat": "NAT gateway",
    "gcp:compute/address:Address": "address",
}
NETWORK = "gcp:compute/network:Network"
OBJECTS = re.compile(r"(?P<upload>/upload)?(?P<resumed>/resumable)?(?:/download)?/storage/v1/b/[^/]+/o(?P<object>/.+)?")


@dataclass
class Entry:
    """Something that is billed by the second. `until` is None while it is."""

    kind: str
    name: str
    since: float
    until: float | None
    what: Json  # a VM: type, zone, spot, accelerators; a disk: type, gb


class Account:
    """All entries of one cloud, and counts of what is billed by its number."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud, self._clock = cloud, clock_of(cloud)
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self.stacks = 0  # that were made, by their networks

    def begin(self, kind: str, name: str, **what: Any) -> None:
        with self._lock:
            self._entries.append(Entry(kind, name, self._clock.now(), None, what))

    def end(self, name: str) -> None:
        """End all entries of this name that are still billed."""
        with self._lock:
            for entry in self._entries:
                if entry.name == name and entry.until is None:
                    entry.until = self._clock.now()

    def count(self, what: str, who: str, number: int = 1) -> None:
        """Add to what is billed by its number: "class A", "class B", "workflow steps" of a VM or workflow."""
        with self._lock:
            self._counts[what, who] += number

    def operation(self, instance: str, verb: str, path: str) -> None:
        """Count a VM's request to Cloud Storage that succeeded."""
        if kind := operation_class(verb, path):
            self.count(f"class {kind}", instance)

    def machine_on(self, machine: Machine) -> None:
        wanted, name = machine.wanted, f"{machine.wanted.name}/{machine.id}"
        what = {"type": wanted.machine_type, "zone": wanted.zone, "spot": wanted.spot}
        self.begin("VM", name, **what, accelerators=accelerators(wanted.template))
        for disk in wanted.template.get("disks") or [{}]:
            kind, gigabytes = disk.get("diskType") or "pd-standard", float(disk.get("diskSizeGb") or DEFAULT_DISK)
            self.begin("disk", name, type=kind.rpartition("/")[2], gb=gigabytes, zone=wanted.zone)
        for interface in wanted.template.get("networkInterfaces") or []:
            for _ in interface.get("accessConfigs") or []:
                self.begin("address", name)

    def machine_off(self, machine: Machine) -> None:
        self.end(f"{machine.wanted.name}/{machine.id}")

    def to_json(self) -> Json:
        with self._lock:
            entries = [asdict(entry) for entry in self._entries]
            counts = [{"what": what, "who": who, "number": n} for (what, who), n in sorted(self._counts.items())]
        return {
            "now": self._clock.now(),
            "entries": entries,
            "counts": counts,
            "stored": self._stored(),
            "runs_on": self._runs_on(),
        }

    def _stored(self) -> Json:
        """Return the bytes of each bucket that are billed now and in some days, if nobody writes any more."""
        storage, now, stored = Storage(self._cloud.storage), self._clock.now(), {}
        for bucket in self._cloud.find(BUCKET):
            versions = storage.objects(bucket.id, versions=True) or []
            days = (0, 1, 8, 15)
            stored[bucket.id] = {str(day): lifecycle.billed(versions, bucket.state, now, day) for day in days}
        return stored

    def _runs_on(self) -> list[str]:
        """Return a line for everything that bills, or will, though nobody does anything more."""
        found = []
        for group in list(fleet_of(self._cloud).groups.values()):
            if group.target:
                found.append(f"group {group.name} has the size {group.target}")
            for instance in list(group.instances.values()):
                found.append(f"VM {instance.name} is {'on' if instance.machine else 'waited for'} ({instance.action})")
        for job in self._cloud.find(JOB):
            state = scheduler_of(self._cloud).describe(job.id)
            if state["state"] == "ENABLED":
                found.append(f"scheduler job {job.state['name']} fires at {state['scheduleTime']}")
        if self.stacks and not self._cloud.find(NETWORK):  # all stacks were destroyed
            with self._lock:
                open_entries = [e for e in self._entries if e.until is None and e.kind not in ("VM", "disk")]
            found += [f"{entry.kind} {entry.name} is billed since {stamp(entry.since)}" for entry in open_entries]
        return found


def operation_class(verb: str, path: str) -> str:
    """Return the class, A or B, of a request to the JSON API; "" for one that is free.

    Inserting, composing, changing and listing are class A, reading is class B, deleting is free
    (cloud.google.com/storage/pricing, "Operations by API and Feature"). A resumable upload is one insertion.
    """
    match = OBJECTS.fullmatch(urlsplit(path).path)
    if match is None or verb == "DELETE" or (verb == "PUT" and match["upload"]) or match["resumed"]:
        return ""
    return "B" if verb == "GET" and match["object"] else "A"


@functools.cache
def account_of(cloud: Cloud) -> Account:
    return Account(cloud)


def register(cloud: Cloud) -> list[Route]:
    account = account_of(cloud)

    def made(resource: Resource) -> None:
        account.stacks += resource.token == NETWORK
        if resource.token in STANDING:
            account.begin(STANDING[resource.token], resource.id)

    def gone(resource: Resource) -> None:
        if resource.token in STANDING:
            account.end(resource.id)

    cloud.listeners |= {
        "made": made,
        "gone": gone,
        "on": account.machine_on,
        "off": account.machine_off,
        "request": account.operation,
        "steps": functools.partial(account.count, "workflow steps"),
    }

    def whole(_: Request, __: re.Match[str]) -> tuple[int, Json]:
        return 200, account.to_json()

    return [("GET", "/account", whole)]
