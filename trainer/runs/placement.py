"""Where a launch is on Google Cloud: the record of its start, and where its machines have moved since.

`pulumi up` writes Launched, and the controller of the stack writes Placement.
"""

from pydantic import Field

from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.storage.base import Storage

MOST_MOVES = 6  # of a launch: after these, machines wait for capacity where they are


class Launched(Strict):
    """launches/<launch>.json: the start of a launch."""

    started: int  # seconds since the epoch
    hours: float = 0  # from then to its end, by the limits and the machines that it began with
    max_hours: float = 0  # these limits
    max_cost_usd: float | None = None
    zone: str = ""  # the first choice; empty if one group takes its machine from all zones
    zones: list[str] = Field([])  # all zones that have groups, the first choice first


class Move(Strict):
    """A change of zone."""

    origin: str = Field(alias="from")
    to: str
    time: float  # seconds since the epoch


class Placement(Strict):
    """launches/<launch>.placement.json: where a launch is. Without it, the launch is where it started."""

    zone: str = ""
    moves: list[Move] = Field([])
    waiting_since: float | None = None  # since when machines are missing without which no step is taken


def parse_placement(launched: str | bytes, placement: str | bytes) -> Placement:
    """Return where a launch is, by the content of its two records, which may be empty. Raise ValueError."""
    start = Launched.model_validate_json(launched) if launched else Launched(started=0)
    placed = Placement.model_validate_json(placement) if placement else Placement()
    return placed if placed.zone else placed.model_copy(update={"zone": start.zone})


def read_placement(storage: Storage, run: str, launch: int) -> Placement | None:
    """Return where a launch is; None for a run on this machine. Raise ValueError if a record is not understood."""
    try:
        launched = storage.read(paths.launch(run, launch))
    except FileNotFoundError:
        return None
    try:
        return parse_placement(launched, storage.read(paths.placement(run, launch)))
    except FileNotFoundError:
        return parse_placement(launched, b"")
