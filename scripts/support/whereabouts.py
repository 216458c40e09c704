"""Word where a run is on Google Cloud, how it came there, and whether it waits for machines."""

import time

from scripts.support.run_files import Snapshot
from trainer.runs.placement import MOST_MOVES, moves_made, zone_of


def whereabouts(snapshot: Snapshot) -> list[str]:
    """Return where the run is on Google Cloud, each move that it made, and since when it waits for machines."""
    placement, zone = snapshot.placement, zone_of(snapshot.placement, (m.status for m in snapshot.machines))
    lines = [f"in {zone}"] if zone else []
    if placement is None:
        return lines
    lines += [f"{move} at {_clock(when)}, {count}" for when, move, count in moves_made(placement)]
    if placement.waiting_since is not None and not snapshot.final:
        left = len(placement.moves) < MOST_MOVES
        onward = (
            "it moves to another zone if this lasts, unless the deadline is near" if left else "it has no moves left"
        )
        lines.append(f"waits for machines in {zone} since {_clock(placement.waiting_since)}; {onward}")
    return lines


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
