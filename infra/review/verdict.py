"""Collect what a person needs to know to accept or refuse a change, the worst first."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from infra import load
from infra.estimate.estimate import estimate
from infra.fleet.fleet import resolve_fleet
from infra.fleet.prices import Cost
from infra.review.access import Access, access
from infra.review.interruption import DeclaredMachines, Interruption, RunLookup, declared, interruption, machines
from infra.review.losses import DataChanges, data_changes
from infra.review.redaction import masked
from infra.review.steps import Op, Preview, PreviewStep
from infra.review.values import leaves, shown
from infra.sizing.ranges import Range
from infra.stack import config


class Level(IntEnum):
    """The severity of a change, which is the exit code of scripts.review."""

    CLEAN = 0
    CHANGES = 10
    DESTRUCTIVE = 20
    POLICY = 30
    FAILED = 40


@dataclass(frozen=True)
class Violation:
    """A policy that does not hold (policy/rules.py)."""

    rule: str
    mandatory: bool
    message: str
    resource: str


@dataclass(frozen=True)
class Price:
    """The price of a stack's machines by today's list."""

    hourly: Cost
    hours: Range | None  # of a whole run; None if they cannot be estimated
    cost: Range | None  # of a whole run, in USD; None if it cannot be estimated
    at_least: bool  # the cost is a lower bound
    notes: tuple[str, ...]  # the estimate's notes


@dataclass(frozen=True)
class SettingChange:
    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Review:
    """The review of one stack."""

    preview: Preview
    offline: str  # why the stack's state was not asked; empty if it was
    gone: bool  # the change removes the stack's file
    data: DataChanges
    run: Interruption | None
    machines: tuple[DeclaredMachines, ...]
    access: Access
    prices: tuple[Price | None, Price | None]
    settings: tuple[SettingChange, ...]
    policies: tuple[Violation, ...]

    @property
    def stack(self) -> str:
        return self.preview.stack

    @property
    def steps(self) -> list[PreviewStep]:
        """All steps that change something. A preview that failed has none."""
        if self.preview.errors:
            return []
        return [step for step in self.preview.steps if step.op not in ("same", "read")]

    @property
    def counts(self) -> Mapping[Op, int]:
        return Counter(step.op for step in self.preview.steps if step.real)

    @property
    def broken(self) -> list[str]:
        """The mandatory rules that do not hold."""
        return sorted({violation.rule for violation in self.policies if violation.mandatory})

    @property
    def level(self) -> Level:
        if self.preview.errors:
            return Level.FAILED
        if self.gone:
            return Level.DESTRUCTIVE
        if self.broken:
            return Level.POLICY
        interrupted = self.run is not None and self.run.running is not False  # an unknown state counts as running
        if self.data.lost or self.data.blocked or self.access.exposed or interrupted:
            return Level.DESTRUCTIVE
        return Level.CHANGES if self.steps or self.settings else Level.CLEAN

    @property
    def headline(self) -> list[str]:
        """The parts of the first line, the worst first."""
        if self.preview.errors:
            return [f"cannot be previewed: {self.preview.errors[0]}"]
        if self.gone:
            stays = "merging that destroys nothing: what the stack has stays and is billed"
            first = (
                f"so `pulumi destroy -s {self.stack}` (or the label destroy:{self.stack}) must come before the merge"
            )
            return [f"Pulumi.{self.stack}.yaml is gone", f"{stays}, {first}"]
        return list(_headline(self)) or [_quiet(self)]


def review(
    preview: Preview, policies: Sequence[Violation], look: RunLookup, offline: str = "", gone: bool = False
) -> Review:
    """Return the review of a preview, without secrets.

    Args:
        preview: the preview, with secrets.
        policies: the policies that do not hold.
        look: a function that asks a bucket for the state of a run.
        offline: why the stack's state was not asked; empty if it was.
        gone: whether the change removes the stack's file.
    """
    sides = zip(preview.settings(), preview.providers(), strict=True)
    preview, mask_text = masked(preview)
    before, after = (_price(preview.stack, settings, provider, mask_text) for settings, provider in sides)
    policies = [replace(violation, message=mask_text(violation.message)) for violation in policies]
    return Review(
        preview,
        offline,
        gone,
        data_changes(preview),
        interruption(preview, look),
        tuple(machines(preview)),
        access(preview),
        (before, after),
        tuple(_settings(preview)),
        tuple(sorted(policies, key=lambda violation: (not violation.mandatory, violation.rule, violation.resource))),
    )


def _headline(review: Review) -> Iterator[str]:
    """Yield what deserves attention, the worst first."""
    data, access_changes = review.data, review.access
    old, new = declared(review.preview)
    # Dangers.
    if data.lost:
        yield f"data would be lost: {_first_of(data.lost)}"
    if access_changes.exposed:
        yield f"open to everybody: {_first_of(access_changes.exposed)}"
    if data.blocked:
        yield f"`pulumi up` would fail: {_first_of(data.blocked)}"
    if review.broken:
        yield f"against the policy: {', '.join(review.broken)}"
    if data.left:
        yield f"left behind, and billed: {_first_of(data.left)}"
    if data.loosened:
        yield f"less protected: {_first_of(data.loosened)}"
    # The run.
    if review.run is not None:
        yield review.run.short
    elif old is not None and (new is None or new.id != old.id):
        yield f"run {old.id} is not declared any more" if new is None else f"run {new.id} takes the place of {old.id}"
    # Machines, settings and access.
    if old is None:
        if new is not None:
            yield f"a new stack, run {new.id} on {sum(role.count[1] for role in review.machines)} machines"
    elif new is not None:
        settings = [
            f"{change.key.rpartition('.')[2]}: {change.before} → {change.after}" for change in review.settings[:2]
        ]
        yield from list(_machines(review.machines)) or settings
        if access_changes.given or access_changes.taken:
            yield f"access: {len(access_changes.given)} granted, {len(access_changes.taken)} withdrawn"
        elif access_changes.settings and not access_changes.exposed:
            yield f"access: {_first_of(access_changes.settings)}"


def _quiet(review: Review) -> str:
    """Return the first line of a review without anything that deserves attention."""
    verbs: dict[Op, str] = {"create": "created", "update": "changed", "replace": "replaced", "delete": "deleted"}
    counts = [f"{review.counts[op]} {verb}" for op, verb in verbs.items() if review.counts.get(op)]
    if any(step.real for step in review.steps):
        return f"no run is touched: {', '.join(counts) or 'something is imported'}"
    return "settings that change no resource" if review.settings else "no changes"


def _first_of(lines: Sequence[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _machines(roles: Sequence[DeclaredMachines]) -> Iterator[str]:
    for role in roles:
        if role.count[0] != role.count[1]:
            yield f"{role.count[0]} → {role.count[1]} {role.role}{'' if role.count[1] == 1 else 's'}"
            if not any(other.ended for other in roles):
                yield "no machine is replaced"
    kinds = ((old.removesuffix(", Spot"), new.removesuffix(", Spot")) for old, new in (role.kind for role in roles))
    yield from (f"{old} → {new}" for old, new in dict.fromkeys(kinds) if old != new and old and new)


# Money and settings. ------------------------------------------------------------------------------------------------


def _price(
    stack: str, settings: Mapping[str, Any] | None, provider: Mapping[str, Any], mask_text: Callable[[str], str]
) -> Price | None:
    """Return the price by today's list, even for machines that exist longer. Return None if there is no run."""
    if settings is None:
        return None
    try:
        loaded = load.load(settings, stack, provider=provider)
        estimated = estimate(loaded, resolve_fleet(loaded))
    except config.ConfigError as error:
        return Price(Cost(0, ("all of it",)), None, None, True, (mask_text(f"no estimate: {error.problems[0]}"),))
    notes = tuple(map(mask_text, estimated.notes))
    return Price(estimated.hourly, estimated.hours, estimated.cost, bool(estimated.unknown), notes)


def _settings(preview: Preview) -> Iterator[SettingChange]:
    """Yield the keys of the stack file that differ."""
    before, after = preview.settings()
    if before is None or after is None:
        return  # a new or a deleted stack: all keys differ
    providers = [{f"gcp:{key}": value for key, value in side.items()} for side in preview.providers()]
    old, new = leaves(before) | providers[0], leaves(after) | providers[1]
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield SettingChange(key, shown(old.get(key)), shown(new.get(key)))
