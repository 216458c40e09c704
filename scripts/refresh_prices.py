"""Renew infra/fleet/prices.yaml from Google's billing catalog: a table of what changed, then the file.

A price that is more than twice or less than half the old one is kept as it was, unless --accept says that it is right.
So is one that the catalog does not have any more: its source tells its age. Egress, scheduler, NAT and the other clouds
are not renewed. Exit code: 1 if a price was not taken.
"""

import argparse
import io
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from scripts.support.common import CHECKOUT, run_main
from scripts.support.skus import COMPUTE, STORAGE, Key, Skus
from trainer.gcloud.api import ApiError, GoogleApi

BOOK = CHECKOUT / "infra" / "fleet" / "prices.yaml"
JUMP = 2.0
PRICES = ("on_demand", "spot", "price")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Change:
    """What is to become of one price; None is unknown."""

    key: Key
    old: float | None
    new: float | None
    kept: str = ""  # why it stays as it is

    @property
    def name(self) -> str:
        return " ".join(self.key[1:])


def read_catalog(api: GoogleApi, regions: list[str]) -> Skus:
    """What Google sells in some regions. Raises ApiError."""
    skus = Skus()
    for service in (COMPUTE, STORAGE):
        skus.add(api.pages("cloudbilling", f"{service}/skus", "skus", {"currencyCode": "USD"}), regions)
    return skus


def compare(book: MutableMapping[str, Any], skus: Skus, accept: bool) -> list[Change]:
    """Every price of the book that the catalog could have, in the book's order."""
    found: dict[Key, float | None] = {}
    for region in book["regions"]:
        found.update(skus.prices(region))
    return [change for key, entry in entries(book) for change in _of_entry(key, entry, found, accept)]


def entries(book: MutableMapping[str, Any]) -> Iterator[tuple[Key, MutableMapping[str, Any]]]:
    """Everything in the regions that has a source, with where it stands."""
    for region, here in book["regions"].items():
        for name, node in here.items():
            if "source" in node:
                yield ("regions", region, name), node
            else:
                yield from ((("regions", region, name, item), entry) for item, entry in node.items())


def _of_entry(
    at: Key, entry: MutableMapping[str, Any], found: dict[Key, float | None], accept: bool
) -> Iterator[Change]:
    """An entry has one source, so that its prices are renewed together or not at all."""
    changes = []
    for kind in PRICES:
        if kind in entry:
            old = None if entry[kind] == UNKNOWN else float(entry[kind])
            new = found.get((*at, kind))
            changes.append(Change((*at, kind), old, None if new is None else round(new, 6), ""))
    why = next((why for change in changes if (why := _doubt(change, accept))), "")
    prices = {change.key[-1]: change.new for change in changes}
    spot, on_demand = prices.get("spot"), prices.get("on_demand")
    if not why and spot is not None and on_demand is not None and spot >= on_demand:
        why = f"Spot costs {spot:g} and on demand {on_demand:g}"
    for change in changes:
        yield Change(change.key, change.old, change.new, why)


def _doubt(change: Change, accept: bool) -> str:
    if change.old is None:
        return ""
    if change.new is None:
        return "not in the catalog"
    if not accept and not change.old / JUMP <= change.new <= change.old * JUMP:
        return f"{change.key[-1]} is {change.new / change.old:.2g} times as much; --accept takes it"
    return ""


def renew(book: MutableMapping[str, Any], changes: list[Change], today: date) -> None:
    """Writes what is not kept into the book, with its source and date; a source that nothing names any more goes."""
    source = f"google-{today}"
    taken = {change.key: change.new for change in changes if not change.kept}
    renewed = False
    for at, entry in entries(book):
        mine = {key[-1]: new for key, new in taken.items() if key[:-1] == at}
        if not mine or all(new is None for new in mine.values()):
            continue
        for kind, new in mine.items():
            entry[kind] = UNKNOWN if new is None else new
        entry["source"], renewed = source, True
    if renewed:
        made = CommentedMap(date=today, what="Google's billing catalog, read by scripts.refresh_prices")
        made.fa.set_flow_style()  # on one line, as the others
        book["sources"][source] = made
    named = {entry["source"] for _, entry in entries(book)}
    named |= {entry["source"] for entry in book.values() if "source" in entry}  # the same in all regions
    for there in book["elsewhere"].values():
        named |= {there["source"], *(machine.get("source", there["source"]) for machine in there["machines"].values())}
    for name in [name for name in book["sources"] if name not in named]:
        del book["sources"][name]


def show(changes: list[Change], console: Console) -> None:
    """The prices that change or are kept against the catalog; the rest in one line."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("price", "old", "new", ""):
        table.add_column(column, justify="right" if column in ("old", "new") else "left", overflow="fold")
    told = [change for change in changes if change.old != change.new]
    for change in told:
        old, new = (UNKNOWN if usd is None else f"{usd:g}" for usd in (change.old, change.new))
        table.add_row(change.name, old, new, f"kept: {change.kept}" if change.kept else _percent(change))
    if told:
        console.print(table)
    kept = sum(bool(change.kept) for change in changes)
    words = f"{len(changes)} prices: {len(changes) - len(told)} as before, {sum(not c.kept for c in told)} renewed"
    console.print(f"{words}, {kept} kept", highlight=False)


def _percent(change: Change) -> str:
    return f"{change.new / change.old - 1:+.1%}" if change.old and change.new is not None else ""


def load(text: str) -> tuple[YAML, MutableMapping[str, Any]]:
    """The book as it can be written back, comments and order included."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True  # an entry stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    book: MutableMapping[str, Any] = yaml.load(text)
    return yaml, book


def main(arguments: list[str] | None = None, path: Path = BOOK) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.refresh_prices", description=__doc__)
    parser.add_argument(
        "--accept", action="store_true", help=f"take prices that changed by more than {JUMP:g} times too"
    )
    options = parser.parse_args(arguments)
    console = Console()
    yaml, book = load(path.read_text(encoding="utf-8"))
    with console.status("reading Google's billing catalog"):
        skus = read_catalog(GoogleApi(), list(book["regions"]))
        changes = compare(book, skus, options.accept)
    for doubt in skus.doubts:
        console.print(f"note: {doubt}", highlight=False, markup=False, soft_wrap=True)
    show(changes, console)
    renew(book, changes, datetime.now(UTC).date())
    out = io.StringIO()
    yaml.dump(book, out)
    path.write_text(out.getvalue(), encoding="utf-8")
    return 1 if any(change.kept for change in changes) else 0


if __name__ == "__main__":
    run_main(main, ApiError)
