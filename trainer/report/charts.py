"""Compute the paths, ticks and labels of a chart. The page draws them (trainer/report/page.html).

A plot has WIDTH x HEIGHT units, which the page stretches to the space that it has. The page keeps the lines' width and
writes labels as text around the plot, so that they stay readable on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 2000, 1000
BUCKETS = 400  # parts of the x axis, in each of which thinned() keeps four points
WINDOWS = 60  # a smoothed line is a mean over about this fraction of all points: 1 / 60
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
STOPS = 200  # most positions at which a pointer reads values
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The points of one line before they are scaled to the plot."""

    name: str
    style: str  # "raw" (thin), "line" or "dots" (a line with a dot at each point)
    points: Sequence[Point]  # by x
    tint: int = 0  # an index into the page's colours


@dataclass(frozen=True)
class DrawnLine:
    name: str
    style: str  # as in Series
    tint: int
    path: str  # of SVG, in units of the plot
    dots: str  # a path of SVG, too


@dataclass(frozen=True)
class Tick:
    at: float  # percent, from the left or from above
    label: str


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    unit: str
    description: str  # for screen readers
    lines: list[DrawnLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick] = field(default_factory=list)  # events, by x
    stops: list[tuple[int, str]] = field(default_factory=list)  # (x in units, the values there as text), by x


def chart(
    key: str,
    title: str,
    unit: str,
    series: Sequence[Series],
    last: float,
    *,
    zero: bool = False,
    logarithmic: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Chart | None:
    """Return a chart, or None if there is no point to draw.

    Args:
        key: a name for the page's elements.
        title: the heading.
        unit: the unit of all values.
        series: the lines.
        last: the end of the x axis, which begins at 0.
        zero: whether the y axis begins at 0.
        logarithmic: whether the y axis is logarithmic. Values up to 0 are then left out.
        marks: (x, label) of events.
    """
    # Choose the axes.
    drawn = [Series(s.name, s.style, _drawable(s.points, logarithmic), s.tint) for s in series]
    drawn = [s for s in drawn if s.points]
    values = [y for s in drawn for _, y in s.points]
    if not values:
        return None
    lowest = 0 if zero else min(values)
    y_ticks = _log_ticks(min(values), max(values)) if logarithmic else _ticks(lowest, max(values))
    if all(y == round(y) for y in values):  # the values are counts
        y_ticks = [tick for tick in y_ticks if tick == round(tick)]
    low, high = y_ticks[0], y_ticks[-1]
    last = max(last, max(x for s in drawn for x, _ in s.points), 1)

    def from_top(y: float) -> float:
        """Return a value's distance from the top of the plot, from 0 to 1."""
        if logarithmic:
            y, bottom, top = math.log(y), math.log(low), math.log(high)
        else:
            bottom, top = low, high
        return (top - y) / (top - bottom)

    # Scale the lines to the plot.
    lines = []
    for s in drawn:
        scaled = [(round(x / last * WIDTH), round(from_top(y) * HEIGHT)) for x, y in thinned(s.points)]
        path = "M" + "L".join(f"{x} {y}" for x, y in scaled) if len(scaled) > 1 else ""
        dots = "".join(f"M{x} {y}h0" for x, y in scaled) if s.style == "dots" or len(scaled) == 1 else ""
        lines.append(DrawnLine(s.name, s.style, s.tint, path, dots))
    return Chart(
        key=key,
        title=title,
        unit=unit,
        description=_description(drawn, unit),
        lines=lines,
        x_ticks=[Tick(100 * x / last, compact(x)) for x in _ticks(0, last, inside=True)],
        y_ticks=[
            Tick(100 * from_top(y), label) for y, label in zip(y_ticks, _labels(y_ticks, logarithmic), strict=True)
        ],
        marks=[Tick(100 * x / last, label) for x, label in marks],
        stops=_stops(drawn, last),
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the points with each y replaced by the mean of it and its neighbours."""
    reach = max(len(points) // WINDOWS // 2, 1)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)  # equally many on both sides, so that the ends are not biased
        means.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return means


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return the first, lowest, highest and last point of each of BUCKETS parts of the x axis. No spike is lost."""
    if len(points) <= 4 * BUCKETS:
        return list(points)
    start, width = points[0][0], (points[-1][0] - points[0][0]) / BUCKETS or 1
    buckets: dict[int, list[int]] = {}
    for i, (x, _) in enumerate(points):
        buckets.setdefault(min(int((x - start) / width), BUCKETS - 1), []).append(i)
    kept_indices: set[int] = set()
    for indices in buckets.values():
        kept_indices |= {indices[0], indices[-1]}
        kept_indices |= {min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept_indices)]


def compact(value: float) -> str:
    """Return a number for an axis: `0`, `250`, `2,500`, `14.2k`, `0.003`, `3e-05`."""
    size, unit = next(((size, unit) for size, unit in UNITS if value >= max(size, 10_000)), (1.0, ""))
    return f"{value / size:.4g}{unit}" if unit else _precise(value)


def _drawable(points: Sequence[Point], logarithmic: bool) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not logarithmic)]


def _ticks(low: float, high: float, inside: bool = False) -> list[float]:
    """Return about five round numbers that enclose low to high, or with `inside` are between them."""
    if high <= low:
        high = low + (abs(low) or 1)
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    end = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return about five numbers that enclose low to high: 1, 2, 5 times powers of ten, or powers of ten alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        below = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        above = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
        return ticks[below : max(above, below + 1) + 1]
    every = math.ceil((last - first) / 5)
    return [10.0**power for power in range(first, last + every, every)]


def _labels(ticks: Sequence[float], logarithmic: bool) -> list[str]:
    """Return the ticks' labels.

    Ticks of a similar size all get the fewest decimals that distinguish them, or all the same unit.
    """
    if logarithmic:
        return [f"{tick:.0e}" if tick >= 1e6 else compact(tick) for tick in ticks]
    steps = [b - a for a, b in pairwise(ticks)]
    if max(map(abs, ticks)) < 1000 and min(steps) >= 0.001 and max(steps) < 1.01 * min(steps):
        decimals = next(n for n in range(5) if all(abs(round(t, n) - t) < 1e-6 for t in ticks) or n == 4)
        return [f"{tick:.{decimals}f}" for tick in ticks]
    size, unit = next(((size, unit) for size, unit in UNITS if max(ticks) >= 2 * size), (1.0, ""))
    return [f"{tick / size:.4g}{unit}" if unit and tick else compact(tick) for tick in ticks]


def _stops(series: Sequence[Series], last: float) -> list[tuple[int, str]]:
    """Return (x in units, text) of positions spread over the axis. The text gives the values of all series there."""
    positions = sorted({x for s in series for x, _ in s.points})
    every = max(1, math.ceil(len(positions) / STOPS))
    dots = {x for s in series if s.style == "dots" for x, _ in s.points[:STOPS]}
    values = [(s.name, dict(s.points)) for s in series]
    stops = []
    for x in sorted({*positions[::every], *positions[-1:], *dots}):
        readings = [f"{name} {_precise(points[x])}" for name, points in values if x in points]
        stops.append((round(x / last * WIDTH), f"step {x:,.0f}: " + ", ".join(readings)))
    return stops


def _precise(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _description(series: Sequence[Series], unit: str) -> str:
    described = [s for s in series if s.style != "raw"] or series
    ends = (f"{s.name} from {_precise(s.points[0][1])} to {_precise(s.points[-1][1])}" for s in described)
    return "; ".join(ends) + (f", in {unit}" if unit else "")
