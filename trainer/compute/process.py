"""The computing process itself: its log, its reports, and the notice to leave."""

import ctypes
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

FINISH = 5.0  # seconds after a notice in which the step that is under way may still be finished


class Process:
    """Logs, reports to the supervisor, and hears that this machine must leave.

    `give_up` is called FINISH seconds after the notice.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address, self._told = name, address, math.inf
        self.give_up: Callable[[], None] = lambda: None
        descriptor = os.environ.get("GPT2_TRAINING_REPORT_FD")
        self._reports = os.fdopen(int(descriptor), "w", buffering=1) if descriptor else None
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGINT, self._terminated)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        threading.Thread(target=self._hear, args=(reading,), name="notice", daemon=True).start()

    def _hear(self, signals: int) -> None:
        """Hear a signal at once: the main thread runs no handler while a library makes it wait for other members."""
        os.read(signals, 1)
        self._terminated()
        time.sleep(FINISH)
        self.give_up()

    def _terminated(self, *_: object) -> None:
        self._told = min(self._told, time.monotonic())

    def stopping(self) -> bool:
        return self._told < math.inf

    def since_told(self) -> float:
        """Return the seconds since this machine was asked to leave."""
        return time.monotonic() - self._told

    def log(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def report(self, message: str | None = None, step: int | None = None, patience: float | None = None) -> None:
        """Tell the supervisor what this machine does; patience: seconds that it may be silent from now on."""
        if self._reports is not None:
            self._reports.write(json.dumps({"message": message, "step": step, "patience": patience}) + "\n")


def die_with_parent() -> None:
    """On Linux, let the kernel kill this process when the supervisor is killed: a machine dies as a whole."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("GPT2_TRAINING_SUPERVISOR", os.getppid())):
            os._exit(1)  # it died before the kernel knew
