"""Where a launch is on Google Cloud: records of its start, of where its machines have moved since, and of its end.

`pulumi up` writes Launched, the controller of the stack Placement. A master writes End to have all machines ended, and
the controller when it has ended them at the deadline.
"""

from collections.abc import Iterable

from pydantic import Field

from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.runs.records import MachineStatus
from trainer.storage.base import Storage

DEADLINE = "deadline"  # the reason that the controller gives (infra/google/controller.yaml)
MOST_MOVES = 6  # of a launch: after these, machines wait for capacity where they are


class Launched(Strict):
    """launches/<launch>.json: the start of a launch."""

    started: float  # seconds since the epoch
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
    """launches/<launch>.placement.json: where a launch is. Without it, the launch is where it began."""

    zone: str
    moves: list[Move] = Field([])
    waiting_since: float | None = None  # since when machines are missing without which no step is taken


class End(Strict):
    """ends/<launch>.json: the end of a launch."""

    reason: str
    time: float  # seconds since the epoch


def placement_of(launched: Launched, placement: Placement | None) -> Placement:
    """Return where a launch is, by its two records."""
    return placement if placement is not None else Placement(zone=launched.zone)


def read_placement(storage: Storage, run: str, launch: int) -> Placement | None:
    """Return where a launch is; None for a run on this machine. Raise ValueError if a record is not understood."""
    try:
        launched = Launched.model_validate_json(storage.read(paths.launch(run, launch)))
    except FileNotFoundError:
        return None
    try:
        return Placement.model_validate_json(storage.read(paths.placement(run, launch)))
    except FileNotFoundError:
        return placement_of(launched, None)


def zone_of(placement: Placement | None, machines: Iterable[MachineStatus]) -> str:
    """Return the zone of a run, empty if it is not known. A run of one machine is where that machine says it is."""
    if placement is not None and placement.zone:
        return placement.zone
    newest = max(machines, key=lambda machine: machine.started, default=None)
    return newest.environment.get("zone", "") if newest else ""


def moves_made(placement: Placement) -> list[tuple[float, str, str]]:
    """Return (time, from where to where, which of the moves) of each change of zone."""
    return [
        (move.time, f"moved from {move.origin} to {move.to}", f"{number} of {MOST_MOVES} moves")
        for number, move in enumerate(placement.moves, 1)
    ]
