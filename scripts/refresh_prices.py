"""Renew infra/fleet/prices.yaml from Google's billing catalog, and print a table of all changes.

A price that is more than twice or less than half the old one is not renewed, unless --accept is given. A price that the
catalog does not have any more is kept, too; its source tells its age. Egress, scheduler, NAT and other clouds are never
renewed. Exit code: 1 if a price was kept against the catalog.
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
from scripts.support.skus import COMPUTE, STORAGE, PriceKey, Skus
from trainer.gcloud.api import ApiError, GoogleApi

BOOK = CHECKOUT / "infra" / "fleet" / "prices.yaml"
LARGEST_FACTOR = 2.0  # between an old and a new price, without --accept
PRICES = ("on_demand", "spot", "price")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PriceChange:
    """The change of one price, in USD. A price that is not known is None."""

    key: PriceKey
    old: float | None
    new: float | None
    kept: str = ""  # why the old price is kept; empty if it is renewed

    @property
    def name(self) -> str:
        return " ".join(self.key[1:])


def read_catalog(api: GoogleApi, regions: list[str]) -> Skus:
    """Return the SKUs that Google sells in some regions. Raise ApiError if Google refuses."""
    skus = Skus()
    for service in (COMPUTE, STORAGE):
        skus.add(api.pages("cloudbilling", f"{service}/skus", "skus", {"currencyCode": "USD"}), regions)
    return skus


def compare(book: MutableMapping[str, Any], skus: Skus, accept: bool) -> list[PriceChange]:
    """Return a change for every price of the book that the catalog could have, in the book's order."""
    catalog: dict[PriceKey, float | None] = {}
    for region in book["regions"]:
        catalog.update(skus.prices(region))
    return [change for key, entry in entries(book) for change in _entry_changes(key, entry, catalog, accept)]


def entries(book: MutableMapping[str, Any]) -> Iterator[tuple[PriceKey, MutableMapping[str, Any]]]:
    """Yield each entry of the regions that has a source, with its path in the book."""
    for region, nodes in book["regions"].items():
        for name, node in nodes.items():
            if "source" in node:
                yield ("regions", region, name), node
            else:
                yield from ((("regions", region, name, item), entry) for item, entry in node.items())


def _entry_changes(
    at: PriceKey, entry: MutableMapping[str, Any], catalog: dict[PriceKey, float | None], accept: bool
) -> Iterator[PriceChange]:
    """Yield the changes of an entry's prices. An entry has one source, so all are renewed or none is."""
    changes = []
    for kind in PRICES:
        if kind in entry:
            old = None if entry[kind] == UNKNOWN else float(entry[kind])
            new = catalog.get((*at, kind))
            changes.append(PriceChange((*at, kind), old, None if new is None else round(new, 6), ""))
    doubts = [_doubt(change, accept) for change in changes]
    why = next(filter(None, doubts), "")
    prices = {change.key[-1]: change.new for change in changes}
    spot, on_demand = prices.get("spot"), prices.get("on_demand")
    if not why and spot is not None and on_demand is not None and spot >= on_demand:
        why = f"Spot costs {spot:g} and on demand {on_demand:g}"
    for change in changes:
        yield PriceChange(change.key, change.old, change.new, why)


def _doubt(change: PriceChange, accept: bool) -> str:
    """Return why a price is not renewed; empty if it is."""
    if change.old is None:
        return ""
    if change.new is None:
        return "not in the catalog"
    if not accept and not change.old / LARGEST_FACTOR <= change.new <= change.old * LARGEST_FACTOR:
        return f"{change.key[-1]} is {change.new / change.old:.2g} times as much; --accept takes it"
    return ""


def renew(book: MutableMapping[str, Any], changes: list[PriceChange], today: date) -> None:
    """Write the renewed prices into the book, with their source and date. Remove sources that are not used any more."""
    # The prices.
    source = f"google-{today}"
    taken = {change.key: change.new for change in changes if not change.kept}
    renewed = False
    for at, entry in entries(book):
        new_prices = {key[-1]: new for key, new in taken.items() if key[:-1] == at}
        if not new_prices or all(new is None for new in new_prices.values()):
            continue
        for kind, new in new_prices.items():
            entry[kind] = UNKNOWN if new is None else new
        entry["source"], renewed = source, True
    # Their source.
    if renewed:
        description = CommentedMap(date=today, what="Google's billing catalog, read by scripts.refresh_prices")
        description.fa.set_flow_style()  # on one line, like the others
        book["sources"][source] = description
    # The sources that are not used any more.
    named = {entry["source"] for _, entry in entries(book)}
    named |= {entry["source"] for entry in book.values() if "source" in entry}  # the same in all regions
    for cloud in book["elsewhere"].values():
        named |= {cloud["source"], *(machine.get("source", cloud["source"]) for machine in cloud["machines"].values())}
    for name in [name for name in book["sources"] if name not in named]:
        del book["sources"][name]


def show(changes: list[PriceChange], console: Console) -> None:
    """Print a table of the prices that differ from the catalog, and a line about all prices."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("price", "old", "new", ""):
        table.add_column(column, justify="right" if column in ("old", "new") else "left", overflow="fold")
    different = [change for change in changes if change.old != change.new]
    for change in different:
        old, new = (UNKNOWN if usd is None else f"{usd:g}" for usd in (change.old, change.new))
        table.add_row(change.name, old, new, f"kept: {change.kept}" if change.kept else _percent(change))
    if different:
        console.print(table)
    same, renewed = len(changes) - len(different), sum(not change.kept for change in different)
    kept = sum(bool(change.kept) for change in changes)
    console.print(f"{len(changes)} prices: {same} as before, {renewed} renewed, {kept} kept", highlight=False)


def _percent(change: PriceChange) -> str:
    return f"{change.new / change.old - 1:+.1%}" if change.old and change.new is not None else ""


def load(text: str) -> tuple[YAML, MutableMapping[str, Any]]:
    """Return the book in a form that can be written back with its comments and order, and its writer."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True  # an entry stays on its line
    yaml.indent(mapping=2, sequence=4, offset=2)
    book: MutableMapping[str, Any] = yaml.load(text)
    return yaml, book


def main(arguments: list[str] | None = None, path: Path = BOOK) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.refresh_prices", description=__doc__)
    parser.add_argument(
        "--accept",
        action="store_true",
        help=f"also renew prices that changed more than {LARGEST_FACTOR:g}-fold",
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
