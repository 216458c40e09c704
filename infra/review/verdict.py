"""What a change means for a person who has to say yes or no: the worst first."""

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
from infra.review.interruption import Interruption, Look, Machines, declared, interruption, machines
from infra.review.losses import Data, data_of
from infra.review.redaction import masked
from infra.review.steps import Op, Preview, Step
from infra.review.values import leaves, shown
from infra.sizing.ranges import Range
from infra.stack import config


class Level(IntEnum):
    """How bad it is; the exit code of scripts.review."""

    CLEAN = 0
    CHANGES = 10
    DESTRUCTIVE = 20
    POLICY = 30
    FAILED = 40


@dataclass(frozen=True)
class Finding:
    """What a policy says; see policy/rules.py."""

    rule: str
    mandatory: bool
    message: str
    resource: str


@dataclass(frozen=True)
class Price:
    """Of a stack's machines. hours, cost: of a run, None if they cannot be told."""

    hourly: Cost
    hours: Range | None
    cost: Range | None
    at_least: bool  # the cost is a lower bound
    notes: tuple[str, ...]  # what one should know beside the numbers


@dataclass(frozen=True)
class Setting:
    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Review:
    """One stack. offline: why the state is not asked; empty if it is. gone: the change removes the stack's file."""

    preview: Preview
    offline: str
    gone: bool
    data: Data
    run: Interruption | None
    machines: tuple[Machines, ...]
    access: Access
    prices: tuple[Price | None, Price | None]
    settings: tuple[Setting, ...]
    policies: tuple[Finding, ...]

    @property
    def stack(self) -> str:
        return self.preview.stack

    @property
    def steps(self) -> list[Step]:
        """All that changes; nothing where the preview failed on its way."""
        if self.preview.errors:
            return []
        return [step for step in self.preview.steps if step.op not in ("same", "read")]

    @property
    def counts(self) -> Mapping[Op, int]:
        return Counter(step.op for step in self.preview.steps if step.real)

    @property
    def broken(self) -> list[str]:
        """Mandatory rules that do not hold."""
        return sorted({found.rule for found in self.policies if found.mandatory})

    @property
    def level(self) -> Level:
        if self.preview.errors:
            return Level.FAILED
        if self.gone:
            return Level.DESTRUCTIVE
        if self.broken:
            return Level.POLICY
        interrupted = self.run is not None and self.run.going is not False  # it may be going
        if self.data.lost or self.data.blocked or self.access.exposed or interrupted:
            return Level.DESTRUCTIVE
        return Level.CHANGES if self.steps or self.settings else Level.CLEAN

    @property
    def headline(self) -> list[str]:
        """The first line in parts, the worst first."""
        if self.preview.errors:
            return [f"cannot be previewed: {self.preview.errors[0]}"]
        if self.gone:
            stays = "merging that destroys nothing: what the stack has stays and is billed"
            first = (
                f"so `pulumi destroy -s {self.stack}` (or the label destroy:{self.stack}) must come before the merge"
            )
            return [f"Pulumi.{self.stack}.yaml is gone", f"{stays}, {first}"]
        return list(_headline(self)) or [_quiet(self)]


def review(preview: Preview, policies: Sequence[Finding], look: Look, offline: str = "", gone: bool = False) -> Review:
    """Everything that there is to say of a preview."""
    sides = zip(preview.words(), preview.providers(), strict=True)
    preview, text = masked(preview)
    before, after = (_price(preview.stack, words, provider, text) for words, provider in sides)
    policies = [replace(found, message=text(found.message)) for found in policies]
    return Review(
        preview,
        offline,
        gone,
        data_of(preview),
        interruption(preview, look),
        tuple(machines(preview)),
        access(preview),
        (before, after),
        tuple(_settings(preview)),
        tuple(sorted(policies, key=lambda found: (not found.mandatory, found.rule, found.resource))),
    )


def _headline(review: Review) -> Iterator[str]:
    data, doors = review.data, review.access
    old, new = declared(review.preview)
    if data.lost:
        yield f"data would be lost: {_some(data.lost)}"
    if doors.exposed:
        yield f"open to everybody: {_some(doors.exposed)}"
    if data.blocked:
        yield f"`pulumi up` would fail: {_some(data.blocked)}"
    if review.broken:
        yield f"against the policy: {', '.join(review.broken)}"
    if data.left:
        yield f"left behind, and billed: {_some(data.left)}"
    if data.loosened:
        yield f"less protected: {_some(data.loosened)}"
    if review.run is not None:
        yield review.run.short
    elif old is not None and (new is None or new.id != old.id):
        yield f"run {old.id} is not declared any more" if new is None else f"run {new.id} takes the place of {old.id}"
    if old is None:
        if new is not None:
            yield f"a new stack, run {new.id} on {sum(role.count[1] for role in review.machines)} machines"
    elif new is not None:
        settings = [f"{one.key.rpartition('.')[2]}: {one.before} → {one.after}" for one in review.settings[:2]]
        yield from list(_machines(review.machines)) or settings
        if doors.given or doors.taken:
            yield f"access: {len(doors.given)} granted, {len(doors.taken)} withdrawn"
        elif doors.settings and not doors.exposed:
            yield f"access: {_some(doors.settings)}"


def _quiet(review: Review) -> str:
    """Where there is nothing to warn of."""
    words: dict[Op, str] = {"create": "created", "update": "changed", "replace": "replaced", "delete": "deleted"}
    done = [f"{review.counts[op]} {word}" for op, word in words.items() if review.counts.get(op)]
    if any(step.real for step in review.steps):
        return f"no run is touched: {', '.join(done) or 'something is imported'}"
    return "settings that change no resource" if review.settings else "no changes"


def _some(lines: Sequence[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _machines(roles: Sequence[Machines]) -> Iterator[str]:
    for role in roles:
        if role.count[0] != role.count[1]:
            yield f"{role.count[0]} → {role.count[1]} {role.role}{'' if role.count[1] == 1 else 's'}"
            if not any(other.ended for other in roles):
                yield "no machine is replaced"
    kinds = ((old.removesuffix(", Spot"), new.removesuffix(", Spot")) for old, new in (role.kind for role in roles))
    yield from (f"{old} → {new}" for old, new in dict.fromkeys(kinds) if old != new and old and new)


# Money and settings. ------------------------------------------------------------------------------------------------


def _price(
    stack: str, words: Mapping[str, Any] | None, provider: Mapping[str, Any], masked: Callable[[str], str]
) -> Price | None:
    """By today's price list, whatever the list was when it stood up. None: there is no run."""
    if words is None:
        return None
    try:
        loaded = load.load(words, stack, provider=provider)
        found = estimate(loaded, resolve_fleet(loaded))
    except config.ConfigError as error:
        return Price(Cost(0, ("all of it",)), None, None, True, (masked(f"no estimate: {error.problems[0]}"),))
    return Price(found.hourly, found.hours, found.cost, bool(found.unknown), tuple(map(masked, found.notes)))


def _settings(preview: Preview) -> Iterator[Setting]:
    """Keys of the stack file that differ, in its own words."""
    before, after = preview.words()
    if before is None or after is None:
        return  # a new stack, or one that goes: all differs
    providers = [{f"gcp:{key}": value for key, value in side.items()} for side in preview.providers()]
    old, new = leaves(before) | providers[0], leaves(after) | providers[1]
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield Setting(key, shown(old.get(key)), shown(new.get(key)))
