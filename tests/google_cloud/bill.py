"""Price the account of a stand-in cloud (account.py) by the project's own price list, and hold a test to its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from infra.fleet import prices

Json = dict[str, Any]
REGION = "us-central1"  # whose price for storage is taken: a bucket's own is not in the account


@dataclass(frozen=True)
class Line:
    """A line of a bill."""

    what: str
    seconds: float | None  # None for what is billed by its number
    usd: float


def bill(account: Json) -> list[Line]:
    """Return what the account costs at list prices, by resource; a price that is not in the list counts as 0."""
    lines = []
    for entry in account["entries"]:
        seconds = (account["now"] if entry["until"] is None else entry["until"]) - entry["since"]
        lines.append(Line(*_priced(entry, seconds)))
    for counted in account["counts"]:
        each = prices.anywhere(f"{counted['what'].lower().replace(' ', '_')}_thousand") or 0.0
        what = f"{counted['number']} {counted['what']} of {counted['who']}"
        lines.append(Line(what, None, each * counted["number"] / 1000))
    return lines


def _priced(entry: Json, seconds: float) -> tuple[str, float, float]:
    hours, what, region = seconds / 3600, entry["what"], entry["what"].get("zone", "").rpartition("-")[0]
    name = f"{entry['kind']} {entry['name']}"
    match entry["kind"]:
        case "VM":
            kind, number = next(iter(what["accelerators"].items()), ("", 0))
            cost = prices.machine_cost(region, what["type"], what["spot"], kind, number)
            gpus = f", {number} x {kind}" if number else ""
            return f"{name}: {what['type']}{', Spot' if what['spot'] else ''}{gpus}", seconds, cost.usd * hours
        case "disk":
            month = prices.book()["regions"].get(region, {}).get("disk_gb_month", {}).get("price", 0.0)
            return (
                f"{name}: {what['type']}, {what['gb']:g} GB",
                seconds,
                what["gb"] * month / prices.HOURS_A_MONTH * hours,
            )
        case "NAT gateway" | "address":
            return name, seconds, (prices.anywhere("nat_address_hour") or 0.0) * hours
        case "scheduler job":
            return name, seconds, (prices.anywhere("scheduler_job_month") or 0.0) / prices.HOURS_A_MONTH * hours
    return name, seconds, 0.0


def table(account: Json) -> str:
    """Return the bill as text, with what is stored."""
    rows = [
        f"{line.usd:10.6f} USD  {'' if line.seconds is None else f'{line.seconds:8.1f} s':>10}  {line.what}"
        for line in bill(account)
    ]
    for bucket, by_day in account["stored"].items():
        dead = {day: kept["noncurrent"] + kept["softDeleted"] for day, kept in by_day.items()}
        after = ", ".join(f"{size} after {day} days" for day, size in dead.items() if day != "0")
        month = sum(by_day["0"].values()) / 1e9 * (prices.storage_gb_month(REGION) or 0.0)
        held = f"{by_day['0']['live']} bytes, and {dead['0']} of old versions ({after})"
        rows.append(f"{month:10.6f} USD  {'a month':>10}  gs://{bucket}: {held}")
    return "\n".join(rows)


def nothing_runs_on(ask: Callable[[], Json], node: pytest.Item) -> None:
    """Fail a test at whose end something bills on, unless @pytest.mark.runs_on("the reason") says why it may.

    ask: returns the account.
    """
    if (mark := node.get_closest_marker("runs_on")) is not None:
        assert mark.args, "runs_on needs the reason"
        return
    account = ask()
    print(f"the account of {node.name}:\n{table(account)}")
    found = account["runs_on"]
    assert not found, 'something bills on; end it, or say why by @pytest.mark.runs_on("..."): ' + "; ".join(found)
