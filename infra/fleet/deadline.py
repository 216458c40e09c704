"""When a launch ends, whatever the trainer thinks. Pure: dates and how Google wants them."""

import datetime
import math

from infra.fleet.prices import hourly_cost
from infra.stack.config import StackConfig

HOUR = 3600  # seconds


def hours_left(config: StackConfig) -> float:
    """Hours from the launch to its end: maxHours, or less if maxCostUsd is used up before."""
    limits = config.file.limits
    cost = hourly_cost(config)
    if limits.max_cost_usd is None or cost is None:
        return limits.max_hours
    return min(limits.max_hours, limits.max_cost_usd / cost)


def termination_time(started: float, hours: float) -> str:
    """Of a VM, as Google wants it: RFC 3339."""
    return _utc(started + hours * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")


def cron(started: float, hours: float) -> str:
    """The minute at which the groups are resized to zero, rounded up, for Cloud Scheduler."""
    then = _utc(math.ceil((started + hours * HOUR) / 60) * 60)
    return f"{then.minute} {then.hour} {then.day} {then.month} *"


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
