"""The stand-in cloud's clock, which a test can set: timers that are due by then fire in the order of their dates."""

import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.google_cloud.cloud import Cloud


@dataclass(order=True)
class Timer:
    when: float  # seconds since 1970, by this clock
    number: int
    call: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The clock of one cloud. Its thread makes the calls that are due, which must be short."""

    def __init__(self) -> None:
        self._ahead = 0.0  # seconds before the real time
        self._timers: list[Timer] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="clock", daemon=True).start()

    def now(self) -> float:
        return time.time() + self._ahead

    def ahead(self) -> float:
        """Return the seconds that this clock is before the real time."""
        return self._ahead

    def set(self, epoch: float) -> None:
        """Set the time; it continues from there."""
        with self._changed:
            self._ahead = epoch - time.time()
            self._changed.notify_all()

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(when, next(self._numbers), call)
        with self._changed:
            heapq.heappush(self._timers, timer)
            self._changed.notify_all()
        return timer

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._timers or self._timers[0].when > self.now()):
                    # It waits an hour at most: the system cannot wait for years.
                    self._changed.wait(min(self._timers[0].when - self.now(), 3600.0) if self._timers else None)
                if self._closed:
                    return
                timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.call()


@functools.cache
def clock_of(cloud: Cloud) -> Clock:
    clock = Clock()
    cloud.closing.append(clock.close)
    return clock


def stamp(epoch: float) -> str:
    """Return the time in RFC 3339, as Google writes it."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_of(text: str) -> float:
    """Return the time of an RFC 3339 date. Raise ValueError for any other text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
