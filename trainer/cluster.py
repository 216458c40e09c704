"""Who takes part in the run, now: the only module that knows torchft.

torchft's Lighthouse keeps one quorum of all members; its reconfigurable process groups let members leave and join
without a restart. We use these two and not its Manager: parameter servers are members too, and its state transfer
unpickles what it reads. The Lighthouse's address is a lease in the bucket, so that another trainer can take it over.

A group is named by (attempt, quorum, failed tries): a restarted Lighthouse counts quorums from 1 again, and a retry
must not meet the keys of the try before it.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RUST_LOG", "error")  # before torchft is imported

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, ReduceOp, TCPStore  # type: ignore[attr-defined]

from trainer import lease
from trainer.lease import Lease
from trainer.storage import Storage

try:  # wheels exist for Linux x86-64 and CPython 3.11 to 3.13; elsewhere a run has one trainer
    from torchft import ProcessGroupGloo, ProcessGroupNCCL
    from torchft.coordination import LighthouseClient, LighthouseServer
except ImportError:  # pragma: no cover
    LighthouseServer = None

HEARTBEAT = 0.5  # seconds between heartbeats
HEARTBEAT_LOST = 5.0  # without one for this long, a member is gone
JOIN_TIMEOUT = 60.0  # a living member that is slower than this to the next step is left out of it
GATHER = 120.0  # the first step waits this long for all declared machines
COLLECTIVE = 30.0  # least time-out of a collective; else COLLECTIVE_STEPS times the slowest recent step
COLLECTIVE_STEPS = 5


class GroupFailed(Exception):
    """A member was lost in the middle of a collective: nothing was committed; ask for a new quorum."""


class Stopping(Exception):
    """This machine was told to leave while it waited for the others."""


@dataclass(frozen=True)
class Member:
    name: str
    progress: tuple[int, int, int]  # (steps done, evaluations done, lineage): equal means equal state
    declared: int  # trainers, as this member read it when it started


@dataclass(frozen=True)
class Quorum:
    members: tuple[Member, ...]
    rank: int
    key: str  # names this group: the same for all its members, different for any other group

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def declared(self) -> int:
        """Trainers, as the first member read it: all cut the batch alike while workerCount changes under a run."""
        return self.members[0].declared


class Cluster:
    """One trainer's membership. All calls but close() come from one thread."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        name: str,
        *,
        trainers: int,
        least: int,
        address: str,
        device: torch.device,
        log: Callable[[str], None],
        report: Callable[..., None],
        stopping: Callable[[], bool],
    ) -> None:
        """trainers: declared; least: with fewer no step is taken; address: this machine, as the others see it."""
        self._name, self._lease = name, Lease(storage, run, name)
        self._trainers, self._least, self._address, self._device = trainers, least, address, device
        self._log, self._report, self._stopping = log, report, stopping
        self._alone = LighthouseServer is None or trainers == 1
        self._identity = f"{name}:{uuid.uuid4().hex[:8]}"
        self._closed = threading.Event()
        self._asking = ThreadPoolExecutor(1)
        self._deposed = threading.Event()  # another trainer has the lease that was here
        self._server: Any = None
        self._client: Any = None
        self._lighthouse = ""
        self.attempt = 0
        self._group: Any = None
        self._group_key = ""
        self._failures = 0
        self._recent: list[float] = []  # seconds of the last 20 steps
        self._joined_at = 0.0
        self._stepped = False

    # -- membership ------------------------------------------------------------------------------------------------

    def join(self, step_seconds: float) -> None:
        """Take or find the Lighthouse and start heartbeats. Only call it when ready to compute: others then wait."""
        self._recent.append(step_seconds)
        self._joined_at = time.monotonic()
        if self._alone:
            self._lease.read()
            while not self._lease.write("", self._lease.attempt + 1):
                self._lease.read()
            self.attempt = self._lease.attempt
            return
        self._store = _local_store(self._address)
        self._connect()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def quorum(self, progress: tuple[int, int, int]) -> Quorum:
        """The members of the next step; returns when there are enough. Raises Stopping, or GroupFailed."""
        if self._alone:
            return Quorum((Member(self._name, progress, self._trainers),), 0, f"{self.attempt}-alone")
        while True:
            if self._stopping():
                raise Stopping
            if self._deposed.is_set():  # a server that was shut down still answers those that are connected
                self._deposed.clear()
                self._connect()
            answer = self._ask(progress)
            if answer is None:
                self._connect()
                continue
            people = sorted(answer.participants, key=lambda p: (p.data["name"], p.replica_id))
            if self._identity not in [p.replica_id for p in people]:
                continue
            if not self._enough([p.data for p in people]):
                self._closed.wait(0.1)
                continue
            members = tuple(Member(p.data["name"], tuple(p.data["progress"]), p.data["declared"]) for p in people)
            parts = [self.attempt, answer.quorum_id, sum(p.data["failures"] for p in people)]
            key = hashlib.sha256(json.dumps([parts, [p.replica_id for p in people]]).encode()).hexdigest()[:16]
            quorum = Quorum(members, [p.replica_id for p in people].index(self._identity), key)
            if key != self._group_key:
                self._configure(quorum, people[0].store_address, answer.quorum_id)
            return quorum

    def _ask(self, progress: tuple[int, int, int]) -> Any:
        """The Lighthouse's answer, None if it is lost. It may take long, so another thread waits for it."""
        request = self._asking.submit(
            self._client.quorum,
            replica_id=self._identity,
            timeout=timedelta(seconds=JOIN_TIMEOUT + 10),
            address="",
            store_address=f"{self._address}:{self._store.port}",
            step=progress[0],
            data={
                "name": self._name,
                "progress": list(progress),
                "declared": self._trainers,
                "least": self._least,
                "patient": not self._stepped and time.monotonic() - self._joined_at < GATHER,
                "failures": self._failures,
            },
        )
        looked = time.monotonic()
        while not wait([request], timeout=0.5).done:
            self._report()  # alive: waiting for a slower member
            lost = False
            if time.monotonic() - looked > lease.RENEWED:
                looked = time.monotonic()
                lost = self._lighthouse_lost()
            if lost or self._stopping():
                self._asking = ThreadPoolExecutor(1)  # the old one's thread waits on for nothing, and ends with us
                if lost:
                    self._log(f"the Lighthouse at {self._lighthouse} is silent and its lease has run out")
                    return None
                raise Stopping
        error = request.exception()
        if error is not None:
            self._log(f"the Lighthouse at {self._lighthouse} does not answer ({_first_line(error)})")
            return None
        return request.result()

    def _lighthouse_lost(self) -> bool:
        """Has another the lease, or has its holder (another machine, perhaps frozen) let it run out?"""
        if self._server is not None:
            return False
        try:
            self._lease.read()
        except Exception as error:  # storage may be away for a while
            self._log(f"the lease could not be read ({_first_line(error)})")
            return False
        return self._lease.address != self._lighthouse or self._lease.lost

    def _enough(self, people: list[dict[str, Any]]) -> bool:
        """Are these enough to take a step? While nobody has taken one, they wait for all that are declared.

        A function of what all members see alike: if one took the step and another went on waiting, both would be stuck.
        """
        wanted: int = people[0]["declared"] if all(p["patient"] for p in people) else people[0]["least"]
        if len(people) < wanted:
            here = ", ".join(p["name"] for p in people)
            self._report(f"waiting for {wanted - len(people)} more of {wanted} trainers; here: {here}")
        return len(people) >= wanted

    def _configure(self, quorum: Quorum, store: str, quorum_id: int) -> None:
        self._drop_group()
        if quorum.size > 1:
            slowest = max(self._recent)
            timeout = timedelta(seconds=max(COLLECTIVE, COLLECTIVE_STEPS * slowest))
            group = (ProcessGroupNCCL if self._device.type == "cuda" else ProcessGroupGloo)(timeout=timeout)
            try:
                group.configure(f"{store}/{quorum.key}", self._identity, quorum.rank, quorum.size, quorum_id)
            except Exception as error:
                raise self._failed(error) from error
            self._group = group
        self._group_key = quorum.key
        self._log(f"{quorum.size} trainers: {', '.join(m.name for m in quorum.members)}")

    def stepped(self, seconds: float) -> None:
        """A step was committed: its time bounds how long the next collectives may take."""
        self._stepped = True
        self._recent = [*self._recent[-19:], seconds]

    # -- collectives -----------------------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> None:
        """All-reduce in place. Raises GroupFailed."""
        if self._group is not None:
            options = AllreduceOptions()
            options.reduceOp = ReduceOp.SUM
            self._run(lambda: self._group.allreduce([tensor], options))

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Everyone gets root's tensor, in place. Raises GroupFailed."""
        if self._group is not None:
            options = BroadcastOptions()
            options.rootRank = root
            self._run(lambda: self._group.broadcast([tensor], options))

    def broadcast_json(self, value: Any, root: int, rank: int) -> Any:
        """Everyone gets root's JSON value. Raises GroupFailed."""
        body = json.dumps(value).encode() if rank == root else b""
        length = torch.tensor([len(body)], device=self._device)
        self.broadcast(length, root)
        text = torch.zeros(int(length), dtype=torch.uint8, device=self._device)
        if rank == root:
            text.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
        self.broadcast(text, root)
        return json.loads(bytes(text.cpu().numpy()))

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            call().wait()
            error = self._group.errored()
            if error is not None:
                raise error
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> GroupFailed:
        """Close the group at once: the others then see it in a second instead of waiting for the time-out."""
        self._failures += 1
        self._drop_group()
        return GroupFailed(_first_line(error))

    def _drop_group(self) -> None:
        group, self._group, self._group_key = self._group, None, ""
        if group is not None:
            with suppress(Exception):
                group.abort(errored=False)

    def close(self) -> None:
        """Leave: heartbeats end, the others go on without this member."""
        self._closed.set()
        self._drop_group()
        if self._server is not None:
            with suppress(Exception):  # without it, the others wait until the lease has run out
                self._lease.release()
            with suppress(Exception):
                self._server.shutdown()

    # -- the Lighthouse and its lease ------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Find a living Lighthouse, or become its host. Retries until it works; raises Stopping."""
        self._drop_group()
        said = False
        while not self._stopping():
            self._lease.read()
            if self._lease.address and not self._lease.mine and self._try_client(self._lease.address):
                self.attempt = self._lease.attempt
                if self._server is not None:  # this machine hosted one, and lost the lease to another
                    self._server.shutdown()
                    self._server = None
                return
            if self._may_take() and self._take(self._lease.attempt + 1):
                return
            if not said:
                self._report("waiting for the Lighthouse (master-0 starts it; another trainer after 15 s)")
                said = True
            self._closed.wait(0.3)
        raise Stopping

    def _try_client(self, address: str) -> bool:
        try:
            self._client = LighthouseClient(address, connect_timeout=timedelta(seconds=2))
            self._client.heartbeat(self._identity, timeout=timedelta(seconds=2))
        except Exception:
            return False
        self._lighthouse = address
        return True

    def _may_take(self) -> bool:
        if self._lease.mine:
            return True  # this machine held it and was restarted
        waited = time.monotonic() - self._joined_at > lease.LOST
        return (self._lease.missing or self._lease.lost) and (self._name == "master-0" or waited)

    def _take(self, attempt: int) -> bool:
        server = LighthouseServer(
            bind=f"{self._address}:0",
            min_replicas=1,  # this module judges each quorum itself
            join_timeout_ms=int(JOIN_TIMEOUT * 1000),
            heartbeat_timeout_ms=int(HEARTBEAT_LOST * 1000),
        )
        address = f"http://{self._address}:{urlsplit(server.address()).port}"
        if not self._lease.write(address, attempt):
            server.shutdown()
            return False
        if self._server is not None:
            self._server.shutdown()
        self._server = server
        self.attempt = attempt
        self._log(f"attempt {attempt}: the Lighthouse is here, at {address}")
        return self._try_client(address)

    def _renew(self) -> None:
        while not self._closed.wait(lease.RENEWED):
            server = self._server
            if server is None:
                continue
            try:
                if self._lease.write(self._lighthouse, self.attempt):
                    continue
            except Exception as error:  # storage may be away for a while; the lease then runs out
                self._log(f"the lease could not be renewed ({_first_line(error)})")
                continue
            self._log("another trainer took the Lighthouse over")  # it thought this machine dead
            self._server = None
            server.shutdown()
            self._deposed.set()

    def _beat(self) -> None:
        client, address = None, ""
        while not self._closed.wait(HEARTBEAT):
            try:
                if client is None or address != self._lighthouse:
                    address = self._lighthouse
                    client = LighthouseClient(address, connect_timeout=timedelta(seconds=2))
                client.heartbeat(self._identity, timeout=timedelta(seconds=2))
            except Exception:
                client = None


def _local_store(address: str) -> TCPStore:
    """A TCPStore that listens on `address` only; torch's own default is every address of the machine."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address, port, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listener.detach()
    )


def _first_line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"\[/[^]]*\] ", "", first)[:160]  # without the place in torch's sources
