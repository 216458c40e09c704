"""Who may do what, before and after; and what would be open to everybody."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.review import exposure
from infra.review.steps import Preview, State, Step
from infra.review.values import shown

CUSTOM_ROLE = "gcp:projects/iAMCustomRole:IAMCustomRole"
# What an IAM resource is about, by the input that names it.
PLACES = {
    "bucket": "bucket",
    "repository": "repository",
    "serviceAccountId": "account",
    "project": "project",
}
# Other settings that decide who gets in; what opens a thing to everybody is told apart.
SETTINGS = {
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
    """member: serviceAccount:…; where: "bucket NAME"."""

    member: str
    role: str
    where: str


@dataclass(frozen=True)
class Access:
    given: tuple[Grant, ...]
    taken: tuple[Grant, ...]
    exposed: tuple[str, ...]  # what is open to everybody, and was not
    settings: tuple[str, ...]  # other changes of who gets in


def access(preview: Preview) -> Access:
    """All changes of access."""
    before = {grant for step in preview.steps for grant in _grants(step, step.before)}
    after = {grant for step in preview.steps for grant in _grants(step, step.after)}
    given = sorted(after - before, key=lambda grant: (grant.member, grant.where, grant.role))
    taken = sorted(before - after, key=lambda grant: (grant.member, grant.where, grant.role))
    exposed = [
        f"{grant.role} on {grant.where} for {grant.member}" for grant in given if grant.member in exposure.EVERYBODY
    ]
    settings: list[str] = []
    for step in preview.steps:
        opened = sorted(set(_open(step, step.after)) - set(_open(step, step.before)))
        exposed += opened
        settings += _settings(step, {"sourceRanges"} if opened else set())
    return Access(tuple(given), tuple(taken), tuple(exposed), tuple(settings))


def _grants(step: Step, state: State | None) -> Iterator[Grant]:
    """Of a resource of IAM: ...IAMMember, ...IAMBinding, ...IAMPolicy."""
    for role, members in exposure.grants(step.type, state.inputs) if state else ():
        for member in members:
            yield Grant(shown(member), shown(role), _place(step, state))


def _place(step: Step, state: State | None) -> str:
    """What it is about: bucket NAME."""
    inputs = state.inputs if state else {}
    key = next((key for key in PLACES if inputs.get(key) is not None), None)
    return f"{PLACES[key]} {_short(inputs[key])}" if key else step.name


def _short(value: Any) -> str:
    return shown(value).rpartition("/")[2]


def _texts(value: Any) -> list[str]:
    return [shown(item) for item in (value if isinstance(value, list) else [value])]


def _open(step: Step, state: State | None) -> Iterator[str]:
    """What of a resource is open to everybody, in words."""
    if state is None:
        return
    inputs = state.inputs
    if step.type == exposure.FIREWALL and exposure.lets_everybody_in(inputs):
        yield f"firewall {step.name} lets the whole internet in ({_ports(inputs.get('allows') or [])})"
    for key in exposure.public_addresses(step.type, inputs):
        if key == "addressType":
            yield f"address {step.name} is on the internet"
        else:
            yield f"machines of {step.name} get public addresses"
    for entry in exposure.open_lists(inputs):
        yield f"{_place(step, state)}: {entry}"


def _ports(allows: Iterable[dict[str, Any]]) -> str:
    """tcp 22, udp."""
    return ", ".join(f"{allow.get('protocol')} {', '.join(allow.get('ports') or [])}".strip() for allow in allows)


def _settings(step: Step, told: set[str]) -> Iterator[str]:
    if step.before is None or step.after is None:
        if step.type == exposure.FIREWALL and not told and (state := step.before or step.after) is not None:
            sources = ", ".join(_texts(state.inputs.get("sourceRanges") or state.inputs.get("sourceServiceAccounts")))
            word = "new" if step.after else "gone"
            yield f"firewall {step.name} is {word}: {sources}, {_ports(state.inputs.get('allows') or [])}"
        return
    for key in SETTINGS.get(step.type, ()):
        old, new = step.changed(key)
        if old != new and key not in told:
            yield f"{step.name}: {key}: {shown(old)} → {shown(new)}"
    old, new = step.changed("permissions")
    if step.type == CUSTOM_ROLE and old != new:
        more, less = sorted({*(new or [])} - {*(old or [])}), sorted({*(old or [])} - {*(new or [])})
        words = [f"gains {', '.join(more)}"] * bool(more) + [f"loses {', '.join(less)}"] * bool(less)
        yield f"role {shown(step.changed('roleId')[1])} {', '.join(words)}"
