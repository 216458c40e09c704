"""Who may do what, before and after; and what would be open to everybody."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.review.preview import Preview, State, Step
from infra.review.values import shown

EVERYBODY = ("allUsers", "allAuthenticatedUsers")
ANYWHERE = ("0.0.0.0/0", "::/0")
FIREWALL = "gcp:compute/firewall:Firewall"
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
    FIREWALL: ("allows", "denies", "disabled", "sourceRanges", "sourceServiceAccounts", "targetServiceAccounts"),
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
    exposed = [f"{grant.role} on {grant.where} for {grant.member}" for grant in given if grant.member in EVERYBODY]
    settings: list[str] = []
    for step in preview.steps:
        opened = sorted(set(_open(step, step.after)) - set(_open(step, step.before)))
        exposed += opened
        settings += _settings(step, {"sourceRanges"} if opened else set())
    return Access(tuple(given), tuple(taken), tuple(exposed), tuple(settings))


def _grants(step: Step, state: State | None) -> Iterator[Grant]:
    """Of a resource of IAM: ...IAMMember, ...IAMBinding."""
    kind = step.type.rpartition(":")[2].lower()
    if state is None or "iam" not in kind or not kind.endswith(("member", "binding")):
        return
    inputs = state.inputs
    place = next((key for key in PLACES if inputs.get(key) is not None), None)
    where = f"{PLACES[place]} {_short(inputs[place])}" if place else step.name
    for member in _texts(inputs.get("members", inputs.get("member"))):
        yield Grant(member, str(inputs.get("role")), where)


def _short(value: Any) -> str:
    return shown(value).rpartition("/")[2]


def _texts(value: Any) -> list[str]:
    return [shown(item) for item in (value if isinstance(value, list) else [value])]


def _open(step: Step, state: State | None) -> Iterator[str]:
    """What of a resource is open to everybody, in words."""
    if state is None:
        return
    inputs = state.inputs
    if step.type == FIREWALL and _lets_all_in(inputs):
        yield f"firewall {step.name} lets the whole internet in ({_ports(inputs.get('allows') or [])})"
    for interface in inputs.get("networkInterfaces") or []:
        if isinstance(interface, dict) and interface.get("accessConfigs") is not None:
            yield f"machines of {step.name} get public addresses"


def _lets_all_in(inputs: dict[str, Any]) -> bool:
    if inputs.get("direction", "INGRESS") != "INGRESS" or inputs.get("disabled") or not inputs.get("allows"):
        return False
    named = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    # Google takes a rule that names no source for one that means all.
    return any(place in ANYWHERE for place in _texts(inputs.get("sourceRanges"))) or not any(map(inputs.get, named))


def _ports(allows: Iterable[dict[str, Any]]) -> str:
    """tcp 22, udp."""
    return ", ".join(f"{allow.get('protocol')} {', '.join(allow.get('ports') or [])}".strip() for allow in allows)


def _settings(step: Step, told: set[str]) -> Iterator[str]:
    if step.before is None or step.after is None:
        if step.type == FIREWALL and not told and (state := step.before or step.after) is not None:
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
