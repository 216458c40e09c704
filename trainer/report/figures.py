"""Compute the figures of a run's page, as text: its headlines, its quantities, its costs."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from trainer.contract.settings import describe
from trainer.contract.wording import ROLE_PLURALS, duration
from trainer.runs import outcome
from trainer.runs.outcome import Outcome
from trainer.runs.placement import MOST_MOVES, zone_of
from trainer.runs.records import FINAL_STATES, Record

AT_LEAST = "at least "


@dataclass(frozen=True)
class CostLine:
    """The costs of one role's machines."""

    name: str
    hardware: str
    machines: int
    hours: str
    price: str  # per hour and machine
    dollars: str
    each: list[tuple[str, str, str]]  # (name, hours, dollars) of each machine


def loss(value: float | None) -> str:
    return "–" if value is None else fixed(value, 4)


def fixed(value: float, decimals: int) -> str:
    """Return a number with `decimals` decimals, or in scientific notation if it is very large: losses may diverge."""
    return f"{value:,.{decimals}f}" if abs(value) < 10_000 else f"{value:.2e}"


def speed(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.095 or not value else f"${value:.4f}"


def headlines(this: Outcome) -> list[tuple[str, str, str]]:
    """Return (name, value, explanation) of the most important results."""
    hyper = this.spec.hyperparameters
    first = this.evaluations[0].validation_loss if this.evaluations else None
    tokens = this.step * hyper.batch_size * hyper.sequence_length
    lines = [
        ("Validation loss", loss(this.validation), f"from {first:.4f}" if first is not None else "nats a token"),
        ("Training loss", loss(this.loss), f"mean of the last {min(outcome.RECENT, max(len(this.steps), 1))} steps"),
        ("Steps", f"{this.step:,}", f"of {hyper.steps:,}; {_big(tokens)} tokens"),
        ("Time", duration(this.seconds) if this.seconds is not None else "–", _attempts(this)),
        ("Tokens a second", speed(this.tokens_per_second), _mfu(this)),
    ]
    if zone := zone_of(this.placement, this.machines):
        lines.append(("Zone", zone, _stay(this)))
    if this.spec.hardware:
        cost, explanation = total(this), "list price × time"
        if cost.startswith(AT_LEAST):
            cost, explanation = cost.removeprefix(AT_LEAST), f"{AT_LEAST}this: a price is not known"
        lines.append(("Cost", cost, explanation))
    return lines


def _attempts(this: Outcome) -> str:
    count = len(this.attempts)
    return f"{count} attempts" if count > 1 else "one attempt" if count else ""


def _stay(this: Outcome) -> str:
    """Return how often the run moved, or since when it waits for machines."""
    placement = this.placement
    if placement is None:
        return ""
    if placement.waiting_since is not None and this.state not in FINAL_STATES:
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(placement.waiting_since))
        return f"waits for machines since {since}"
    return f"{len(placement.moves)} of {MOST_MOVES} moves" if placement.moves else ""


def _mfu(this: Outcome) -> str:
    return "median step" if this.mfu is None else f"{this.mfu:.1%} of the peak (MFU)"


def _big(count: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"


Pick = Callable[[Record], float | None]
FIELDS: list[tuple[str, Pick, Callable[[float], str]]] = [  # name, value, its text
    ("training loss", lambda r: r.loss, loss),
    ("tokens a second", lambda r: r.tokens_per_second, "{:,.0f}".format),
    ("seconds a step", lambda r: r.step_seconds, lambda value: fixed(value, 3)),
    ("MFU", lambda r: r.mfu, "{:.1%}".format),
    ("gradient norm", lambda r: r.gradient_norm, lambda value: fixed(value, 3)),
    ("waiting for the network", lambda r: communication_share(r), "{:.1%}".format),
]


def communication_share(record: Record) -> float | None:
    """Return the fraction of a step's time in which trainers waited for gradients and parameters to travel."""
    if record.communication_seconds is None or not record.step_seconds:
        return None
    return min(record.communication_seconds / record.step_seconds, 1.0)


def figures(this: Outcome) -> list[tuple[str, list[str]]]:
    """Return (name, [last, lowest, highest, mean]) of each quantity that was measured."""
    columns: list[tuple[str, list[float], Callable[[float], str]]]
    columns = [("validation loss", _values(this.evaluations, lambda r: r.validation_loss), loss)]
    columns += [(name, _values(this.steps, pick), to_text) for name, pick, to_text in FIELDS]
    return [
        (name, [to_text(value) for value in (values[-1], min(values), max(values), fmean(values))])
        for name, values, to_text in columns
        if values
    ]


def _values(records: Iterable[Record], pick: Pick) -> list[float]:
    return [value for record in records if (value := pick(record)) is not None]


def costs(this: Outcome) -> list[CostLine]:
    """Return a line for each role that has machines."""
    lines = []
    for role, name in ROLE_PLURALS.items():
        machines = [machine for machine in this.machines if machine.role == role]
        if not machines:
            continue
        hardware = this.spec.hardware.get(role)
        description = "this machine" if hardware is None else describe(hardware)
        price = hardware.usd_per_hour if hardware else None
        each = [outcome.cost(this.spec, machine) for machine in machines]
        lines.append(
            CostLine(
                name=name,
                hardware=description,
                machines=len(machines),
                hours=f"{sum(cost.hours for cost in each):,.2f}",
                price="unknown" if price is None else f"${price:,.4f}",
                dollars=_sum_text(each),
                each=[(m.name, f"{c.hours:,.2f}", _sum_text([c])) for m, c in zip(machines, each, strict=True)],
            )
        )
    return lines


def total(this: Outcome) -> str:
    """Return the cost of all machines as text, with "at least" if a price is not known."""
    return _sum_text([outcome.cost(this.spec, machine) for machine in this.machines])


def _sum_text(costs: Sequence[outcome.MachineCost]) -> str:
    known_dollars = [cost.dollars for cost in costs if cost.dollars is not None]
    if costs and not known_dollars:
        return "unknown"
    return (AT_LEAST if len(known_dollars) < len(costs) else "") + dollars(sum(known_dollars))
