"""Calculate with figures that have a lower and an upper bound."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """All figures from low to high, both included."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def times(self, number: float) -> "Range":
        return Range(self.low * number, self.high * number)

    def to_do(self, work: float) -> "Range":
        """Return the seconds that `work` takes at this speed. The highest speed gives the lowest time."""
        return Range(work / self.high, work / self.low)

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def middle(self) -> float:
        """The geometric mean: the ratio of the high end to it is the ratio of it to the low end."""
        return float((self.low * self.high) ** 0.5)


NOTHING = Range(0, 0)


def total(ranges: Iterable[Range]) -> Range:
    return sum(ranges, NOTHING)
