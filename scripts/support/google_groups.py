"""Explain why machines are missing, by what Google's instance groups of a stack report.

What is asked and what is said of the answers are apart, so that the words can be tried on any answer.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from infra.fleet.fleet import Fleet, may_move, resolve_fleet, spans_zones
from infra.stack.config import StackConfig
from trainer.contract.spec import Role
from trainer.gcloud.api import ApiError, GoogleApi

ASK_EVERY = 15.0  # seconds
RECENT = 900.0  # seconds: older errors of a group no longer hold
MOST_ERRORS = 100
STOCKOUT = re.compile(r"RESOURCE_POOL_EXHAUSTED|STOCKOUT|not have enough resources|currently unavailable in the", re.I)
QUOTA = re.compile(r"QUOTA_EXCEEDED|quota '?[\w-]+'? exceeded|QUOTA_EXHAUSTED", re.I)
PERMISSION = re.compile(
    r"PERMISSION|FORBIDDEN|ACCESS_DENIED|Required '[\w.]+'|does not have .*access|not authorized", re.I
)
POLICY = re.compile(r"CONDITION_NOT_MET|constraint", re.I)
QUOTA_WORDS = re.compile(r"Quota '?(?P<name>[\w-]+)'? exceeded\.\s*Limit: (?P<limit>[\d.]+)(?P<where> [\w -]+)?", re.I)
Json = dict[str, Any]


@dataclass(frozen=True)
class InstanceGroup:
    """A managed instance group as Google reports it. The lists hold Google's own JSON."""

    name: str
    role: Role
    size: int  # the number of instances that it should have
    instances: list[Json] = field(default_factory=list)  # ManagedInstance
    errors: list[Json] = field(default_factory=list)  # InstanceManagedByIgmError


@dataclass(frozen=True)
class Stack:
    """The facts of a stack that explanations need."""

    name: str
    launch: int
    zones: tuple[str, ...]  # where it may be
    machines: dict[Role, str]  # such as "n1-highmem-16 with nvidia-tesla-t4"
    flex_start: bool = False
    spans: bool = False  # one group takes the machine from any zone
    moves: bool = False  # the controller moves the run


def stack_of(config: StackConfig, fleet: Fleet, launch: int) -> Stack:
    """Return the facts of a stack and its machines that explanations need."""
    machine_names: dict[Role, str] = {}
    for machines in fleet.roles:
        machine_names[machines.role] = machines.machine.name
        if machines.attached:
            number = f"{machines.accelerators} " if machines.accelerators > 1 else ""
            machine_names[machines.role] += f" with {number}{machines.accelerator}"
    return Stack(
        config.stack,
        launch,
        fleet.zones,
        machine_names,
        flex_start=config.file.machines.flex_start,
        spans=spans_zones(config, fleet),
        moves=may_move(config, fleet),
    )


def explain(stack: Stack, groups: list[InstanceGroup], heard: Collection[str], now: float) -> list[str]:
    """Return a line for each cause: what is missing, why, what to do. heard: names of machines that reported."""
    if not groups:
        return ["Google has no group of machines for this stack yet; `pulumi up` makes them"]
    lines = []
    for role in dict.fromkeys(group.role for group in groups):
        # A role has a group in each zone where the run may be, and only those where it is have machines.
        wanted = [group for group in groups if group.role == role and group.size]
        if not wanted:
            fix = f"raise gpt2-training:launch to {stack.launch + 1} and run `pulumi up` to continue"
            lines.append(f"{role}: its groups have size 0: the deadline, the end of the run or a person set it; {fix}")
        lines += [line for group in wanted for line in _group(stack, group, heard, now)]
    return lines


def _group(stack: Stack, group: InstanceGroup, heard: Collection[str], now: float) -> list[str]:
    up = [i for i in group.instances if i.get("instanceStatus") == "RUNNING"]
    silent = [i for i in up if _machine(group, i) not in heard]
    lines = []
    if len(up) < group.size:
        causes = _causes(stack, group, now)
        progress = f"{len(up)} of {group.size} machines run, Google is making the rest"
        if stack.flex_start:
            queue = "the rest waits for capacity (machines.flexStart), which may take days; `pulumi destroy` ends it"
            progress = f"{len(up)} of {group.size} machines run, {queue}"
        lines += [f"{group.role}: {cause}" for cause in causes] or [f"{group.role}: {progress}"]
    if silent:
        lines.append(
            f"{group.role}: {len(silent)} of {group.size} machines booting (driver and image take 5 to 10 minutes);"
            f" `python -m scripts.ssh {group.role} --stack {stack.name}` looks inside"
        )
    return lines


def instance_name(instance: Json) -> str:
    return str(instance.get("name") or instance.get("instance", "").rpartition("/")[2])


def _machine(group: InstanceGroup, instance: Json) -> str:
    """Return the name that a machine has in its run."""
    return "master-0" if group.role == "master" else f"{group.role}-{instance_name(instance)[-4:]}"


def _causes(stack: Stack, group: InstanceGroup, now: float) -> list[str]:
    """Return each cause once. Those that instances report come first, as they have details."""
    errors: list[Json] = []
    for instance in group.instances:
        if instance.get("instanceStatus") != "RUNNING":
            errors += instance.get("lastAttempt", {}).get("errors", {}).get("errors", [])
    errors += [e.get("error", {}) for e in group.errors if now - _seconds(e.get("timestamp", "")) <= RECENT]
    causes: dict[str, str] = {}
    for error in errors:
        key, text = _cause(stack, group, error)
        causes.setdefault(key, text)
    return list(causes.values())


