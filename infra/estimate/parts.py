"""Hold an estimate: the parts of its time and cost, its figures, and where each comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.estimate.step import StepTime
from infra.fleet.prices import Cost
from infra.sizing import memory
from infra.sizing.ranges import Range, total

HOUR = 3600


@dataclass(frozen=True)
class Part:
    """A part of the time, in hours, or of the cost, in USD.

    unknown: what has no known price. If anything has none, the amount is a lower bound.
    """

    name: str
    amount: Range
    origin: str
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A number from which the rest of an estimate follows."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Estimate:
    """A run's time and cost.

    hours and cost are None if the model's dimensions are not known; `notes` says why.
    hourly: an hour of all machines. run: the finished run whose measured speed the estimate uses; empty if none.
    """

    time: tuple[Part, ...]
    costs: tuple[Part, ...]
    figures: tuple[Figure, ...]
    memory: tuple[memory.MemoryNeed, ...]
    hourly: Cost
    step: StepTime | None
    tokens_per_second: Range
    notes: tuple[str, ...]
    run: str = ""

    @property
    def hours(self) -> Range | None:
        return total(part.amount for part in self.time) if self.time else None

    @property
    def cost(self) -> Range | None:
        """USD. A lower bound if `unknown` is not empty."""
        return total(part.amount for part in self.costs) if self.time else None

    @property
    def unknown(self) -> tuple[str, ...]:
        return unpriced(self.costs)


def unpriced(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return what has no known price in any of the parts, each once."""
    return tuple(dict.fromkeys(price_name for part in parts for price_name in part.unknown))


def rounded(number: float) -> float:
    """Round to two significant digits. More would promise too much."""
    return float(f"{number:.2g}")


def spread(amount: Range | None, at_least: bool = False) -> dict[str, Any]:
    """Return a range as a stack's output: {"low", "high"}, and "atLeast" if not everything is priced."""
    if amount is None:
        return {"unknown": "the model's dimensions are in a checkpoint that is not here"}
    output: dict[str, Any] = {"low": rounded(amount.low), "high": rounded(amount.high)}
    if at_least:
        output["atLeast"] = True
    return output
