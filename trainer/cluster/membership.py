"""Membership: which members take part in the run now. Only this module and lighthouse.py know torchft.

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

from trainer.cluster.announcement import NOTHING, Announcement, Position
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.host import Host
from trainer.cluster.lease import NoProgress
from trainer.cluster.lighthouse import AVAILABLE, Lighthouse, Stopping
from trainer.contract.errors import first_line
from trainer.contract.spec import JobSpec
from trainer.storage.base import Storage

os.environ.setdefault("RUST_LOG", "error")  # before torchft is imported
with suppress(ImportError):  # where there are no wheels a run has one trainer (AVAILABLE)
    from torchft import ProcessGroupGloo, ProcessGroupNCCL
GATHER = 120.0  # the first step waits this long for all declared machines
COLLECTIVE = 30.0  # least time-out of a collective; else COLLECTIVE_STEPS times the slowest recent step
COLLECTIVE_STEPS = 5
LEAVING = 15.0  # seconds that a member waits for the others to hear that it leaves
FAILURES = 10  # groups in a row that failed before a step: the members do not reach each other


@dataclass(frozen=True)
class Member:
    """A member of the run, as it described itself when it asked for a quorum."""

    name: str
    progress: Position
    trainers: int  # declared ones, as this member read the job when it started
    leaving: bool = False  # it takes no further step
    announced: Announcement = NOTHING

    @property
    def serves(self) -> bool:
        """Return whether it is a parameter server, and no trainer."""
        return self.name.startswith("ps-")


@dataclass(frozen=True)
class Quorum:
    """The members of the next step, and their group."""

    members: tuple[Member, ...]  # by rank: trainers by name, then parameter servers by name
    leaving: tuple[Member, ...]  # members that take no further step and have no rank
    enough: bool  # whether the members can take a step; if not, a member is leaving
    rank: int  # -1 for one that is leaving
    key: str  # names this group: the same for all its members, different for any other group
    attempt: int
    group: MemberGroup

    @property
    def lanes(self) -> tuple[MemberGroup, ...]:
        """The group of each lane that this member is in: a parameter server is in all, a trainer's process in one."""
        return (self.group,)

    @property
    def trainers(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if not member.serves)

    @property
    def servers(self) -> tuple[Member, ...]:
        """The parameter servers by name, leaving ones too: the part of the parameters that they hold counts."""
        serving = [member for member in (*self.members, *self.leaving) if member.serves]
        return tuple(sorted(serving, key=lambda member: member.name))

    @property
    def declared(self) -> int:
        """Declared trainers, as the first member read them: so all cut a batch alike while workerCount changes."""
        return self.members[0].trainers


