"""Ask before you pay: how long a stack's run takes, what it costs, what it holds in memory, and other machines for it.

Ranges, not points; --origins tells where each number comes from. Finished runs in the stack's bucket are looked at
first: what they reached is preferred to data sheets, here and in every later preview.
"""

import argparse
import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.estimate import alternatives, measured
from infra.estimate.alternatives import Alternative, Choice
from infra.estimate.estimate import estimate
from infra.estimate.parts import Estimate, Part, rounded, spread
from infra.fleet import prices
from infra.fleet.catalog import machine_label
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.load import load
from infra.sizing.ranges import Range
from infra.stack.config import ConfigError, StackConfig
from infra.stack.reading import stack_values
from scripts.support import common
from scripts.support.common import UserError, run_main
from trainer.contract.wording import ROLE_PLURALS
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

ROWS = 12  # alternatives that are shown
PATIENCE = 15.0  # seconds for a bucket to answer
NO_PROJECT = "not-set-yet"


def read_stack(stack: str, root: Path, folder: Path | None = None) -> StackConfig:
    """Load a stack as `pulumi preview` does, but without a need for a Google project to see what it would cost.

    folder: where the stack's file is, if not in the root. All its paths start from the root.
    """
    try:
        values, provider = stack_values(stack, folder or root)
        if values.get("platform") == "google":
            provider = {"project": NO_PROJECT, **provider}
        return load(values, stack, root, provider)
    except ConfigError as error:
        raise UserError(str(error)) from None


def refresh(config: StackConfig) -> list[str]:
    """Add the finished runs of the stack's bucket to those that are known. Return what a person should know of it."""
    known_runs = measured.read(config.root)
    if config.google and config.project == NO_PROJECT:
        return ["gcp:project is not set, so there is no bucket that could hold finished runs"]
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(measured.collect(open_storage(config.bucket), config.root, known_runs))
        except StorageError as error:
            answer.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)  # the library tries for minutes where there is no network
    asking.start()
    asking.join(PATIENCE)
    if not answer or isinstance(answer[0], str):
        why = answer[0] if answer else f"no answer in {PATIENCE:g} s"
        return [f"finished runs in {config.bucket} were not looked at: {why}"]
    fresh, silent = answer[0]
    if fresh:
        measured.write(config.root, known_runs + fresh)
    notes = [f"learned from run {run.run}: {run.flops / 1e9:.3g} GFLOP/s a trainer on {run.machine}" for run in fresh]
    if silent:
        notes.append(
            f"{silent} runs in {config.bucket} say nothing: of another version, too short, or of mixed machines"
        )
    return notes


def span(hours: Range | None) -> str:
    """Return hours in words: `11 to 49 min`, `2.4 to 7 h`, `1.2 to 5 days`."""
    if hours is None:
        return "unknown"
    for unit, size, most in (("s", 3600, 0.04), ("min", 60, 2), ("h", 1, 72)):
        if hours.high < most:
            return f"{_digits(hours.low * size)} to {_digits(hours.high * size)} {unit}"
    return f"{_digits(hours.low / 24)} to {_digits(hours.high / 24)} days"


def dollars(cost: Range | None, unknown: bool = False) -> str:
    if cost is None:
        return "unknown"
    low, high = _digits(cost.low), _digits(cost.high)
    return ("at least " if unknown else "") + (low if low == high else f"{low} to {high}")


def _digits(number: float) -> str:
    return f"{rounded(number):,.0f}" if abs(number) >= 10 else f"{rounded(number):.2g}"


def show(config: StackConfig, estimated: Estimate, notes: list[str], origins: bool, console: Console) -> None:
    """Print the estimate itself."""
    where = f" in {config.region}" if config.google else ", on this machine"
    text = Text.assemble(
        (config.stack, "bold"), f": {config.file.model.name}{where}: ", (span(estimated.hours), "bold")
    )
    if config.google:
        text.append(", ")
        text.append(f"{dollars(estimated.cost, bool(estimated.unknown))} USD", "bold")
        more = "" if estimated.hourly.exact else "at least "
        text.append(f" ({more}{estimated.hourly.usd:.2f} USD an hour)")
    else:
        text.append("; it costs nothing but this machine")
    console.print(text)
    if estimated.hours is not None:
        speed = f"{_digits(estimated.tokens_per_second.low)} to {_digits(estimated.tokens_per_second.high)} tokens/s"
        console.print(f"{speed}, once it trains", highlight=False)
        if origins:
            _rows(
                console,
                "what follows from the stack file",
                ("", "", "origin"),
                [(figure.name, figure.value, figure.origin) for figure in estimated.figures],
            )
        _parts(console, "time", estimated.time, span, origins)
        if config.google:
            _parts(console, "USD", estimated.costs, dollars, origins)
        columns = ("memory of", "least", "usual", "has", *(("what takes it",) if origins else ()))
        _rows(
            console,
            "memory, GB",
            columns,
            [
                (
                    f"{ROLE_PLURALS[need.role]}: {need.where}",
                    *(f"{amount / 1e9:.2g}" for amount in (need.least, need.usual)),
                    f"{need.has / 1e9:.0f}" if need.has else "",
                    *((need.of,) if origins else ()),
                )
                for need in estimated.memory
            ],
        )
    for note in [*estimated.notes, *notes]:
        console.print(Text(f"- {note}"))