def _cause(stack: Stack, group: InstanceGroup, error: Json) -> tuple[str, str]:
    """Return a key that two errors of the same cause share, and the cause in words."""
    code, message = str(error.get("code", "")), " ".join(str(error.get("message", "")).split())
    error_text = f"{code} {message}"
    details = [detail for detail in error.get("errorDetails", []) if isinstance(detail, dict)]
    if STOCKOUT.search(error_text):
        return _stockout(stack, group, message, details)
    if QUOTA.search(error_text):
        return _quota(message, details)
    first = message[:200] or code
    if PERMISSION.search(error_text):
        return f"permission {first}", f"no permission: {first}; `python -m scripts.preflight` says whose it is to give"
    if POLICY.search(error_text):
        return f"policy {first}", f"an organisation's policy forbids it: {first}; ask who keeps it, or change the stack"
    return error_text, f"Google says {code}: {first}" if code and message else f"Google says {first}"


def _stockout(stack: Stack, group: InstanceGroup, message: str, details: list[Json]) -> tuple[str, str]:
    metadata: Json = next((d["errorInfo"].get("metadatas", {}) for d in details if d.get("errorInfo")), {})
    named = re.search(r"zones/([a-z0-9-]+)", message) or re.search(r"in the ([a-z]+-[a-z]+\d-[a-z]) zone", message)
    zone = metadata.get("zone") or (named.group(1) if named else "of the run")
    machine = stack.machines.get(group.role) or metadata.get("vmType", "such machine")
    others = metadata.get("zonesAvailable", "").replace(",", ", ")
    others = f" (Google names {others} instead)" if others else ""
    if stack.spans:
        onward = f"Google keeps trying in {', '.join(stack.zones)}"
    elif stack.moves:
        onward = "Google keeps trying, and the run moves to another zone if this lasts, unless the deadline is near"
    else:
        raised = f"raise gpt2-training:launch to {stack.launch + 1}"
        onward = f"Google keeps trying, or add another zone to gpt2-training:machines.zones and {raised}"
    return f"stockout {zone}", f"zone {zone} has no {machine} now{others}; {onward}"


def _quota(message: str, details: list[Json]) -> tuple[str, str]:
    info: Json = next((d["quotaInfo"] for d in details if d.get("quotaInfo")), {})
    match = QUOTA_WORDS.search(message)
    name = match["name"] if match else str(info.get("limitName") or info.get("metricName") or "of Compute Engine")
    limit = float(match["limit"]) if match else info.get("limit")
    value = "is used up" if limit is None else f"is {limit:g}"
    region = (info.get("dimensions") or {}).get("region")
    where = (match["where"] or "").rstrip() if match else f" in region {region}" if region else ""
    return f"quota {name}", f"quota {name} {value}{where}: ask for more (console, IAM, Quotas), or use fewer machines"


def _seconds(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return float("-inf")


class Groups:
    """Ask Google about a stack's groups, seldom. Never fails, as an account that watches may have few rights."""

    def __init__(
        self, config: StackConfig, clock: Callable[[], float], connect: Callable[[], GoogleApi] = GoogleApi
    ) -> None:
        self._config, self._clock, self._connect = config, clock, connect
        self._fleet = resolve_fleet(config)
        self._api: GoogleApi | None = None
        self._asked = float("-inf")
        self._refused = False
        self._lines: list[str] = []

    def lines(self, launch: int, heard: Collection[str]) -> list[str]:
        """Return what is missing and why, by an answer that is at most ASK_EVERY seconds old."""
        if self._refused or self._clock() - self._asked < ASK_EVERY:
            return self._lines
        self._asked = self._clock()
        try:
            self._api = self._api or self._connect()
            groups = read_groups(self._api, self._config.project, self._config.region, self._config.stack)
            self._lines = explain(stack_of(self._config, self._fleet, launch), groups, heard, self._clock())
        except ApiError as error:
            denied = error.status in (401, 403)
            self._refused = denied or self._api is None  # asking again would not help
            rights = "; roles/compute.viewer is enough" if denied else ""
            self._lines = [f"cannot say why machines are missing: {error}{rights}"]
        except Exception as error:  # whatever Google answered, the watch must continue
            self._lines = [f"cannot say why machines are missing: {type(error).__name__} in Google's answer"]
        return self._lines


def read_groups(api: GoogleApi, project: str, region: str, stack: str) -> list[InstanceGroup]:
    """Return the stack's groups, with the errors of those that lack machines. Raise ApiError."""
    folder = f"projects/{project}/regions/{region}/instanceGroupManagers"
    named = re.compile(rf"{re.escape(stack)}-(master|worker|ps)-[0-9a-f]{{8}}")
    items = api.pages("compute", folder, "items", {"filter": f'name eq "{stack}-(master|worker|ps)-.*"'})
    groups = []
    for item in items:
        if not (match := named.fullmatch(item["name"])):
            continue
        role: Any = match[1]
        path, size = f"{folder}/{item['name']}", int(item.get("targetSize", 0))
        instances = managed_instances(api, path) if size else []
        up = sum(i.get("instanceStatus") == "RUNNING" for i in instances)
        errors = []
        if up < size:
            answer = api.call("compute", "GET", f"{path}/listErrors", query={"maxResults": MOST_ERRORS})
            errors = answer.get("items", [])
        groups.append(InstanceGroup(item["name"], role, size, instances, errors))
    order = ("master", "worker", "ps")
    return sorted(groups, key=lambda group: (order.index(group.role), group.name))


def managed_instances(api: GoogleApi, path: str) -> list[Json]:
    """Return all instances of the group at a path. Raise ApiError."""
    items: list[Json] = []
    token = ""
    while True:
        query = {"pageToken": token} if token else {}
        answer = api.call("compute", "POST", f"{path}/listManagedInstances", query=query)
        items += answer.get("managedInstances", [])
        if not (token := answer.get("nextPageToken", "")):
            return items
