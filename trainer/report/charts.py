"""Curves as paths: what of a chart is arithmetic. The page draws them (trainer/report/page.html).

A plot is WIDTH x HEIGHT units that the page stretches to the place it has; its lines keep their width, and labels are
text beside it, so that nothing gets small on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 2000, 1000
BUCKETS = 400  # of a line that has more points: of each, those that matter are drawn
WINDOWS = 60  # a smoothed line is a mean over about such a part of all points
UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
STOPS = 200  # places at which a pointer reads values
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """style: "raw" (thin), "line" or "dots" (a line with a dot at each point). tint: which of the page's colours."""

    name: str
    style: str
    points: Sequence[Point]  # by x
    tint: int = 0


@dataclass(frozen=True)
class Line:
    name: str
    style: str
    tint: int
    path: str
    dots: str


@dataclass(frozen=True)
class Tick:
    at: float  # percent, from the left or from above
    label: str


@dataclass(frozen=True)
class Chart:
    key: str
    title: str
    unit: str
    description: str  # for those who do not see it
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick] = field(default_factory=list)  # moments, by x
    stops: list[tuple[int, str]] = field(default_factory=list)  # (x in units, what is read there), by x


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
    """None if there is no point to draw. last: the x axis goes from 0 to it; zero: the y axis begins at 0."""
    drawn = [Series(s.name, s.style, _drawable(s.points, logarithmic), s.tint) for s in series]
    drawn = [s for s in drawn if s.points]
    values = [y for s in drawn for _, y in s.points]
    if not values:
        return None
    marks_y = _log_ticks(min(values), max(values)) if logarithmic else _ticks(0 if zero else min(values), max(values))
    if all(y == round(y) for y in values):  # a count
        marks_y = [tick for tick in marks_y if tick == round(tick)]
    low, high = marks_y[0], marks_y[-1]
    last = max(last, max(x for s in drawn for x, _ in s.points), 1)

    def down(y: float) -> float:
        if logarithmic:
            y, bottom, top = math.log(y), math.log(low), math.log(high)
        else:
            bottom, top = low, high
        return (top - y) / (top - bottom)

    def place(points: Sequence[Point]) -> list[tuple[int, int]]:
        return [(round(x / last * WIDTH), round(down(y) * HEIGHT)) for x, y in points]

    lines = []
    for s in drawn:
        at = place(thinned(s.points))
        path = "M" + "L".join(f"{x} {y}" for x, y in at) if len(at) > 1 else ""
        dots = "".join(f"M{x} {y}h0" for x, y in at) if s.style == "dots" or len(at) == 1 else ""
        lines.append(Line(s.name, s.style, s.tint, path, dots))
    return Chart(
        key=key,
        title=title,
        unit=unit,
        description=_description(drawn, unit),
        lines=lines,
        x_ticks=[Tick(100 * x / last, compact(x)) for x in _ticks(0, last, inside=True)],
        y_ticks=[Tick(100 * down(y), label) for y, label in zip(marks_y, _labels(marks_y, logarithmic), strict=True)],
        marks=[Tick(100 * x / last, words) for x, words in marks],
        stops=_stops(drawn, last),
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each point's mean with its neighbours."""
    reach = max(len(points) // WINDOWS // 2, 1)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)  # as many on either side, or the ends would lean inwards
        found.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return found


def thinned(points: Sequence[Point]) -> list[Point]:
    """Of each of BUCKETS parts of the x axis the first, lowest, highest and last point: no spike is lost."""
    if len(points) <= 4 * BUCKETS:
        return list(points)
    start, width = points[0][0], (points[-1][0] - points[0][0]) / BUCKETS or 1
    buckets: dict[int, list[int]] = {}
    for i, (x, _) in enumerate(points):
        buckets.setdefault(min(int((x - start) / width), BUCKETS - 1), []).append(i)
    kept: set[int] = set()
    for indices in buckets.values():
        kept |= {indices[0], indices[-1]}
        kept |= {min(indices, key=lambda i: points[i][1]), max(indices, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def compact(value: float) -> str:
    """For an axis: `0`, `250`, `2,500`, `14.2k`, `0.003`, `3e-05`."""
    size, unit = next(((size, unit) for size, unit in UNITS if value >= max(size, 10_000)), (1.0, ""))
    return f"{value / size:.4g}{unit}" if unit else _precise(value)


def _drawable(points: Sequence[Point], logarithmic: bool) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not logarithmic)]


def _ticks(low: float, high: float, inside: bool = False) -> list[float]:
    """Round numbers around low to high, or inside of them; about five."""
    if high <= low:
        high = low + (abs(low) or 1)
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    end = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2, 5 times powers of ten, or of powers of ten alone, those around low to high: about five."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        below = max(i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
        above = min(i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
        return ticks[below : max(above, below + 1) + 1]
    every = math.ceil((last - first) / 5)
    return [10.0**power for power in range(first, last + every, every)]


def _labels(ticks: Sequence[float], logarithmic: bool) -> list[str]:
    """All with as many decimals as tell them apart, or all in one unit, where they are of one size."""
    if logarithmic:
        return [f"{tick:.0e}" if tick >= 1e6 else compact(tick) for tick in ticks]
    steps = [b - a for a, b in pairwise(ticks)]
    if max(map(abs, ticks)) < 1000 and min(steps) >= 0.001 and max(steps) < 1.01 * min(steps):
        decimals = next(n for n in range(5) if all(abs(round(t, n) - t) < 1e-6 for t in ticks) or n == 4)
        return [f"{tick:.{decimals}f}" for tick in ticks]
    size, unit = next(((size, unit) for size, unit in UNITS if max(ticks) >= 2 * size), (1.0, ""))
    return [f"{tick / size:.4g}{unit}" if unit and tick else compact(tick) for tick in ticks]


def _stops(series: Sequence[Series], last: float) -> list[tuple[int, str]]:
    """What a pointer reads: the values of all series at places that are spread over the axis."""
    places = sorted({x for s in series for x, _ in s.points})
    every = max(1, math.ceil(len(places) / STOPS))
    chosen = {*places[::every], *places[-1:], *(x for s in series if s.style == "dots" for x, _ in s.points[:STOPS])}
    values = [(s.name, dict(s.points)) for s in series]
    found = []
    for x in sorted(chosen):
        read = [f"{name} {_precise(known[x])}" for name, known in values if x in known]
        found.append((round(x / last * WIDTH), f"step {x:,.0f}: " + ", ".join(read)))
    return found


def _precise(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _description(series: Sequence[Series], unit: str) -> str:
    known = [s for s in series if s.style != "raw"] or series
    ends = (f"{s.name} from {_precise(s.points[0][1])} to {_precise(s.points[-1][1])}" for s in known)
    return "; ".join(ends) + (f", in {unit}" if unit else "")
