"""Membership: which machines take part in the run now, and the groups in which their processes exchange tensors.

Every process has one. The first process of a machine is its delegate: it asks the Lighthouse and tells the others. Then
each process forms its lane: the group of the processes of its local rank of all machines, and all parameter servers. A
server is a member of every lane.
"""

import os
from contextlib import suppress
from datetime import timedelta

import torch

from trainer.cluster.announcement import NOTHING, Announcement, Position
from trainer.cluster.delegate import COLLECTIVE, Delegate
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.host import Host
from trainer.cluster.lease import newest_attempt
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.processes import Processes
from trainer.cluster.quorum import Agreement, Quorum
from trainer.cluster.step_group import StepGroup
from trainer.contract.errors import first_line
from trainer.contract.spec import JobSpec
from trainer.storage.base import Storage

os.environ.setdefault("RUST_LOG", "error")  # before torchft is imported
with suppress(ImportError):  # where there are no wheels a run has one trainer (lighthouse.AVAILABLE)
    from torchft import ProcessGroupGloo, ProcessGroupNCCL


class Membership:
    """One process's membership. All calls but close() and give_up() come from one thread.

    All processes of a machine must call quorum(), leave() and failed() alike.
    """

    def __init__(
        self, storage: Storage, spec: JobSpec, host: Host, device: torch.device, processes: Processes, lanes: int = 1
    ) -> None:
        """Make a process's membership.

        Args:
            storage: the bucket.
            spec: the run.
            host: this process.
            device: where tensors of the group's collectives are.
            processes: of this machine.
            lanes: in how many this process is: one for a trainer, all for a parameter server.
        """
        self._storage, self._run = storage, spec.run
        self._host, self._device, self._processes = host, device, processes
        self._delegate = Delegate(storage, spec, host) if processes.rank == 0 else None
        self._identity = f"{host.name}/{processes.rank}" if self._delegate is None else self._delegate.identity
        self._lane_numbers = [processes.rank] if lanes == 1 else range(lanes)
        self._lanes = tuple(MemberGroup(None, 0, 1, device) for _ in self._lane_numbers)
        self._key, self._reconnected, self._attempt = "", 0, 0
        self._before: set[str] = set()  # names of the last group's members
        self._seen: set[str] = set()  # names of all groups' members, except those that left
        self.missing = ""  # names of lost members whose work the others do now
        self._given_up = False

    # -- membership ------------------------------------------------------------------------------------------------

    def join(self, step_seconds: float) -> None:
        """Take or find the Lighthouse and start heartbeats. Only call it when ready to compute: others then wait.

        Raise Stopping, in all processes of the machine, if it must leave before there is a Lighthouse.
        """
        attempt: int | None = 0
        if self._delegate is not None:
            try:
                self._delegate.join(step_seconds)
                attempt = self._delegate.attempt
            except Stopping:
                attempt = None
        attempt = self._processes.share(attempt)
        if attempt is None:
            raise Stopping
        self._attempt = attempt

    @property
    def attempt(self) -> int:
        """The number of the run's Lighthouse, from 1."""
        return self._attempt if self._delegate is None else self._delegate.attempt

    def fenced(self) -> bool:
        """Return whether the others believed this machine dead and have begun a newer attempt."""
        return newest_attempt(self._storage, self._run, self._host.name) > self.attempt

    def quorum(self, progress: Position, announcement: Announcement = NOTHING) -> Quorum:
        """Wait until there are enough members for a step, or one is leaving, and return them.

        Args:
            progress: this member's own position.
            announcement: what else the others must know of it.

        Raises:
            Stopping: this machine must leave.
            GroupFailed: the members' groups could not be formed.
        """
        agreement = None
        if self._delegate is not None:
            with suppress(Stopping):
                agreement = self._delegate.agree(progress, announcement)
        agreement = self._shared(agreement)
        if agreement is None:
            raise Stopping
        return self._quorum(agreement)

    def leave(self, progress: Position, announcement: Announcement = NOTHING) -> Quorum | None:
        """Tell the others that this member takes no further step.

        Return the quorum that heard it; None if nobody did.
        """
        agreement = None if self._delegate is None else self._delegate.leave(progress, announcement)
        agreement = self._shared(agreement)
        return None if agreement is None else self._quorum(agreement)

    def _shared(self, agreement: Agreement | None) -> Agreement | None:
        """Return the delegate's agreement."""
        if self._processes.size == 1:
            return agreement
        values = self._processes.share(None if agreement is None else agreement.to_json())
        return None if values is None else Agreement.from_json(values)

    def _quorum(self, agreement: Agreement) -> Quorum:
        """Return the quorum of an agreement, with its groups."""
        self._attempt = agreement.attempt
        self._seen -= {member.name for member in agreement.leaving}  # they were not lost
        if agreement.reconnected != self._reconnected:
            self._drop_lanes()
            self._reconnected = agreement.reconnected
        if agreement.enough and agreement.rank >= 0 and agreement.store and agreement.key != self._key:
            self._form_lanes(agreement)
        return Quorum(
            agreement.members,
            agreement.leaving,
            agreement.enough,
            agreement.rank,
            agreement.key,
            agreement.attempt,
            self._lanes,
            StepGroup(self._lanes[0], self._processes, slow=agreement.timeout > COLLECTIVE),
        )

    # -- the lanes -------------------------------------------------------------------------------------------------

    def _form_lanes(self, agreement: Agreement) -> None:
        self._drop_lanes()
        members = agreement.members
        if len(members) > 1:  # a server says nothing while trainers compute
            self._host.report(patience=agreement.timeout)
        with StepGroup(self._lanes[0], self._processes).agreed():
            self._lanes = tuple(self._form(agreement, lane) for lane in self._lane_numbers)
            if self._given_up:
                raise GroupFailed("this machine is leaving")
        self._key = agreement.key
        names = {member.name for member in members}
        lost = ", ".join(sorted(self._before - names))
        self._before = names
        if self._processes.rank == 0:
            listed = ", ".join(member.name for member in members)
            self._host.log(f"{len(members)} members: {listed}{f'; missing: {lost}' if lost else ''}")
        self._seen |= names
        fewer = sum(not member.serves for member in members) < members[0].trainers
        self.missing = ", ".join(sorted(self._seen - names)) if fewer else ""

    def _form(self, agreement: Agreement, lane: int) -> MemberGroup:
        size = len(agreement.members)
        served = any(member.serves for member in agreement.members)
        device = torch.device("cpu") if served else self._device  # a server's NIC is reached from host memory
        if size == 1:
            return MemberGroup(None, agreement.rank, size, device)
        timeout = timedelta(seconds=agreement.timeout)
        group = (ProcessGroupNCCL if device.type == "cuda" else ProcessGroupGloo)(timeout=timeout)
        key = f"{agreement.store}/{agreement.key}/{lane}"
        try:
            group.configure(key, self._identity, agreement.rank, size, agreement.number)
        except Exception as error:
            raise GroupFailed(first_line(error)) from error
        return MemberGroup(group, agreement.rank, size, device)

    def _drop_lanes(self) -> None:
        self._key = ""
        for lane in self._lanes:
            lane.close()

    # -- a step's end, and this machine's ------------------------------------------------------------------------------

    def stepped(self, seconds: float) -> None:
        """Note the time of a committed step: it bounds how long the next collectives may take."""
        if self._delegate is not None:
            self._delegate.stepped(seconds)

    def failed(self) -> None:
        """Note that the group was lost, after a GroupFailed.

        Raise NoProgress if too many groups in a row were lost: no time-out would ever end that.
        """
        self._drop_lanes()
        if self._delegate is not None:
            self._delegate.failed()

    def give_up(self) -> None:
        """Close the group, from another thread, and form no other: calls that wait for it raise GroupFailed."""
        self._given_up = True
        for lane in self._lanes:
            lane.close()

    def silence(self) -> None:
        """Let the others continue without this member. The attempt stays the same until close()."""
        self._drop_lanes()
        if self._delegate is not None:
            self._delegate.silence()

    def close(self) -> None:
        """Leave: heartbeats end, and the others continue without this member."""
        self._drop_lanes()
        if self._delegate is not None:
            self._delegate.close()
