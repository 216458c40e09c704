"""The parts of an estimate: a figure, its range, and where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.estimate.step import Step
from infra.fleet.prices import Cost
from infra.sizing import memory
from infra.sizing.ranges import Range, total

HOUR = 3600


@dataclass(frozen=True)
class Part:
    """A part of the time or of the money."""

    name: str
    amount: Range  # hours or USD
    origin: str
    unknown: tuple[str, ...] = ()  # what is not priced: then it is a lower bound


@dataclass(frozen=True)
class Figure:
    """A number that the rest follows from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Estimate:
    """hours and cost are None where the model's dimensions are not known: `notes` says why."""

    time: tuple[Part, ...]
    costs: tuple[Part, ...]
    figures: tuple[Figure, ...]
    memory: tuple[memory.Need, ...]
    hourly: Cost  # of all machines
    step: Step | None
    tokens_per_second: Range
    notes: tuple[str, ...]
    run: str = ""  # that it follows, by its measured speed

    @property
    def hours(self) -> Range | None:
        return total(part.amount for part in self.time) if self.time else None

    @property
    def cost(self) -> Range | None:
        """USD; a lower bound if `unknown` is not empty."""
        return total(part.amount for part in self.costs) if self.time else None

    @property
    def unknown(self) -> tuple[str, ...]:
        return unpriced(self.costs)


def unpriced(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(what for part in parts for what in part.unknown))


def rounded(number: float) -> float:
    """Two digits that matter: more would be a promise."""
    return float(f"{number:.2g}")


def spread(amount: Range | None, at_least: bool = False) -> dict[str, Any]:
    """A range as a stack's output: {"low", "high"}, with "atLeast" where not everything is priced."""
    if amount is None:
        return {"unknown": "the model's dimensions stand in a checkpoint that is not here"}
    found: dict[str, Any] = {"low": rounded(amount.low), "high": rounded(amount.high)}
    return found | ({"atLeast": True} if at_least else {})
