"""Find, host and ask the Lighthouse: torchft's server that knows which members are alive.

Its address is a lease in the bucket (lease.py). master-0 starts the first one; when its lease runs out, the first
member that notices takes it over, and the attempt goes up by one.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from trainer.cluster import lease
from trainer.cluster.host import Host
from trainer.cluster.lease import Lease
from trainer.contract.errors import first_line
from trainer.storage.base import Storage

os.environ.setdefault("RUST_LOG", "error")  # before torchft is imported
try:  # wheels exist for Linux x86-64 and CPython 3.11 to 3.13; elsewhere a run has one trainer
    from torchft.coordination import LighthouseClient, LighthouseServer
except ImportError:  # pragma: no cover
    LighthouseServer = None
AVAILABLE = LighthouseServer is not None
HEARTBEAT = 0.5  # seconds between heartbeats
HEARTBEAT_LOST = 5.0  # without one for this long, a member is gone
JOIN_TIMEOUT = 60.0  # a living member that is slower than this to the next step is left out of it


class Stopping(Exception):
    """This machine was asked to leave while it waited for the others."""


class Lighthouse:
    """The Lighthouse as one member sees it. `ask` and `connect` are called from one thread."""

    def __init__(self, storage: Storage, run: str, identity: str, host: Host) -> None:
        """identity: of this member, never used before."""
        self._identity, self._host = identity, host
        self._lease = Lease(storage, run, host.name)
        self._closed, self._silent = threading.Event(), threading.Event()
        self._deposed = threading.Event()  # another member has the lease that was here
        self._asking = ThreadPoolExecutor(1)
        self._server: Any = None
        self._client: Any = None
        self._address_found = ""
        self._begun = time.monotonic()
        self.attempt = 0

    def alone(self) -> None:
        """Count an attempt without a Lighthouse, which a run of one member does not need."""
        self._lease.read()
        while not self._lease.write("", self._lease.attempt + 1):
            self._lease.read()
        self.attempt = self._lease.attempt

    def start(self) -> None:
        """Take or find the Lighthouse and start heartbeats. Raise Stopping."""
        self._begun = time.monotonic()
        self.connect(self._host.stopping)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def ask(self, store: str, step: int, data: dict[str, Any], stop: Callable[[], bool]) -> Any:
        """Return its answer, once all members have asked; None if it is lost, or `stop` becomes true meanwhile.

        The answer may take long, so another thread waits for it.
        """
        if self._deposed.is_set():  # a server that was shut down still answers those that are connected
            self._deposed.clear()
            return None
        request = self._asking.submit(
            self._client.quorum,
            replica_id=self._identity,
            timeout=timedelta(seconds=JOIN_TIMEOUT + 10),
            address="",
            store_address=store,
            step=step,
            data=data,
        )
        looked = time.monotonic()
        while not wait([request], timeout=0.5).done:
            self._host.report()  # alive: waiting for a slower member
            now, lost = time.monotonic(), False
            if now - looked > lease.RENEWED:
                looked, lost = now, self._lost()
            if lost or stop():
                self._asking = ThreadPoolExecutor(1)  # the old thread waits until this process ends
                if lost:
                    self._host.log(f"the Lighthouse at {self._address_found} is silent and its lease has run out")
                return None
        error = request.exception()
        if error is not None:
            self._host.log(f"the Lighthouse at {self._address_found} does not answer ({first_line(error)})")
            return None
        return request.result()

    def _lost(self) -> bool:
        """Return whether another machine has the lease, or its holder, perhaps frozen, has let it run out."""
        if self._server is not None:
            return False
        try:
            self._lease.read()
        except Exception as error:  # storage may be away for a while
            self._host.log(f"the lease could not be read ({first_line(error)})")
            return False
        return self._lease.address != self._address_found or self._lease.lost

    def silence(self) -> None:
        """End the heartbeats. A Lighthouse that is hosted here stays, so that the attempt is the same until close()."""
        self._silent.set()

    def close(self) -> None:
        """End the heartbeats, and let another member take over a Lighthouse that is hosted here."""
        self.silence()
        self._closed.set()
        if self._server is not None:
            with suppress(Exception):  # without it, the others wait until the lease has run out
                self._lease.release()
            with suppress(Exception):
                self._server.shutdown()

    def connect(self, stop: Callable[[], bool]) -> None:
        """Find a living Lighthouse, or become its host; try until it works. Raise Stopping once `stop` is true."""
        reported = False
        while not stop():
            self._lease.read()
            if self._lease.address and not self._lease.mine and self._try_client(self._lease.address):
                self.attempt = self._lease.attempt
                if self._server is not None:  # this machine hosted one, and lost the lease to another
                    self._server.shutdown()
                    self._server = None
                return
            if self._may_take() and self._take(self._lease.attempt + 1):
                return
            if not reported:
                self._host.report("waiting for the Lighthouse (master-0 starts it; another member after 15 s)")
                reported = True
            self._closed.wait(0.3)
        raise Stopping

    def _try_client(self, address: str) -> bool:
        try:
            self._client = LighthouseClient(address, connect_timeout=timedelta(seconds=2))
            self._client.heartbeat(self._identity, timeout=timedelta(seconds=2))
        except Exception:
            return False
        self._address_found = address
        return True

    def _may_take(self) -> bool:
        if self._lease.mine:
            return True  # this machine held it and was restarted
        waited = time.monotonic() - self._begun > lease.LOST
        return (self._lease.missing or self._lease.lost) and (self._host.name == "master-0" or waited)

    def _take(self, attempt: int) -> bool:
        server = LighthouseServer(
            bind=f"{self._host.address}:0",
            min_replicas=1,  # this module judges each quorum itself
            join_timeout_ms=int(JOIN_TIMEOUT * 1000),
            heartbeat_timeout_ms=int(HEARTBEAT_LOST * 1000),
        )
        address = f"http://{self._host.address}:{urlsplit(server.address()).port}"
        if not self._lease.write(address, attempt):
            server.shutdown()
            return False
        if self._server is not None:
            self._server.shutdown()
        self._server = server
        self.attempt = attempt
        self._host.log(f"attempt {attempt}: the Lighthouse is here, at {address}")
        return self._try_client(address)

    def _renew(self) -> None:
        while not self._closed.wait(lease.RENEWED):
            server = self._server
            if server is None:
                continue
            try:
                holds_lease = self._lease.mine and self._lease.attempt == self.attempt
                if holds_lease and self._lease.write(self._address_found, self.attempt):
                    continue
            except Exception as error:  # storage may be away for a while; the lease then runs out
                self._host.log(f"the lease could not be renewed ({first_line(error)})")
                continue
            self._host.log("another member took the Lighthouse over")  # it thought this machine dead
            self._server = None
            server.shutdown()
            self._deposed.set()

    def _beat(self) -> None:
        client, address = None, ""
        while not self._silent.wait(HEARTBEAT):
            try:
                if client is None or address != self._address_found:
                    address = self._address_found
                    client = LighthouseClient(address, connect_timeout=timedelta(seconds=2))
                client.heartbeat(self._identity, timeout=timedelta(seconds=2))
            except Exception:
                client = None
