"""Print findings, each with a state: as a table on a terminal, as lines into a log."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class FindingRow:
    """One finding.

    line: the whole finding, for a log. style: the state's colour in the table.
    """

    line: str
    state: str
    style: str
    cells: tuple[str, ...]


def print_findings(rows: Sequence[FindingRow], columns: Sequence[str], console: Console) -> None:
    """Print the rows. `columns` are the headings of their cells, beside that of the state."""
    if not console.is_terminal:
        for row in rows:
            console.print(row.line, soft_wrap=True, highlight=False, markup=False)
        return
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", *columns):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(Text(row.state, row.style), *map(Text, row.cells))
    console.print(table)
