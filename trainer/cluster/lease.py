"""The lease in cluster.json: which machine hosts the Lighthouse, and the attempt. Its holder renews it.

It changes only by conditional writes: of two machines that want it one gets it, and a holder that was believed dead
notices that it lost it.
"""

import json
import threading
import time

from trainer.contract import pace, paths
from trainer.storage.base import Conflict, Storage


class NoProgress(Exception):
    """Members are here, and no group of them takes a step."""


RENEWED, LOST = pace.LEASE, 15.0  # seconds between renewals; seconds without one after which another may take it


class Lease:
    """The lease as it was last read or written here. Threads may share it."""

    def __init__(self, storage: Storage, run: str, name: str) -> None:
        """name: of this machine."""
        self._storage, self._path, self._name = storage, paths.lease(run), name
        self._lock = threading.Lock()
        self._generation = 0
        self.address, self.holder, self.attempt, self._renewed = "", "", 0, 0.0

    def read(self) -> None:
        with self._lock:
            try:
                body, self._generation = self._storage.read_generation(self._path)
            except FileNotFoundError:
                self._generation = 0
                return
        lease = json.loads(body)
        self.address, self.holder = str(lease["address"]), str(lease["holder"])
        self.attempt, self._renewed = int(lease["attempt"]), float(lease["renewed"])

    @property
    def missing(self) -> bool:
        """Return whether no machine ever had it."""
        return self._generation == 0

    @property
    def mine(self) -> bool:
        """Return whether this machine has it, or had it before it was restarted."""
        return self.holder == self._name

    @property
    def lost(self) -> bool:
        """Return whether its holder failed to renew it."""
        return time.time() - self._renewed > LOST

    def release(self) -> None:
        """Let another machine take it at once instead of after LOST seconds. Until then it is still this machine's."""
        self.write(self.address, self.attempt, renewed=0.0)

    def write(self, address: str, attempt: int, renewed: float | None = None) -> bool:
        """Take or renew it. False if another changed it since it was read or written here."""
        renewed = time.time() if renewed is None else renewed
        lease = {"address": address, "attempt": attempt, "holder": self._name, "renewed": renewed}
        with self._lock:
            try:
                body = json.dumps(lease).encode()
                self._generation = self._storage.write(self._path, body, if_generation=self._generation)
            except Conflict:
                return False
        self.address, self.holder, self.attempt, self._renewed = address, self._name, attempt, renewed
        return True


def newest_attempt(storage: Storage, run: str, name: str) -> int:
    """Return the newest attempt of a run, as machine `name` reads it; 0 if there was none."""
    lease = Lease(storage, run, name)
    lease.read()
    return lease.attempt
