"""Who takes part in the run, now. This module and trainer/cluster/lighthouse.py are all that knows torchft.

torchft's Lighthouse keeps one quorum of all members; its reconfigurable process groups let members leave and join
without a restart. We use these two and not its Manager: parameter servers are members too, and its state transfer
unpickles what it reads.

A group is named by (attempt, quorum, failed tries): a restarted Lighthouse counts quorums from 1 again, and a retry
must not meet the keys of the try before it.
"""

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainer.cluster.announcement import NOTHING, Announcement
from trainer.cluster.group import Group, GroupFailed, first_line
from trainer.cluster.lease import NoProgress
from trainer.cluster.lighthouse import AVAILABLE, Lighthouse, Stopping
from trainer.contract import spec
from trainer.storage.base import Storage

os.environ.setdefault("RUST_LOG", "error")  # before torchft is imported
with suppress(ImportError):  # where there are no wheels a run has one trainer (AVAILABLE)
    from torchft import ProcessGroupGloo, ProcessGroupNCCL
GATHER = 120.0  # the first step waits this long for all declared machines
COLLECTIVE = 30.0  # least time-out of a collective; else COLLECTIVE_STEPS times the slowest recent step
COLLECTIVE_STEPS = 5
LEAVING = 15.0  # seconds that a member waits for the others to hear that it leaves
FAILURES = 10  # groups in a row that failed before a step: the members do not reach each other
Identity = tuple[int, int, int]  # steps done, evaluations done, lineage: equal means equal state


@dataclass(frozen=True)
class Member:
    name: str
    progress: Identity
    trainers: int  # declared, as this member read it when it started
    leaving: bool = False  # it takes no further step
    announced: Announcement = NOTHING

    @property
    def serves(self) -> bool:
        """Is it a parameter server, or does it train?"""
        return self.name.startswith("ps-")


@dataclass(frozen=True)
class Quorum:
    members: tuple[Member, ...]  # by rank: trainers by name, then parameter servers by name
    leaving: tuple[Member, ...]  # those that are here for the last time; they have no rank
    enough: bool  # to take a step; if not, somebody is leaving
    rank: int  # -1 for one that is leaving
    key: str  # names this group: the same for all its members, different for any other group
    attempt: int
    group: Group

    @property
    def trainers(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if not member.serves)

    @property
    def servers(self) -> tuple[Member, ...]:
        """By name. Also those that are leaving: what they hold counts."""
        found = [member for member in (*self.members, *self.leaving) if member.serves]
        return tuple(sorted(found, key=lambda member: member.name))

    @property
    def declared(self) -> int:
        """Trainers, as the first member read it: all cut the batch alike while workerCount changes under a run."""
        return self.members[0].trainers


