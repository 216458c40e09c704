"""Compute when a launch ends, whatever the trainer does. Only dates, in the formats that Google expects."""

import datetime
import math

from infra.fleet.fleet import Fleet
from infra.stack.keys import RunLimits
from trainer.runs.placement import Launched

HOUR = 3600  # seconds


def launch_hours(limits: RunLimits, fleet: Fleet) -> float:
    """Return the hours from a launch to its end: maxHours, or fewer if maxCostUsd is used up before."""
    cost = fleet.hourly
    if limits.max_cost_usd is None or not cost.exact:
        return limits.max_hours
    return min(limits.max_hours, limits.max_cost_usd / cost.usd)


def kept_hours(limits: RunLimits, fleet: Fleet, launched: Launched | None) -> float:
    """Return the hours that templates may name: those with which the launch began, as long as the limits stay.

    By maxCostUsd another number of workers gives other hours. In a template they would be other machines.
    """
    if launched is not None and (launched.max_hours, launched.max_cost_usd) == (limits.max_hours, limits.max_cost_usd):
        return launched.hours
    return launch_hours(limits, fleet)


def termination_time(started: float, hours: float) -> str:
    """Return when Google ends a VM, in RFC 3339. started: seconds since the epoch."""
    return _utc(started + hours * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")


def deadline(started: float, hours: float) -> int:
    """Return when the controller ends all machines, in seconds since the epoch."""
    return math.ceil(started + hours * HOUR)


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
