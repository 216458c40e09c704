"""Tell, bucket by bucket, when gradients have become final and when parameters have arrived.

The thread that computes goes through the model; another one moves buckets (mover.py). Hooks on the model's tensors and
modules make each wait for the other only where it must.
"""

import threading
import time
from functools import partial
from typing import Protocol

import torch
from transformers import GPT2LMHeadModel

from trainer.model.layout import Layout, Ranges

Event = torch.cuda.Event | None


class LaidOut(Protocol):
    """A model and the layout of its parameters in a flat vector."""

    model: GPT2LMHeadModel
    layout: Layout


class Readiness:
    """The buckets of a flat vector that are ready, on one process."""

    def __init__(self, buckets: Ranges, device: torch.device) -> None:
        """Begin with all parameters here and all gradients final."""
        self._bounds = buckets
        self._final = [threading.Event() for _ in buckets]  # its gradient will not change any more
        self._here = [threading.Event() for _ in buckets]  # its parameters have arrived
        self._events: list[Event] = [None] * len(buckets)  # of the GPU's work that makes its gradient
        self._arrivals: list[Event] = [None] * len(buckets)  # of the GPU's work that brings its parameters
        self._cuda = device.type == "cuda"
        self._missing = [0] * len(buckets)  # tensors of the bucket whose gradient is not final
        self._touched: list[list[int]] = []  # the buckets of each tensor that is watched
        self._watching = self._fetching = False
        self.waited = 0.0  # seconds that the forward pass has waited
        self.error: BaseException | None = None  # why parameters will not arrive
        self.arrive_all()
        for event in self._final:
            event.set()

    # -- gradients -------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Begin to watch the backward pass that makes gradients final."""
        self._missing = [0] * len(self._final)
        for touched in self._touched:
            for bucket in touched:
                self._missing[bucket] += 1
        for event in self._final:
            event.clear()
        self._watching = True

    def expect(self) -> None:
        """Declare that no gradient is final, and do not watch yet."""
        for event in self._final:
            event.clear()
        self._watching = False

    def finish(self) -> None:
        """Declare all gradients final."""
        for bucket, event in enumerate(self._final):
            if not event.is_set():
                self._record(bucket)
                event.set()
        self._watching = False

    def until_final(self, bucket: int) -> None:
        """Wait until a bucket's gradient is final; let a GPU's current stream wait for the work that makes it."""
        self._final[bucket].wait()
        event = self._events[bucket]
        if event is not None:
            torch.cuda.current_stream().wait_event(event)

    def _record(self, bucket: int) -> None:
        self._events[bucket] = self._recorded(self._events[bucket])

    def _recorded(self, event: Event) -> Event:
        """Return an event after the work that the current stream of a GPU has by now; None on a CPU."""
        if self._cuda:
            event = event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return event

    def _became_final(self, touched: list[int]) -> None:
        if not self._watching:
            return
        for bucket in touched:
            self._missing[bucket] -= 1
            if not self._missing[bucket]:
                self._record(bucket)
                self._final[bucket].set()

    # -- parameters ------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Declare that parameters are on their way."""
        self.error, self._fetching = None, True
        for event in self._here:
            event.clear()

    def arrived(self, bucket: int) -> None:
        """Declare a bucket here, once a GPU has done the work that the caller's stream has by now."""
        self._arrivals[bucket] = self._recorded(self._arrivals[bucket])
        self._here[bucket].set()

    def arrive_all(self) -> None:
        """Let nobody wait any more: all parameters are here, or none will come."""
        self._fetching = False
        for event in self._here:
            event.set()

    def fail(self, error: BaseException) -> None:
        """Let the forward pass raise `error`."""
        self.error = error
        for event in self._here:
            event.set()

    def _until_here(self, needed: list[int]) -> None:
        if not self._fetching:
            return
        started = time.monotonic()
        for bucket in needed:
            self._here[bucket].wait()
            arrival = self._arrivals[bucket]
            if arrival is not None:  # the machine's processes gather on a stream of their own
                torch.cuda.current_stream().wait_event(arrival)
        self.waited += time.monotonic() - started
        if self.error is not None:
            raise self.error

    # -- hooks -----------------------------------------------------------------------------------------------------

    def hook_gradients(self, flat: LaidOut) -> None:
        """Let the backward pass tell which gradients are final, while it continues. Else they are final together."""
        parameters = dict(flat.model.named_parameters())
        for name, start, size, _ in flat.layout:
            touched = self._buckets_of(start, size)
            self._touched.append(touched)
            hook = partial(self._became_final, touched)
            parameters[name].register_post_accumulate_grad_hook(lambda _, hook=hook: hook())

    def hook_modules(self, flat: LaidOut) -> None:
        """Let the embeddings, each block and the last norm of the forward pass wait for their parameters.

        The inside of a block may be compiled, and then calls no hooks.
        """
        transformer = flat.model.transformer
        parts = {f"transformer.h.{i}": block for i, block in enumerate(transformer.h)}
        parts |= {f"transformer.{name}": getattr(transformer, name) for name in ("wte", "wpe", "ln_f")}
        for name, module in parts.items():
            own = [(start, size) for tensor, start, size, _ in flat.layout if tensor.startswith(f"{name}.")]
            needed = sorted({bucket for start, size in own for bucket in self._buckets_of(start, size)})
            if needed:
                module.register_forward_pre_hook(lambda *_, needed=needed: self._until_here(needed))

    def _buckets_of(self, start: int, size: int) -> list[int]:
        """Return the buckets that hold a part of a tensor."""
        return [k for k, (begin, end) in enumerate(self._bounds) if begin < start + size and start < end]
