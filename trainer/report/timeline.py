"""Compute when a run's attempts took steps, when its machines were present, and which events happened."""

from dataclasses import dataclass
from typing import Literal

from trainer.contract.wording import duration
from trainer.report.charts import Tick
from trainer.runs.outcome import Outcome, boots
from trainer.runs.placement import moves_made
from trainer.runs.records import Event, MachineStatus

SHOWN_EVENTS = 200  # the newest
SHOWN_MACHINES = 40  # preferably those with events
MARKS = {"exit": "a process ended", "notice": "asked to leave", "lost": "lost without a word"}
TICK_SECONDS = [
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800,
]  # fmt: skip


@dataclass(frozen=True)
class Bar:
    left: float  # percent
    width: float
    words: str
    kind: Literal["attempt", "machine"]


@dataclass(frozen=True)
class Mark:
    at: float  # percent
    kind: str  # of MARKS
    words: str


@dataclass(frozen=True)
class Row:
    name: str
    bars: list[Bar]
    marks: list[Mark]


@dataclass(frozen=True)
class Timeline:
    rows: list[Row]
    ticks: list[Tick]
    hidden: int  # machines to which nothing happened, left out


def timeline(this: Outcome) -> Timeline | None:
    """Return the rows of a run's attempts and machines, or None if no machine ever reported."""
    began, ended = this.began, this.ended
    if began is None or ended is None:
        return None
    length = max(ended - began, 1.0)

    def at(moment: float) -> float:
        return round(min(max(100 * (moment - began) / length, 0.0), 100.0), 3)

    def bar(since: float, until: float, text: str, kind: Literal["attempt", "machine"]) -> Bar:
        return Bar(at(since), max(at(until) - at(since), 0.2), text, kind)

    # A row for all attempts.
    attempts = [
        bar(
            a.began,
            a.ended,
            f"attempt {a.number}: steps {a.first:,} to {a.last:,} in {duration(a.ended - a.began)}",
            "attempt",
        )
        for a in this.attempts
    ]
    rows = [Row("steps", attempts, [])]
    # A row for each machine.
    shown = _shown(this.machines)
    for machine in shown:
        present = [bar(a, b, f"{machine.name} was there for {duration(b - a)}", "machine") for a, b in boots(machine)]
        marks = [
            Mark(at(e.time), e.kind, f"{duration(e.time - began)} {event_text(e)}")
            for e in machine.history
            if e.kind in MARKS
        ]
        rows.append(Row(machine.name, present, marks))
    # At most six ticks.
    step = next((s for s in TICK_SECONDS if length / s <= 6), TICK_SECONDS[-1])
    ticks = [Tick(at(began + s), duration(s)) for s in range(0, int(length) + 1, step)]
    return Timeline(rows, ticks, len(this.machines) - len(shown))


def _shown(machines: list[MachineStatus]) -> list[MachineStatus]:
    """Return the machines to show: all, or SHOWN_MACHINES, first those with events and then the first of the others."""
    if len(machines) <= SHOWN_MACHINES:
        return machines
    order = sorted(machines, key=lambda m: not any(event.kind in MARKS for event in m.history))
    chosen = {machine.name for machine in order[:SHOWN_MACHINES]}
    return [machine for machine in machines if machine.name in chosen]


def events(this: Outcome) -> list[tuple[float, str, str]]:
    """Return the newest events in order of time: (seconds since the run began, the machine or "run", the event)."""
    began = this.began or 0.0
    rows = [(event.time - began, m.name, event_text(event)) for m in this.machines for event in m.history]
    rows += [(a.began - began, "run", f"attempt {a.number} took its first step, {a.first:,}") for a in this.attempts]
    if this.placement is not None:
        rows += [(time - began, "run", f"{move}, {count}") for time, move, count in moves_made(this.placement)]
    for notice in this.notices:
        text = f"the checkpoint of step {notice.step:,} was whole {notice.notice_seconds:.1f} s after the notice"
        rows.append((notice.time - began, "run", text))
    return sorted(rows)[-SHOWN_EVENTS:]


def event_text(event: Event) -> str:
    """Return an event as text: its kind, and what the machine reported about it."""
    labels = {"started": "started", "back": "came back", "left": "left"} | MARKS
    return labels[event.kind] + (f": {event.words}" if event.words else "")
