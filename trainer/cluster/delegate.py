"""Agree with the other machines on the members of the next step.

Only this module, lighthouse.py and membership.py know torchft. Its Lighthouse keeps one quorum of all members; its
reconfigurable process groups let members leave and join without a restart. We use these two and not its Manager:
parameter servers are members too, and its state transfer unpickles what it reads.

A machine is one member, however many processes it has: its first process is its delegate.

A group is named by (attempt, quorum, failed tries): a restarted Lighthouse counts quorums from 1 again, and a retry
must not meet the keys of the try before it.
"""

import hashlib
import json
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from trainer.cluster.announcement import Announcement, Position
from trainer.cluster.host import Host
from trainer.cluster.lease import NoProgress
from trainer.cluster.lighthouse import AVAILABLE, Lighthouse, Stopping
from trainer.cluster.quorum import Agreement, Member
from trainer.contract.spec import JobSpec
from trainer.storage.base import Storage

GATHER = 120.0  # the first step waits this long for all declared machines
COLLECTIVE = 30.0  # least time-out of a collective; else COLLECTIVE_STEPS times the slowest recent step
COLLECTIVE_STEPS = 5
LEAVING = 15.0  # seconds that a member waits for the others to hear that it leaves
FAILURES = 10  # groups in a row that failed before a step: the members do not reach each other


class Delegate:
    """A machine's place among the members. All calls but close() come from one thread."""

    def __init__(self, storage: Storage, spec: JobSpec, host: Host) -> None:
        self._declared, self._host = spec.cluster, host
        self._alone = not AVAILABLE or spec.cluster.trainers + spec.cluster.parameter_servers == 1
        self.identity = f"{host.name}:{uuid.uuid4().hex[:8]}"
        self._lighthouse = Lighthouse(storage, spec.run, self.identity, host)
        self._joined = False
        self._failures = self._in_a_row = self._reconnected = 0
        self._recent: list[float] = []  # seconds of the last 20 steps
        self._joined_at = 0.0
        self._stepped = False
        self._last: set[str] = set()  # names of the last agreement's members

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

    def agree(self, progress: Position, announcement: Announcement) -> Agreement:
        """Wait until there are enough members for a step, or one is leaving, and return them.

        Args:
            progress: this machine's own position.
            announcement: what else the others must know of it.

        Raises:
            Stopping: this machine must leave.
        """
        if self._alone:
            if self._host.stopping():
                raise Stopping
            me = Member(self._host.name, progress, self._declared.trainers, announced=announcement)
            return Agreement((me,), (), True, 0, f"{self.attempt}-alone", self.attempt)
        while True:
            if self._host.stopping():
                raise Stopping
            answer = self._ask(progress, announcement, self._host.stopping)
            if answer is None:
                self._reconnected += 1
                if not self._host.stopping():
                    self._lighthouse.connect(self._host.stopping)
                continue
            agreement = self._judge(answer)
            if agreement is not None:
                return agreement
            time.sleep(0.1)

    def leave(self, progress: Position, announcement: Announcement) -> Agreement | None:
        """Tell the others that this member takes no further step.

        Return the members that heard it; None if nobody did within LEAVING seconds.
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
        me = Member(self._host.name, progress, self._declared.trainers, leaving, announcement)
        data = {
            **me.to_json(),
            "servers": self._declared.parameter_servers,
            "least": 1 + self._declared.min_workers,
            "patient": not self._stepped and time.monotonic() - self._joined_at < GATHER,
            "failures": self._failures,
            "seconds": max(self._recent),
        }
        return self._lighthouse.ask(f"{self._host.address}:{self._store.port}", progress[0], data, stop)

    def _judge(self, answer: Any) -> Agreement | None:
        """Return the members of the Lighthouse's answer, by what all members see alike; None to ask again."""
        people = [(p, Member.from_json(p.data)) for p in answer.participants]
        people.sort(key=lambda pair: (pair[1].serves, pair[1].name, pair[0].replica_id))
        people = _one_of_each_server(people)
        staying = [(p, m) for p, m in people if not m.leaving]
        leaving = tuple(m for _, m in people if m.leaving)
        present_ids = [p.replica_id for p, _ in people]
        if self.identity not in present_ids or (not self._enough(staying) and not leaving):
            return None
        enough = bool(staying) and self._enough(staying)
        ids = [p.replica_id for p, _ in staying]
        rank = ids.index(self.identity) if self.identity in ids else -1
        failures = sum(p.data["failures"] for p, _ in staying)
        key = hashlib.sha256(json.dumps([self.attempt, answer.quorum_id, failures, ids]).encode()).hexdigest()[:16]
        self._last = {member.name for _, member in staying} if enough else self._last
        return Agreement(
            members=tuple(m for _, m in staying),
            leaving=leaving,
            enough=enough,
            rank=rank,
            key=key,
            attempt=self.attempt,
            store=staying[0][0].store_address if staying else "",
            timeout=self._timeout(staying) if staying else 0.0,
            number=answer.quorum_id,
            reconnected=self._reconnected,
        )

    def _timeout(self, people: list[tuple[Any, Member]]) -> float:
        """Return the seconds that a collective of these members may take.

        Servers wait while trainers compute: so the slowest step that any member knows of counts, and it takes longer
        with fewer trainers.
        """
        fewer = people[0][1].trainers / max(1, sum(not m.serves for _, m in people))
        slowest: float = max(p.data["seconds"] for p, _ in people) * max(1.0, fewer)
        return max(COLLECTIVE, COLLECTIVE_STEPS * slowest)

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
            lost = ", ".join(sorted(self._last - names))
            member_names = f"{', '.join(sorted(names))}{f'; lost: {lost}' if lost else ''}"
            self._host.waiting(f"waiting for {' and '.join(missing)}; here: {member_names}")
        elif serving > first["servers"]:  # a server that is no longer declared has not left yet
            self._host.waiting(f"waiting: there are {serving} parameter servers instead of {first['servers']}")
        return not missing and serving == first["servers"]

    def stepped(self, seconds: float) -> None:
        """Note the time of a committed step: it bounds how long the next collectives may take."""
        self._stepped, self._in_a_row = True, 0
        self._recent = [*self._recent[-19:], seconds]

    def failed(self) -> None:
        """Note that the group was lost: the next group has another key, even of the same members.

        Raise NoProgress if FAILURES groups in a row were lost: no time-out would ever end that.
        """
        self._failures += 1
        self._in_a_row += 1
        if self._in_a_row >= FAILURES:
            names = ", ".join(sorted(self._last))
            raise NoProgress(f"{FAILURES} groups in a row failed without a step; the last one: {names}")

    def silence(self) -> None:
        """Let the others continue without this member. The attempt stays the same until close()."""
        self._lighthouse.silence()

    def close(self) -> None:
        """Leave: heartbeats end, and the others continue without this member."""
        self._lighthouse.close()


def _local_store(address: str) -> TCPStore:
    """Return a TCPStore that listens on `address` only; by default torch listens on every address of the machine."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listener.detach()
    )


def _one_of_each_server(people: list[tuple[Any, Member]]) -> list[tuple[Any, Member]]:
    """Drop all but the furthest server of each name: a frozen machine may come back besides its successor."""
    best: dict[str, tuple[Position, str]] = {}
    for participant, member in people:
        best[member.name] = max(
            (member.progress, participant.replica_id), best.get(member.name, (Position(-1, -1, -1), ""))
        )
    return [(p, m) for p, m in people if not m.serves or best[m.name] == (m.progress, p.replica_id)]