def _parts(console: Console, title: str, parts: tuple[Part, ...], format_amount: Any, origins: bool) -> None:
    whole = sum(part.amount.mean for part in parts) or 1.0
    rows = [(p.name, format_amount(p.amount), f"{p.amount.mean / whole:.0%}", p.origin) for p in parts]
    shown = 4 if origins else 3
    _rows(console, title, ("part", title, "share", "origin")[:shown], [row[:shown] for row in rows])


def _rows(console: Console, title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def compared(choice: Choice) -> list[tuple[Alternative, Alternative | None]]:
    """Return, by cost, the cheapest machines of each kind on demand, and the same with Spot workers if possible."""
    kinds: dict[tuple[Any, ...], Alternative] = {}
    spot = {alternative.shape: alternative for alternative in choice.every if alternative.config.file.machines.spot}
    for alternative in choice.every:
        if not alternative.config.file.machines.spot:
            master = alternative.fleet.master
            kind = (master.accelerator, master.accelerators) if master.accelerators else (master.machine.name,)
            kinds.setdefault((*kind, alternative.config.workers > 0), alternative)
    return [(alternative, spot.get(alternative.shape)) for alternative in kinds.values()]


def show_alternatives(config: StackConfig, fleet: Fleet, estimated: Estimate, choice: Choice, console: Console) -> None:
    rows = compared(choice)
    table = Table(
        title=f"other machines in {config.region}, on demand and with Spot workers; do they fit the limits",
        title_justify="left",
    )
    table.add_column("machines")
    for column in ("time", "USD", "workers Spot", "fits"):
        table.add_column(column, no_wrap=True)
    for row, spot in rows[:ROWS]:
        costs = [dollars(a.estimate.cost, bool(a.estimate.unknown)) if a else "" for a in (row, spot)]
        within = "yes" if row.fits else "Spot" if spot and spot.fits else "unknown" if row.fits is None else "no"
        table.add_row(*map(Text, (row.shape, span(row.estimate.hours), *costs, within)))
    console.print(table)
    unpriced = dict.fromkeys(
        price_name for row, _ in rows[:ROWS] if row.fits is None for price_name in row.estimate.unknown
    )
    if unpriced:
        console.print(f"unknown: no price for {', '.join(unpriced)}", highlight=False)
    if len(rows) > ROWS:
        console.print(f"{len(rows) - ROWS} dearer ones are in --json", highlight=False)
    for label, best in (("cheapest", choice.cheapest), ("fastest", choice.fastest)):
        console.print(Text.assemble((f"{label} within the limits: ", "bold"), _best(best)))
    if config.google and estimated.hours is not None:
        _rows(
            console,
            "these machines in other regions (zones and capacity not looked at)",
            ("region", "USD an hour", "USD"),
            [
                (
                    region,
                    ("" if regional.hourly.exact else "at least ") + f"{regional.hourly.usd:.2f}",
                    dollars(regional.cost, bool(regional.unknown)),
                )
                for region, regional in alternatives.regions(config)
            ],
        )
    if near := elsewhere(fleet):
        _rows(
            console,
            "the nearest machines of other clouds at list price, to compare: nothing runs there",
            ("for", "cloud", "machine", "USD/h", "Spot", "USD as long", "as of"),
            [
                (
                    f"{count} x {name}",
                    cloud,
                    *(_other(offer, count, estimated.hours) if offer else ("none near", *[""] * 4)),
                )
                for name, count, cloud, offer in near
            ],
        )


def _other(offer: prices.Equivalent, count: int, hours: Range | None) -> tuple[str, ...]:
    spot = f"{offer.spot:.3g}" if offer.spot else "unknown"
    long = dollars(hours.times(count * offer.on_demand) if hours else None)
    return (f"{offer.machine} ({offer.region})", f"{offer.on_demand:.3g}", spot, long, offer.date)


def _best(best: Alternative | None) -> str:
    if best is None:
        return "none; raise limits.maxHours or limits.maxCostUsd, or train for fewer steps"
    spot = ", Spot workers" if best.config.file.machines.spot else ""
    return (
        f"{best.shape}{spot}: {span(best.estimate.hours)},"
        f" {dollars(best.estimate.cost, bool(best.estimate.unknown))} USD"
    )


def elsewhere(fleet: Fleet) -> list[tuple[str, int, str, prices.Equivalent | None]]:
    """Return each kind of rented machines in words, how many there are, and the nearest machine of each other cloud."""
    counted: dict[tuple[str, str, int], int] = {}
    for machines in () if fleet.local else fleet.roles:
        kind = (machines.machine.name, machines.accelerator, machines.accelerators)
        counted[kind] = counted.get(kind, 0) + machines.count
    return [
        (machine_label(*kind), count, cloud, offer)
        for kind, count in counted.items()
        for cloud, offer in prices.elsewhere(*kind).items()
    ]


def as_json(config: StackConfig, fleet: Fleet, estimated: Estimate, choice: Choice, notes: list[str]) -> dict[str, Any]:
    """Return the estimate as JSON. Keys and order stay the same; amounts have two significant digits."""

    def alternative(candidate: Alternative | None) -> dict[str, Any] | None:
        if candidate is None:
            return None
        training, machines = candidate.config.file.training_input, candidate.config.file.machines
        return {
            "machines": candidate.shape,
            "masterType": training.master_type,
            "accelerator": machines.accelerator.to_json() if machines.accelerator else None,
            "workerCount": training.worker_count,
            "parameterServerCount": training.parameter_server_count,
            "microBatchSize": training.hyperparameters.micro_batch_size,
            "recompute": training.hyperparameters.recompute,
            "parallelism": candidate.config.file.parallel.parallelism,
            "spot": machines.spot,
            "hours": spread(candidate.estimate.hours),
            "usd": spread(candidate.estimate.cost, bool(candidate.estimate.unknown)),
            "withinLimits": candidate.fits,
            "unpriced": list(candidate.estimate.unknown),
        }

    def parts(of: tuple[Part, ...]) -> list[dict[str, Any]]:
        return [{"name": p.name, **spread(p.amount, bool(p.unknown)), "origin": p.origin} for p in of]

    return {
        "stack": config.stack,
        "platform": config.file.platform,
        "hours": spread(estimated.hours),
        "usd": spread(estimated.cost, bool(estimated.unknown)),
        "hourlyUsd": round(estimated.hourly.usd, 4),
        "unpriced": list(estimated.unknown),
        "tokensPerSecond": spread(estimated.tokens_per_second),
        "measuredRun": estimated.run or None,
        "figures": [{"name": f.name, "value": f.value, "origin": f.origin} for f in estimated.figures],
        "time": parts(estimated.time),
        "costs": parts(estimated.costs),
        "memory": [
            {
                "role": need.role,
                "where": need.where,
                "leastGb": rounded(need.least / 1e9),
                "usualGb": rounded(need.usual / 1e9),
                "hasGb": rounded(need.has / 1e9) if need.has else None,
                "of": need.of,
            }
            for need in estimated.memory
        ],
        "alternatives": [alternative(candidate) for candidate in choice.every],
        "cheapest": alternative(choice.cheapest),
        "fastest": alternative(choice.fastest),
        "regions": {
            region: {"hourlyUsd": round(regional.hourly.usd, 4), "usd": spread(regional.cost, bool(regional.unknown))}
            for region, regional in (alternatives.regions(config) if config.google else ())
        },
        "elsewhere": [
            {"for": name, "count": count, "cloud": cloud, **(asdict(offer) if offer else {"machine": None})}
            for name, count, cloud, offer in elsewhere(fleet)
        ],
        "notes": [*estimated.notes, *notes],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.estimate", description=__doc__)
    parser.add_argument("--stack", default="local", help="the stack (default: %(default)s)")
    parser.add_argument(
        "--in", dest="folder", type=Path, metavar="FOLDER", help="where its file lies, if not in this checkout itself"
    )
    parser.add_argument("--origins", action="store_true", help="show where each number comes from")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args(arguments)
    config = read_stack(options.stack, common.CHECKOUT, options.folder)
    console = Console()
    with Console(stderr=True).status("looking at finished runs"):
        notes = refresh(config)
    fleet = resolve_fleet(config)
    estimated, choice = estimate(config, fleet), alternatives.compare(config, fleet)
    if options.json:
        print(json.dumps(as_json(config, fleet, estimated, choice, notes), indent=2))
    else:
        show(config, estimated, notes, options.origins, console)
        if choice.every:
            show_alternatives(config, fleet, estimated, choice, console)
    return 0


if __name__ == "__main__":
    run_main(main)
