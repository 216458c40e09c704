"""The lanes that a parameter server serves: one for each process of a trainer machine, all at the same time."""

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch

from trainer.cluster.group import MemberGroup
from trainer.cluster.quorum import Quorum
from trainer.contract.spec import JobSpec
from trainer.model.layout import Ranges
from trainer.parallel import protocol
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Lane, Ownership

T = TypeVar("T")


@dataclass(frozen=True)
class ServedLane:
    """One lane in one group, at one server."""

    first: bool  # whether it is the first lane, in whose vote the server has its sums of squares
    group: MemberGroup
    ranges: Lane
    exchange: Exchange
    segments: list[Ranges]  # of the server's own vector, for each bucket


class ServedLanes:
    """All lanes of the newest group."""

    def __init__(self, spec: JobSpec, log: Callable[[str], None]) -> None:
        self._spec, self._log = spec, log
        self._key = ""
        self._ranges: list[Lane] = []
        self._lanes: list[ServedLane] = []
        self._threads: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._ranges)

    def meet(self, quorum: Quorum) -> None:
        """Learn the lanes' ranges from the trainers, if the group is new."""
        if quorum.key == self._key:
            return
        self._ranges = protocol.tell_lanes(quorum, None)
        self._key = quorum.key
        self.forget()
        if self._threads is None and len(self) > 1:
            # One core for each lane's sums; the thread that updates has all of them.
            self._threads = ThreadPoolExecutor(len(self), "lane", torch.set_num_threads, (1,))

    def forget(self) -> None:
        """Forget the exchanges, because this server owns something else now. The ranges stay those of the group."""
        self._lanes = []

    def prepare(self, quorum: Quorum, ownership: Ownership, place: int) -> None:
        """Make the exchanges, if there are none.

        Args:
            quorum: of the group that was met.
            ownership: of the flat vector.
            place: this server's index among the servers.
        """
        if not self._lanes:
            exchanges = protocol.make_exchanges(quorum, self._spec, ownership, self._ranges, self._log)
            parts = zip(quorum.lanes, self._ranges, exchanges, strict=True)
            self._lanes = [
                ServedLane(k == 0, group, ranges, exchange, ownership.segments(place, ranges))
                for k, (group, ranges, exchange) in enumerate(parts)
            ]

    def each(self, call: Callable[[ServedLane], T]) -> list[T]:
        """Call a function for every lane, a thread each, and return what they return, in the order of lanes.

        When one fails, close the groups of all, so that the others end too. Raise the first error when all have ended.
        """
        if self._threads is None:
            return [call(lane) for lane in self._lanes]
        futures = [self._threads.submit(call, lane) for lane in self._lanes]
        ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future in ended]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            for lane in self._lanes:
                lane.group.close()
            wait(futures)
            raise error
        return [future.result() for future in futures]
