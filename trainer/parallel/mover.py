"""The thread of a process that moves buckets while another one computes."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class Mover:
    """A thread that does one piece of work at a time; on a GPU, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        initialize = (lambda: torch.cuda.set_device(device)) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "mover", initialize)  # each thread has a current device of its own
        self._moving: Future[None] | None = None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.waited = 0.0  # seconds that wait() took

    @property
    def busy(self) -> bool:
        """Whether work was begun and not waited for."""
        return self._moving is not None

    def begin(self, work: Callable[[], None]) -> None:
        """Begin some work. On a GPU it comes after the work that the current stream has by now."""
        self.follow()
        self._moving = self._thread.submit(self._do, work)

    def follow(self) -> None:
        """Let what the thread does on a GPU from now on come after the work that the current stream has."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def _do(self, work: Callable[[], None]) -> None:
        if self.stream is None:
            work()
            return
        with torch.cuda.stream(self.stream):
            work()

    def event(self, bucket: int) -> torch.cuda.Event | None:
        """Return an event on the GPU after all work that the thread has queued there; None on a CPU."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def wait(self) -> None:
        """Wait until the work is done; on a GPU, let the current stream wait for it. Raise what it has raised."""
        if self._moving is None:
            return
        moving, self._moving = self._moving, None
        started = time.monotonic()
        try:
            moving.result()
        finally:
            self.waited += time.monotonic() - started
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def forget(self) -> None:
        """Wait until the work has ended, as wait() does, and forget what it has raised."""
        if self._moving is not None:
            self._moving.exception()
            if self.stream is not None:  # what it queued may still write to vectors
                torch.cuda.current_stream().wait_stream(self.stream)
        self._moving = None
