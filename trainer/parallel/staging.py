"""Stage parts of a vector in host memory, from which they are sent and into which they are received."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.model.layout import Ranges

Event = Callable[[int], torch.cuda.Event | None]  # of a bucket; None: wait for everything queued on its GPU


def no_event(bucket: int) -> None:
    """Return no event of a bucket."""


class Staging:
    """The buffers of an exchange, and the copies between them and vectors, which may be on a GPU.

    Copies from and to a GPU run on a stream of their own, and wait for an event of their bucket alone: the CPU queues a
    whole pass ahead of the GPU, and a copy that waited for all of it would overlap with nothing.
    """

    def __init__(self, ahead: int) -> None:
        """ahead: the buckets that are on their way while one is waited for."""
        self._ahead = ahead
        self._buffers: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def buffer(
        self, name: str, bucket: int, elements: int, dtype: torch.dtype, pinned: bool = False, stages: int = 1
    ) -> Tensor:
        """Return host memory that a bucket uses for so many stages; later buckets reuse it (Exchange._pipeline)."""
        key = (name, bucket % (self._ahead * stages + 1), dtype)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < elements:
            buffer = self._buffers[key] = torch.empty(elements, dtype=dtype, pin_memory=pinned)
        return buffer[:elements]

    def outgoing(self, part: Tensor, bucket: int, dtype: torch.dtype, event: Event = no_event) -> Tensor:
        """Return `part` as it travels: itself where that is possible, else a copy.

        event: after which its GPU has written `part`.
        """
        host = self.incoming(part, bucket, dtype, "outgoing")
        self.land(part, host, bucket, event)
        return host

    def incoming(self, part: Tensor, bucket: int, dtype: torch.dtype, name: str = "incoming") -> Tensor:
        """Return where `part` is received: `part` itself where that is possible, else a buffer."""
        if part.device.type == "cpu" and part.dtype == dtype:
            return part
        return self.buffer(name, bucket, len(part), dtype, pinned=part.is_cuda)

    def land(self, source: Tensor, target: Tensor, bucket: int, event: Event = no_event) -> None:
        """Copy between a buffer and a part of a vector, and wait for the copy.

        event: after which the GPU has written `source`, or reads `target` no longer.
        """
        if source.data_ptr() == target.data_ptr():  # it travelled without a buffer
            return
        if source.device == target.device:
            target.copy_(source)
            return
        gpu = source.device if source.is_cuda else target.device
        self._stream = self._stream or torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]
        after = event(bucket)
        if after is None:
            self._stream.wait_stream(torch.cuda.current_stream(gpu))
        else:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            if source.dtype != target.dtype:  # half of fp32 crosses the bus where the wire is bf16
                source = source.to(target.dtype) if source.is_cuda else source.to(gpu, non_blocking=True)
            target.copy_(source, non_blocking=True)
        self._stream.synchronize()


class Segments:
    """The elements of a server's own vector that one exchange reads and writes: some ranges for each bucket.

    A bucket with one range travels from and to where it is in the vector, others by way of buffers.
    """

    def __init__(self, segments: list[Ranges], staging: Staging) -> None:
        """segments: the ranges of each bucket, ascending."""
        self._segments, self._staging = segments, staging

    def elements(self, bucket: int) -> int:
        return sum(stop - start for start, stop in self._segments[bucket])

    def receiving(self, vector: Tensor, bucket: int) -> Tensor:
        """Return where a bucket is received; received() then copies it to the vector if it is not there."""
        return self._whole(vector, bucket, "received")

    def received(self, vector: Tensor, bucket: int) -> None:
        segments = self._segments[bucket]
        if len(segments) > 1:
            parts = torch.split(self.receiving(vector, bucket), [stop - start for start, stop in segments])
            for (start, stop), part in zip(segments, parts, strict=True):
                vector[start:stop] = part

    def gathered(self, vector: Tensor, bucket: int) -> Tensor:
        """Return a bucket as one tensor."""
        segments, whole = self._segments[bucket], self._whole(vector, bucket, "gathered")
        if len(segments) > 1:
            torch.cat([vector[start:stop] for start, stop in segments], out=whole)
        return whole

    def _whole(self, vector: Tensor, bucket: int, name: str) -> Tensor:
        if len(self._segments[bucket]) == 1:
            start, stop = self._segments[bucket][0]
            return vector[start:stop]
        return self._staging.buffer(name, bucket, self.elements(bucket), torch.float32)
