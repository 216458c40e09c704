"""Compare who has access to what before and after a change, and find what would be open to everybody."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.review import exposure
from infra.review.steps import Preview, PreviewStep, ResourceState
from infra.review.values import shown

CUSTOM_ROLE = "gcp:projects/iAMCustomRole:IAMCustomRole"
# The run whose objects a condition names. The end makes sure that it is one run's name, not the beginning of many.
OF_RUN = re.compile(r"/objects/runs/([a-z0-9-]+-[0-9a-f]{8})/")
# The input that names the object of an IAM resource, and what that object is.
OBJECTS = {
    "bucket": "bucket",
    "repository": "repository",
    "serviceAccountId": "account",
    "project": "project",
}
# Other inputs that decide who has access. Whether they open something to everybody is reported separately.
ACCESS_SETTINGS = {
    exposure.FIREWALL: (
        "allows",
        "denies",
        "disabled",
        "sourceRanges",
        "sourceServiceAccounts",
        "targetServiceAccounts",
    ),
    "gcp:storage/bucket:Bucket": ("publicAccessPrevention", "uniformBucketLevelAccess"),
    "gcp:iam/workloadIdentityPoolProvider:WorkloadIdentityPoolProvider": ("attributeCondition", "attributeMapping"),
}


@dataclass(frozen=True)
class Grant:
    member: str  # serviceAccount:…
    role: str
    where: str  # bucket NAME
    condition: str = ""  # the expression of its IAM condition, which limits it


@dataclass(frozen=True)
class Access:
    """The changes of access that a preview makes."""

    given: tuple[Grant, ...]
    taken: tuple[Grant, ...]
    exposed: tuple[str, ...]  # newly open to everybody
    settings: tuple[str, ...]  # other changes of who has access
    followed: tuple[str, ...]  # grants that hold for another run's objects now, which gives nobody more


def access(preview: Preview) -> Access:
    """Return all changes of access."""
    before = {grant for step in preview.steps for grant in _grants(step, step.before)}
    after = {grant for step in preview.steps for grant in _grants(step, step.after)}
    given, taken = sorted(after - before, key=_order), sorted(before - after, key=_order)
    exposed = [
        f"{grant.role} on {grant.where} for {grant.member}" for grant in given if grant.member in exposure.EVERYBODY
    ]
    moved = {(old, new): runs for old in taken for new in given if (runs := _moved(old, new))}
    given = [grant for grant in given if grant not in {new for _, new in moved}]
    taken = [grant for grant in taken if grant not in {old for old, _ in moved}]
    followed = [
        f"{count} grant{'s' if count > 1 else ''} on objects of {old} now hold{'' if count > 1 else 's'} for {new}"
        for (old, new), count in Counter(moved.values()).items()
    ]
    settings: list[str] = []
    for step in preview.steps:
        opened = sorted(set(_open(step, step.after)) - set(_open(step, step.before)))
        exposed += opened
        settings += _settings(step, {"sourceRanges"} if opened else set())
    return Access(tuple(given), tuple(taken), tuple(exposed), tuple(settings), tuple(followed))


def _order(grant: Grant) -> tuple[str, str, str, str]:
    return grant.member, grant.where, grant.role, grant.condition


def _moved(old: Grant, new: Grant) -> tuple[str, str] | None:
    """Return the names of two runs if the same grant holds for the objects of the one, then of the other, alone."""
    if (old.member, old.role, old.where) != (new.member, new.role, new.where):
        return None
    runs = [match[1] if (match := OF_RUN.search(grant.condition)) else "" for grant in (old, new)]
    alike = all(runs) and old.condition.replace(f"/{runs[0]}/", f"/{runs[1]}/") == new.condition
    return (runs[0], runs[1]) if alike else None


def readable(condition: str) -> str:
    """Return a condition on the objects of a bucket without what all such conditions have in common."""
    short = re.sub(r"projects/_/buckets/[^/]+/objects/", "", condition)
    return re.sub(r"api\.getAttribute\(.storage\.googleapis\.com/objectListPrefix., ..\)", "listed prefix", short)


def _grants(step: PreviewStep, state: ResourceState | None) -> Iterator[Grant]:
    """Yield the grants of an IAM resource: ...IAMMember, ...IAMBinding, ...IAMPolicy."""
    for binding in exposure.grants(step.type, state.inputs) if state else ():
        for member in binding.members:
            yield Grant(shown(member), shown(binding.role), _object_of(step, state), binding.condition)


def _object_of(step: PreviewStep, state: ResourceState | None) -> str:
    """Return the object to which a resource gives access, as `bucket NAME`, or else the resource's name."""
    inputs = state.inputs if state else {}
    key = next((key for key in OBJECTS if inputs.get(key) is not None), None)
    return f"{OBJECTS[key]} {_last_part(inputs[key])}" if key else step.name


def _last_part(value: Any) -> str:
    return shown(value).rpartition("/")[2]


def _texts(value: Any) -> list[str]:
    return [shown(item) for item in (value if isinstance(value, list) else [value])]


def _open(step: PreviewStep, state: ResourceState | None) -> Iterator[str]:
    """Yield a text for each way in which a resource is open to everybody."""
    if state is None:
        return
    inputs = state.inputs
    if step.type == exposure.FIREWALL and exposure.open_sources(inputs):
        yield f"firewall {step.name} lets the whole internet in ({_ports(inputs.get('allows') or [])})"
    for key in exposure.public_addresses(step.type, inputs):
        if key == "addressType":
            yield f"address {step.name} is on the internet"
        else:
            yield f"machines of {step.name} get public addresses"
    for entry in exposure.open_lists(inputs):
        yield f"{_object_of(step, state)}: {entry}"


def _ports(allows: Iterable[dict[str, Any]]) -> str:
    """Return protocols and ports as text: `tcp 22, udp`."""
    return ", ".join(f"{allow.get('protocol')} {', '.join(allow.get('ports') or [])}".strip() for allow in allows)


def _settings(step: PreviewStep, reported: set[str]) -> Iterator[str]:
    """Yield a text for each setting of a resource that changes who has access, except the inputs in `reported`."""
    # A new firewall rule, or one that is deleted.
    if step.before is None or step.after is None:
        state = step.before or step.after
        if step.type == exposure.FIREWALL and not reported and state is not None:
            sources = ", ".join(_texts(state.inputs.get("sourceRanges") or state.inputs.get("sourceServiceAccounts")))
            word = "new" if step.after else "gone"
            yield f"firewall {step.name} is {word}: {sources}, {_ports(state.inputs.get('allows') or [])}"
        return
    # Changed inputs.
    for key in ACCESS_SETTINGS.get(step.type, ()):
        old, new = step.changed(key)
        if old != new and key not in reported:
            yield f"{step.name}: {key}: {shown(old)} → {shown(new)}"
    # The permissions of a custom role.
    old, new = step.changed("permissions")
    if step.type == CUSTOM_ROLE and old != new:
        gained, lost = sorted({*(new or [])} - {*(old or [])}), sorted({*(old or [])} - {*(new or [])})
        changes = []
        if gained:
            changes.append(f"gains {', '.join(gained)}")
        if lost:
            changes.append(f"loses {', '.join(lost)}")
        yield f"role {shown(step.changed('roleId')[1])} {', '.join(changes)}"
