"""When a run's attempts took steps, when its machines were there, and what happened to them."""

from dataclasses import dataclass
from typing import Literal

from trainer.contract.wording import duration
from trainer.report.charts import Tick
from trainer.runs.outcome import Outcome, boots
from trainer.runs.records import Event, MachineStatus

EVENTS, MACHINES = 200, 40  # that are shown, the newest and those with something to tell
MARKS = {"exit": "a process ended", "notice": "told to leave", "lost": "lost without a word"}
STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800]


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
    """None for a run that no machine was seen of."""
    began, ended = this.began, this.ended
    if began is None or ended is None:
        return None
    length = max(ended - began, 1.0)

    def at(moment: float) -> float:
        return round(min(max(100 * (moment - began) / length, 0.0), 100.0), 3)

    def bar(since: float, until: float, words: str, kind: Literal["attempt", "machine"]) -> Bar:
        return Bar(at(since), max(at(until) - at(since), 0.2), words, kind)

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
    shown = _shown(this.machines)
    for machine in shown:
        there = [bar(a, b, f"{machine.name} was there for {duration(b - a)}", "machine") for a, b in boots(machine)]
        marks = [
            Mark(at(e.time), e.kind, f"{duration(e.time - began)} {what(e)}")
            for e in machine.history
            if e.kind in MARKS
        ]
        rows.append(Row(machine.name, there, marks))
    step = next((s for s in STEPS if length / s <= 6), STEPS[-1])
    ticks = [Tick(at(began + s), duration(s)) for s in range(0, int(length) + 1, step)]
    return Timeline(rows, ticks, len(this.machines) - len(shown))


def _shown(machines: list[MachineStatus]) -> list[MachineStatus]:
    """All, or of very many those to which something happened, and the first ones."""
    if len(machines) <= MACHINES:
        return machines
    order = sorted(machines, key=lambda m: not any(event.kind in MARKS for event in m.history))
    chosen = {machine.name for machine in order[:MACHINES]}
    return [machine for machine in machines if machine.name in chosen]


def events(this: Outcome) -> list[tuple[float, str, str]]:
    """(seconds since the beginning, who, what), in order of time; of very many the newest."""
    began = this.began or 0.0
    found = [(event.time - began, m.name, what(event)) for m in this.machines for event in m.history]
    found += [(a.began - began, "run", f"attempt {a.number} took its first step, {a.first:,}") for a in this.attempts]
    for notice in this.notices:
        words = f"the checkpoint of step {notice.step:,} was whole {notice.notice_seconds:.1f} s after the notice"
        found.append((notice.time - began, "run", words))
    return sorted(found)[-EVENTS:]


def what(event: Event) -> str:
    words = {"started": "started", "back": "came back", "left": "left"} | MARKS
    return words[event.kind] + (f": {event.words}" if event.words else "")