class Cluster:
    """One member's membership. All calls but close() and give_up() come from one thread."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        name: str,
        *,
        declared: spec.Cluster,
        address: str,
        device: torch.device,
        log: Callable[[str], None],
        report: Callable[..., None],
        waits: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        """address: this machine, as the others see it; device: where tensors of the group's collectives lie.

        waits: hears which machines are missing, as long as there are not enough for a step.
        """
        self._name, self._declared = name, declared
        self._address, self._device = address, device
        self._log, self._report, self._waits, self._stopping = log, report, waits, stopping
        self._alone = not AVAILABLE or declared.trainers + declared.parameter_servers == 1
        self._identity = f"{name}:{uuid.uuid4().hex[:8]}"
        self._lighthouse = Lighthouse(storage, run, name, self._identity, address, log, report, stopping)
        self._joined = False
        self._group = Group(None, 0, 1, device)
        self._group_key = ""
        self._failures = self._in_a_row = 0
        self._recent: list[float] = []  # seconds of the last 20 steps
        self._joined_at = 0.0
        self._stepped = False
        self._before: set[str] = set()  # members of the group before
        self._seen: set[str] = set()  # of all groups
        self.missing = ""  # names of those that were lost and whose work the others do now
        self._given_up = False

    # -- membership ------------------------------------------------------------------------------------------------

    def join(self, step_seconds: float) -> None:
        """Take or find the Lighthouse and start heartbeats. Only call it when ready to compute: others then wait."""
        self._recent.append(step_seconds)
        self._joined_at = time.monotonic()
        if self._alone:
            self._lighthouse.alone()
            return
        self._store = _local_store(self._address)
        self._lighthouse.start()
        self._joined = True

    @property
    def attempt(self) -> int:
        """Counts the Lighthouses of this run."""
        return self._lighthouse.attempt

    def fenced(self) -> bool:
        """Is a newer attempt under way, of which this machine knows nothing, because it was believed dead?"""
        return self._lighthouse.fenced()

    def quorum(self, progress: Identity, announcement: Announcement = NOTHING) -> Quorum:
        """The members of the next step; returns when there are enough, or one is leaving.

        Raises Stopping if this machine is told to leave, or GroupFailed.
        """
        if self._alone:
            me = Member(self._name, progress, self._declared.trainers, announced=announcement)
            return Quorum((me,), (), True, 0, f"{self.attempt}-alone", self.attempt, self._group)
        while True:
            if self._stopping():
                raise Stopping
            answer = self._ask(progress, announcement, self._stopping)
            if answer is None:
                self._drop_group()
                if not self._stopping():
                    self._lighthouse.connect(self._stopping)
                continue
            quorum = self._judge(answer)
            if quorum is not None:
                return quorum
            time.sleep(0.1)

    def leave(self, progress: Identity, announcement: Announcement = NOTHING) -> Quorum | None:
        """Tell the others that this member takes no further step; None if they do not hear it in LEAVING seconds."""
        if not self._joined:
            return None
        end = time.monotonic() + LEAVING

        def late() -> bool:
            return time.monotonic() > end

        with suppress(Stopping):
            while not late():
                answer = self._ask(progress, announcement, late, leaving=True)
                if answer is not None:
                    return self._judge(answer)
                self._lighthouse.connect(late)  # its host has left just before
        return None

    def _ask(
        self, progress: Identity, announcement: Announcement, stop: Callable[[], bool], *, leaving: bool = False
    ) -> Any:
        data = {
            "name": self._name,
            "progress": list(progress),
            "trainers": self._declared.trainers,
            "servers": self._declared.parameter_servers,
            "least": 1 + self._declared.min_workers,
            "patient": not self._stepped and time.monotonic() - self._joined_at < GATHER,
            "failures": self._failures,
            "seconds": max(self._recent),
            "leaving": leaving,
            "told": announcement.to_json(),
        }
        return self._lighthouse.ask(f"{self._address}:{self._store.port}", progress[0], data, stop)

    def _judge(self, answer: Any) -> Quorum | None:
        """What the Lighthouse's answer means to this member, a function of what all see alike; None: ask again."""
        people = [(p, _member(p)) for p in answer.participants]
        people.sort(key=lambda pair: (pair[1].serves, pair[1].name, pair[0].replica_id))
        people = _one_of_each_server(people)
        staying = [(p, m) for p, m in people if not m.leaving]
        leaving = tuple(m for _, m in people if m.leaving)
        self._seen -= {member.name for member in leaving}  # they were not lost
        here = [p.replica_id for p, _ in people]
        if self._identity not in here or (not self._enough(staying) and not leaving):
            return None
        enough = bool(staying) and self._enough(staying)
        ids = [p.replica_id for p, _ in staying]
        rank = ids.index(self._identity) if self._identity in ids else -1
        failures = sum(p.data["failures"] for p, _ in staying)
        key = hashlib.sha256(json.dumps([self.attempt, answer.quorum_id, failures, ids]).encode()).hexdigest()[:16]
        if enough and rank >= 0 and key != self._group_key:
            self._configure(key, staying, rank, answer.quorum_id)
        return Quorum(tuple(m for _, m in staying), leaving, enough, rank, key, self.attempt, self._group)

    def _enough(self, people: list[tuple[Any, Member]]) -> bool:
        """Are these enough to take a step? While nobody has taken one, they wait for all that are declared.

        A function of what all members see alike: if one took the step and another went on waiting, both would be stuck.
        """
        if not people:
            return False
        first = people[0][0].data
        if len({p.data["servers"] for p, _ in people}) > 1:
            self._waits("waiting: the number of parameter servers is being changed")
            return False
        patient = all(p.data["patient"] for p, _ in people)
        wanted = {"trainers": first["trainers"] if patient else first["least"], "parameter servers": first["servers"]}
        serving = sum(m.serves for _, m in people)
        here = {"trainers": len(people) - serving, "parameter servers": serving}
        missing = [f"{wanted[r] - here[r]} more of {wanted[r]} {r}" for r in here if here[r] < wanted[r]]
        if missing:
            names = {m.name for _, m in people}
            lost = ", ".join(sorted(self._before - names))
            said = f"{', '.join(sorted(names))}{f'; lost: {lost}' if lost else ''}"
            self._waits(f"waiting for {' and '.join(missing)}; here: {said}")
        elif serving > first["servers"]:  # one that is no longer declared is still here
            self._waits(f"waiting: there are {serving} parameter servers instead of {first['servers']}")
        return not missing and serving == first["servers"]

    def _configure(self, key: str, people: list[tuple[Any, Member]], rank: int, quorum_id: int) -> None:
        self._drop_group()
        members, size, store = [m for _, m in people], len(people), people[0][0].store_address
        served = any(member.serves for member in members)
        device = torch.device("cpu") if served else self._device  # a server's NIC is reached from host memory
        group = None
        if size > 1:
            # Servers wait while trainers compute: so the slowest step that any member knows of counts, and it takes
            # longer with fewer trainers.
            fewer = members[0].trainers / sum(not m.serves for m in members)
            slowest = max(p.data["seconds"] for p, _ in people) * max(1.0, fewer)
            timeout = timedelta(seconds=max(COLLECTIVE, COLLECTIVE_STEPS * slowest))
            self._report(patience=timeout.total_seconds())  # a server says nothing while trainers compute
            group = (ProcessGroupNCCL if device.type == "cuda" else ProcessGroupGloo)(timeout=timeout)
            try:
                group.configure(f"{store}/{key}", self._identity, rank, size, quorum_id)
            except Exception as error:
                raise GroupFailed(first_line(error)) from error
        if self._given_up:
            raise GroupFailed("this machine is leaving")
        self._group, self._group_key = Group(group, rank, size, device), key
        names = {member.name for member in members}
        lost = ", ".join(sorted(self._before - names))
        self._before = names
        self._log(f"{size} members: {', '.join(m.name for m in members)}{f'; missing: {lost}' if lost else ''}")
        self._seen |= names
        fewer = sum(not m.serves for m in members) < members[0].trainers
        self.missing = ", ".join(sorted(self._seen - names)) if fewer else ""

    def stepped(self, seconds: float) -> None:
        """A step was committed: its time bounds how long the next collectives may take."""
        self._stepped, self._in_a_row = True, 0
        self._recent = [*self._recent[-19:], seconds]

    def failed(self) -> None:
        """The group was lost: the next one is another, even if all come back. Call it after a GroupFailed.

        Raises NoProgress if too many were lost one after the other: no time-out would ever end that.
        """
        self._failures += 1
        self._in_a_row += 1
        self._drop_group()
        if self._in_a_row >= FAILURES:
            names = ", ".join(sorted(self._before))
            raise NoProgress(f"{FAILURES} groups in a row failed without a step; the last one: {names}")

    def give_up(self) -> None:
        """No further group, and the end of this one, from another thread: its methods then raise GroupFailed."""
        self._given_up = True
        self._group.close()

    def silence(self) -> None:
        """The others go on without this member; what it still writes is of this attempt until it closes."""
        self._drop_group()
        self._lighthouse.silence()

    def _drop_group(self) -> None:
        self._group_key = ""
        self._group.close()

    def close(self) -> None:
        """Leave: heartbeats end, the others go on without this member."""
        self._drop_group()
        self._lighthouse.close()


def _local_store(address: str) -> TCPStore:
    """A TCPStore that listens on `address` only; torch's own default is every address of the machine."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listener.detach()
    )


def _member(participant: Any) -> Member:
    data = participant.data
    announced = Announcement.from_json(data["told"])
    return Member(data["name"], tuple(data["progress"]), data["trainers"], data["leaving"], announced)


def _one_of_each_server(people: list[tuple[Any, Member]]) -> list[tuple[Any, Member]]:
    """A machine that was frozen may come back beside its successor: of two servers of a name, the furthest counts."""
    best: dict[str, tuple[Identity, str]] = {}
    for participant, member in people:
        best[member.name] = max((member.progress, participant.replica_id), best.get(member.name, ((-1, -1, -1), "")))
    return [(p, m) for p, m in people if not m.serves or best[m.name] == (m.progress, p.replica_id)]
