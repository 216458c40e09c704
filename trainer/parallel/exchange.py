"""Move gradients to the parameter servers and parameters back: in buckets, over one group of all members.

Two plans. *Star*: every trainer sends each server its part of every bucket, and the server adds. *Hierarchical*: the
trainers exchange a bucket among themselves, each adds up one slice of it and sends that sum to the slice's owners;
parameters come back the same way. A server's link then carries 1/W of what it carries with star.

Sums are made in rank order with explicit adds in fp32, and sums travel as fp32 whatever the wire: so the plan does not
change a bit of the result.

Every transfer is an uneven all-to-all of all members; members without a part in it pass nothing. A pass over the
buckets is a pipeline of such collectives, its stages. Gloo matches collectives by the order in which they are issued,
and `_pipeline` is that order, on every member.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor

from trainer.cluster.group import MemberGroup, Pending
from trainer.contract.exchange_cost import Plan
from trainer.model.layout import ALIGNMENT
from trainer.parallel.ownership import Ownership

Sizes = Callable[[int, int, int], int]  # (bucket, sender, receiver) -> elements that go from one to the other
Stage = Callable[[int], Pending]  # begins a bucket's next collective
Finish = Callable[[int], None]  # the rest of the work on a bucket after its last collective
AHEAD = 2  # buckets on their way while one is waited for: with 1 links fall idle, 3 gain nothing


def nothing(bucket: int) -> None:
    """Do nothing with a bucket."""


class Exchange:
    """The traffic of one group, whose ranks are the trainers and then the servers.

    While trainers call push, pull, push_and_pull or fill, servers call collect, serve, collect_and_serve or fill. All
    calls raise GroupFailed when a member is lost. With star a server has buffers of 3·W times its piece of a bucket,
    with hierarchical and fp32 none; a trainer's buffers hold three buckets.
    """

    def __init__(self, group: MemberGroup, trainers: int, ownership: Ownership, plan: Plan, wire: torch.dtype) -> None:
        """Exchange what `ownership` shares out, by a plan.

        Args:
            group: of all trainers and servers.
            trainers: how many there are.
            ownership: of the flat vector.
            plan: star or hierarchical.
            wire: float32 or bfloat16, in which gradients and parameters travel.
        """
        assert group.size == trainers + ownership.servers
        self._group, self._trainers, self._ownership, self._plan, self._wire = group, trainers, ownership, plan, wire
        self._me = group.rank
        self._serves = self._me >= trainers
        self._places = ownership.places(self._me - trainers) if self._serves else []
        self._slices = [_cut(start, stop, trainers) for start, stop in ownership.buckets]
        self._buffers: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    # -- trainers --------------------------------------------------------------------------------------------------

    def push(self, vector: Tensor, ready: Callable[[int], None] = nothing) -> None:
        """Send `vector`, laid out like the parameters, to be added up.

        `ready(k)` blocks until bucket k of it is final; it is called once for each k, ascending.
        """
        self._pipeline(self._ascending, *self._push(vector, ready))

    def pull(self, vector: Tensor, arrived: Callable[[int], None] = nothing, *, exact: bool = False) -> None:
        """Fill `vector` with the servers' parameters, the last bucket first: the order of a forward pass.

        `arrived(k)` is called when bucket k is there. exact: as fp32, whatever the wire.
        """
        self._pipeline(reversed(self._ascending), *self._pull(vector, arrived, exact))

    def push_and_pull(self, gradients: Tensor, parameters: Tensor, ready: Callable[[int], None] = nothing) -> None:
        """Push gradients, and pull a bucket's new parameters while the next buckets of gradients are on their way."""
        push, _ = self._push(gradients, ready)
        pull, finish = self._pull(parameters, nothing, exact=False)
        self._pipeline(self._ascending, [*push, *pull], finish)

    # -- servers ---------------------------------------------------------------------------------------------------

    def collect(self, vector: Tensor) -> None:
        """Fill this server's own vector, fp32 [ownership.size(server)], with the sum of what the trainers push."""
        self._pipeline(self._ascending, *self._collect(vector))

    def serve(self, vector: Tensor, *, exact: bool = False) -> None:
        """Send this server's own vector to all trainers, which pull."""
        self._pipeline(reversed(self._ascending), *self._serve(lambda bucket: self._own(vector, bucket), exact))

    def collect_and_serve(self, gradients: Tensor, update: Callable[[int], Tensor]) -> None:
        """Serve push_and_pull.

        As soon as this server's piece of bucket k is summed in `gradients`, `update(k)` returns that piece of the new
        parameters, fp32.
        """
        collect, collected = self._collect(gradients)

        def updated(bucket: int) -> Tensor:
            collected(bucket)
            return update(bucket)

        serve, finish = self._serve(updated, exact=False)
        self._pipeline(self._ascending, [*collect, *serve], finish)

    # -- both ------------------------------------------------------------------------------------------------------

    def fill(self, vector: Tensor) -> None:
        """Copy the first trainer's vector, as fp32, to the servers' own vectors."""

        def sizes(bucket: int, sender: int, receiver: int) -> int:
            return self._to_owners(bucket, sender, receiver) if sender == 0 else 0

        def stage(bucket: int) -> Pending:
            if self._serves:
                return self._issue(sizes, bucket, output=self._own(vector, bucket))
            if self._me > 0:
                return self._issue(sizes, bucket)
            return self._issue(sizes, bucket, self._outgoing(self._whole(vector, bucket), bucket, torch.float32))

        self._pipeline(self._ascending, [stage], nothing)

    # -- the plans: each half's stages, and what remains after the last one ----------------------------------------

    def _push(self, vector: Tensor, ready: Callable[[int], None]) -> tuple[list[Stage], Finish]:
        def outgoing(bucket: int) -> Tensor:
            ready(bucket)
            return self._outgoing(self._whole(vector, bucket), bucket, self._wire)

        def slices(bucket: int) -> Tensor:
            return self._buffer("slices", bucket, self._trainers * self._slice(bucket, self._me), self._wire)

        def send(bucket: int) -> Pending:
            return self._issue(self._to_owners, bucket, outgoing(bucket))

        def scatter(bucket: int) -> Pending:
            return self._issue(self._among_trainers, bucket, outgoing(bucket), slices(bucket))

        def forward(bucket: int) -> Pending:
            total = self._buffer("sum", bucket, self._slice(bucket, self._me), torch.float32)
            self._add(slices(bucket), total)
            return self._issue(self._slice_to_owners, bucket, total)

        return ([send] if self._plan == "star" else [scatter, forward]), nothing

    def _collect(self, vector: Tensor) -> tuple[list[Stage], Finish]:
        def parts(bucket: int) -> Tensor:
            return self._buffer("parts", bucket, self._trainers * len(self._own(vector, bucket)), self._wire)

        def receive(bucket: int) -> Pending:
            return self._issue(self._to_owners, bucket, output=parts(bucket))

        def add(bucket: int) -> None:
            self._add(parts(bucket), self._own(vector, bucket))

        def scatter(bucket: int) -> Pending:
            return self._issue(self._among_trainers, bucket)

        def receive_sums(bucket: int) -> Pending:
            return self._issue(self._slice_to_owners, bucket, output=self._own(vector, bucket))

        return ([receive], add) if self._plan == "star" else ([scatter, receive_sums], nothing)

    def _pull(self, vector: Tensor, arrived: Callable[[int], None], exact: bool) -> tuple[list[Stage], Finish]:
        wire = torch.float32 if exact else self._wire

        def incoming(bucket: int) -> Tensor:
            return self._incoming(self._whole(vector, bucket), bucket, wire)

        def own_slice(bucket: int) -> Tensor:
            return self._buffer("slice", bucket, self._slice(bucket, self._me), wire, stages=2)

        def receive(bucket: int) -> Pending:
            return self._issue(_back(self._to_owners), bucket, output=incoming(bucket))

        def receive_slice(bucket: int) -> Pending:
            return self._issue(_back(self._slice_to_owners), bucket, output=own_slice(bucket))

        def spread(bucket: int) -> Pending:
            return self._issue(_back(self._among_trainers), bucket, own_slice(bucket), incoming(bucket), to_all=True)

        def finish(bucket: int) -> None:
            self._land(incoming(bucket), self._whole(vector, bucket))
            arrived(bucket)

        return ([receive] if self._plan == "star" else [receive_slice, spread]), finish

    def _serve(self, piece: Callable[[int], Tensor], exact: bool) -> tuple[list[Stage], Finish]:
        wire = torch.float32 if exact else self._wire

        def send(bucket: int) -> Pending:
            return self._issue(_back(self._to_owners), bucket, self._outgoing(piece(bucket), bucket, wire), to_all=True)

        def send_slices(bucket: int) -> Pending:
            return self._issue(_back(self._slice_to_owners), bucket, self._outgoing(piece(bucket), bucket, wire))

        def spread(bucket: int) -> Pending:
            return self._issue(_back(self._among_trainers), bucket)

        return ([send] if self._plan == "star" else [send_slices, spread]), nothing

    def _pipeline(self, buckets: Iterable[int], stages: list[Stage], finish: Finish) -> None:
        """Run the stages of all buckets, with AHEAD buckets on their way while one is waited for.

        Stage s of a bucket is issued after stage s - 1 of the bucket AHEAD of it. So stage s of a bucket is over before
        stage s of the one AHEAD + 1 after it is issued.
        """
        order = list(buckets)
        pending: dict[int, Pending] = {}
        for tick in range(len(order) + AHEAD * len(stages)):
            for depth in range(len(stages) + 1):
                place = tick - AHEAD * depth
                if not 0 <= place < len(order):
                    continue
                bucket = order[place]
                if depth > 0:
                    pending.pop(bucket).wait()
                if depth < len(stages):
                    pending[bucket] = stages[depth](bucket)
                else:
                    finish(bucket)

    # -- transfers from trainers to servers; parameters take the same ways back -----------------------------------

    def _to_owners(self, bucket: int, sender: int, receiver: int) -> int:
        """Return the elements where a trainer sends each server its piece of the bucket."""
        if not sender < self._trainers <= receiver:
            return 0
        start, stop = self._ownership.pieces[bucket][receiver - self._trainers]
        return stop - start

    def _among_trainers(self, bucket: int, sender: int, receiver: int) -> int:
        """Return the elements where a trainer sends each trainer its slice of the bucket."""
        return self._slice(bucket, receiver) if max(sender, receiver) < self._trainers else 0

    def _slice_to_owners(self, bucket: int, sender: int, receiver: int) -> int:
        """Return the elements where a trainer sends each server the part of its slice that the server owns."""
        if not sender < self._trainers <= receiver:
            return 0
        start, stop = self._slices[bucket][sender]
        first, last = self._ownership.pieces[bucket][receiver - self._trainers]
        return max(0, min(stop, last) - max(start, first))

    def _slice(self, bucket: int, trainer: int) -> int:
        start, stop = self._slices[bucket][trainer]
        return stop - start

    def _issue(
        self,
        sizes: Sizes,
        bucket: int,
        source: Tensor | None = None,
        output: Tensor | None = None,
        *,
        to_all: bool = False,
    ) -> Pending:
        """Begin a transfer of `sizes`. to_all: each receiver gets the whole source, instead of a part."""
        source = torch.empty(0, dtype=self._wire if output is None else output.dtype) if source is None else source
        output = torch.empty(0, dtype=source.dtype) if output is None else output
        ranks, me = range(self._group.size), self._me
        incoming, outgoing = [sizes(bucket, r, me) for r in ranks], [sizes(bucket, me, r) for r in ranks]
        parts = [source if size else source[:0] for size in outgoing] if to_all else torch.split(source, outgoing)
        return self._group.all_to_all(torch.split(output, incoming), parts)

    # -- places and buffers ----------------------------------------------------------------------------------------

    @property
    def _ascending(self) -> range:
        return range(len(self._ownership.buckets))

    def _whole(self, vector: Tensor, bucket: int) -> Tensor:
        start, stop = self._ownership.buckets[bucket]
        return vector[start:stop]

    def _own(self, vector: Tensor, bucket: int) -> Tensor:
        start, stop = self._places[bucket]
        return vector[start:stop]

    def _buffer(
        self, name: str, bucket: int, elements: int, dtype: torch.dtype, pinned: bool = False, stages: int = 1
    ) -> Tensor:
        """Return host memory that a bucket uses for so many stages; later buckets reuse it (see _pipeline)."""
        key = (name, bucket % (AHEAD * stages + 1), dtype)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < elements:
            buffer = self._buffers[key] = torch.empty(elements, dtype=dtype, pin_memory=pinned)
        return buffer[:elements]

    def _add(self, parts: Tensor, total: Tensor) -> None:
        """Sum the trainers' parts, which follow each other in `parts`, in rank order, in fp32."""
        first, *others = parts.view(self._trainers, len(total))
        total.copy_(first)
        for other in others:
            total.add_(other)

    def _outgoing(self, part: Tensor, bucket: int, dtype: torch.dtype) -> Tensor:
        """Return `part` as it travels: itself where that is possible, else a copy."""
        host = self._incoming(part, bucket, dtype, "outgoing")
        self._land(part, host)
        return host

    def _incoming(self, part: Tensor, bucket: int, dtype: torch.dtype, name: str = "incoming") -> Tensor:
        """Return where `part` is received: `part` itself where that is possible, else a buffer."""
        if part.device.type == "cpu" and part.dtype == dtype:
            return part
        return self._buffer(name, bucket, len(part), dtype, pinned=part.is_cuda)

    def _land(self, source: Tensor, target: Tensor) -> None:
        """Copy between a buffer and a part of a vector; a GPU copies on a stream of its own."""
        if source.data_ptr() == target.data_ptr():  # it travelled without a buffer
            return
        if source.device == target.device:
            target.copy_(source)
            return
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        gpu = source.device if source.is_cuda else target.device
        self._stream.wait_stream(torch.cuda.current_stream(gpu))  # a gradient is final when its kernels have run
        with torch.cuda.stream(self._stream):  # half of fp32 crosses the bus where the wire is bf16
            moved = source.to(target.dtype) if source.is_cuda else source.to(target.device, non_blocking=True)
            target.copy_(moved, non_blocking=True)
        self._stream.synchronize()


def _back(sizes: Sizes) -> Sizes:
    return lambda bucket, sender, receiver: sizes(bucket, receiver, sender)


def _cut(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut a bucket into slices, one for each trainer, equal but for alignment."""
    cuts = [start + (stop - start) * i // parts // ALIGNMENT * ALIGNMENT for i in range(parts)]
    return list(pairwise([*cuts, stop]))