class Membership:
    """One member's membership. All calls but close() and give_up() come from one thread."""

    def __init__(self, storage: Storage, spec: JobSpec, host: Host, device: torch.device) -> None:
        """device: where tensors of the group's collectives are."""
        self._declared, self._host, self._device = spec.cluster, host, device
        self._alone = not AVAILABLE or spec.cluster.trainers + spec.cluster.parameter_servers == 1
        self._identity = f"{host.name}:{uuid.uuid4().hex[:8]}"
        self._lighthouse = Lighthouse(storage, spec.run, self._identity, host)
        self._joined = False
        self._group = MemberGroup(None, 0, 1, device)
        self._group_key = ""
        self._failures = self._in_a_row = 0
        self._recent: list[float] = []  # seconds of the last 20 steps
        self._joined_at = 0.0
        self._stepped = False
        self._before: set[str] = set()  # names of the last group's members
        self._seen: set[str] = set()  # names of all groups' members, except those that left
        self.missing = ""  # names of lost members whose work the others do now
        self._given_up = False

    # -- membership ------------------------------------------------------------------------------------------------

    def join(self, step_seconds: float) -> None:
        """Take or find the Lighthouse and start heartbeats. Only call it when ready to compute: others then wait."""
        self._recent.append(step_seconds)
        self._joined_at = time.monotonic()
        if self._alone:
            self._lighthouse.alone()
            return
        self._store = _local_store(self._host.address)
        self._lighthouse.start()
        self._joined = True

    @property
    def attempt(self) -> int:
        """The number of the run's Lighthouse, from 1."""
        return self._lighthouse.attempt

    def fenced(self) -> bool:
        """Return whether the others believed this machine dead and have begun a newer attempt."""
        return self._lighthouse.fenced()

    def quorum(self, progress: Position, announcement: Announcement = NOTHING) -> Quorum:
        """Wait until there are enough members for a step, or one is leaving, and return them.

        Args:
            progress: this member's own position.
            announcement: what else the others must know of it.

        Raises:
            Stopping: this machine must leave.
            GroupFailed: the members' group could not be formed.
        """
        if self._alone:
            me = Member(self._host.name, progress, self._declared.trainers, announced=announcement)
            return Quorum((me,), (), True, 0, f"{self.attempt}-alone", self.attempt, self._group)
        while True:
            if self._host.stopping():
                raise Stopping
            answer = self._ask(progress, announcement, self._host.stopping)
            if answer is None:
                self._drop_group()
                if not self._host.stopping():
                    self._lighthouse.connect(self._host.stopping)
                continue
            quorum = self._judge(answer)
            if quorum is not None:
                return quorum
            time.sleep(0.1)

    def leave(self, progress: Position, announcement: Announcement = NOTHING) -> Quorum | None:
        """Tell the others that this member takes no further step.

        Return the quorum that heard it; None if nobody did within LEAVING seconds.
        """
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
        self, progress: Position, announcement: Announcement, stop: Callable[[], bool], *, leaving: bool = False
    ) -> Any:
        data = {
            "name": self._host.name,
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
        return self._lighthouse.ask(f"{self._host.address}:{self._store.port}", progress[0], data, stop)

    def _judge(self, answer: Any) -> Quorum | None:
        """Return the quorum of the Lighthouse's answer, by what all members see alike; None to ask again."""
        people = [(p, _member(p)) for p in answer.participants]
        people.sort(key=lambda pair: (pair[1].serves, pair[1].name, pair[0].replica_id))
        people = _one_of_each_server(people)
        staying = [(p, m) for p, m in people if not m.leaving]
        leaving = tuple(m for _, m in people if m.leaving)
        self._seen -= {member.name for member in leaving}  # they were not lost
        present_ids = [p.replica_id for p, _ in people]
        if self._identity not in present_ids or (not self._enough(staying) and not leaving):
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
        """Return whether these members can take a step. Before the first step they wait for all declared machines.

        The answer depends only on what all members see alike: if one took the step while another waited, both would
        be stuck.
        """
        if not people:
            return False
        first = people[0][0].data
        if len({p.data["servers"] for p, _ in people}) > 1:
            self._host.waiting("waiting: the number of parameter servers is being changed")
            return False
        patient = all(p.data["patient"] for p, _ in people)
        needed = {"trainers": first["trainers"] if patient else first["least"], "parameter servers": first["servers"]}
        serving = sum(m.serves for _, m in people)
        present = {"trainers": len(people) - serving, "parameter servers": serving}
        missing = [f"{needed[r] - present[r]} more of {needed[r]} {r}" for r in present if present[r] < needed[r]]
        if missing:
            names = {m.name for _, m in people}
            lost = ", ".join(sorted(self._before - names))
            member_names = f"{', '.join(sorted(names))}{f'; lost: {lost}' if lost else ''}"
            self._host.waiting(f"waiting for {' and '.join(missing)}; here: {member_names}")
        elif serving > first["servers"]:  # a server that is no longer declared has not left yet
            self._host.waiting(f"waiting: there are {serving} parameter servers instead of {first['servers']}")
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
            self._host.report(patience=timeout.total_seconds())  # a server says nothing while trainers compute
            group = (ProcessGroupNCCL if device.type == "cuda" else ProcessGroupGloo)(timeout=timeout)
            try:
                group.configure(f"{store}/{key}", self._identity, rank, size, quorum_id)
            except Exception as error:
                raise GroupFailed(first_line(error)) from error
        if self._given_up:
            raise GroupFailed("this machine is leaving")
        self._group, self._group_key = MemberGroup(group, rank, size, device), key
        names = {member.name for member in members}
        lost = ", ".join(sorted(self._before - names))
        self._before = names
        self._host.log(f"{size} members: {', '.join(m.name for m in members)}{f'; missing: {lost}' if lost else ''}")
        self._seen |= names
        fewer = sum(not m.serves for m in members) < members[0].trainers
        self.missing = ", ".join(sorted(self._seen - names)) if fewer else ""

    def stepped(self, seconds: float) -> None:
        """Note the time of a committed step: it bounds how long the next collectives may take."""
        self._stepped, self._in_a_row = True, 0
        self._recent = [*self._recent[-19:], seconds]

    def failed(self) -> None:
        """Note that the group was lost, after a GroupFailed: the next group has another key, even of the same members.

        Raise NoProgress if FAILURES groups in a row were lost: no time-out would ever end that.
        """
        self._failures += 1
        self._in_a_row += 1
        self._drop_group()
        if self._in_a_row >= FAILURES:
            names = ", ".join(sorted(self._before))
            raise NoProgress(f"{FAILURES} groups in a row failed without a step; the last one: {names}")

    def give_up(self) -> None:
        """Close the group, from another thread, and form no other: calls that wait for it raise GroupFailed."""
        self._given_up = True
        self._group.close()

    def silence(self) -> None:
        """Let the others continue without this member. The attempt stays the same until close()."""
        self._drop_group()
        self._lighthouse.silence()

    def _drop_group(self) -> None:
        self._group_key = ""
        self._group.close()

    def close(self) -> None:
        """Leave: heartbeats end, and the others continue without this member."""
        self._drop_group()
        self._lighthouse.close()


def _local_store(address: str) -> TCPStore:
    """Return a TCPStore that listens on `address` only; by default torch listens on every address of the machine."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listener.detach()
    )


def _member(participant: Any) -> Member:
    data = participant.data
    announced = Announcement.from_json(data["told"])
    return Member(data["name"], Position(*data["progress"]), data["trainers"], data["leaving"], announced)


def _one_of_each_server(people: list[tuple[Any, Member]]) -> list[tuple[Any, Member]]:
    """Drop all but the furthest server of each name: a frozen machine may come back besides its successor."""
    best: dict[str, tuple[Position, str]] = {}
    for participant, member in people:
        best[member.name] = max(
            (member.progress, participant.replica_id), best.get(member.name, (Position(-1, -1, -1), ""))
        )
    return [(p, m) for p, m in people if not m.serves or best[m.name] == (m.progress, p.replica_id)]
