"""Move gradients to the parameter servers and parameters back: in buckets, over the group of one lane's members.

A lane's members are one process of each trainer machine, and all servers. With several processes a machine, each
server has an exchange for each lane, and each exchange moves the lane's part of every bucket.

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
from trainer.parallel.ownership import Lane, Ownership
from trainer.parallel.staging import Event, Segments, Staging, no_event

Sizes = Callable[[int, int, int], int]  # (bucket, sender, receiver) -> elements that go from one to the other
Stage = Callable[[int], Pending]  # begins a bucket's next collective
Finish = Callable[[int], None]  # the rest of the work on a bucket after its last collective
AHEAD = 2  # buckets on their way while one is waited for: with 1 links fall idle, 3 gain nothing


def nothing(bucket: int) -> None:
    """Do nothing with a bucket."""


class Exchange:
    """The traffic of one group, whose ranks are the trainers and then the servers.

    While trainers call push, pull, push_and_pull or fill, servers call collect, serve, collect_and_serve or fill. All
    calls raise GroupFailed when a member is lost. A trainer's vectors are the lane's own: with one process a machine,
    the flat vector. A server's are its own, all lanes in them; an exchange reads and writes its lane's elements only,
    so that the exchanges of several lanes can run at the same time.

    With star a server has buffers of 3·W times its piece of a bucket, with hierarchical and fp32 none, or three pieces
    where they are not contiguous; a trainer's buffers hold three buckets.
    """

    def __init__(
        self, group: MemberGroup, trainers: int, ownership: Ownership, lane: Lane, plan: Plan, wire: torch.dtype
    ) -> None:
        """Exchange what `ownership` shares out of a lane, by a plan.

        Args:
            group: of all trainers and servers.
            trainers: how many there are.
            ownership: of the flat vector.
            lane: the part of the flat vector that these trainers hold.
            plan: star or hierarchical.
            wire: float32 or bfloat16, in which gradients and parameters travel.
        """
        assert group.size == trainers + ownership.servers
        self._group, self._trainers, self._plan, self._wire = group, trainers, plan, wire
        self._me = group.rank
        self._serves = self._me >= trainers
        self._parts = ownership.parts(lane)
        self._places = [(parts[0][0], parts[-1][1]) for parts in self._parts]  # of buckets, in the lane's own vector
        self._slices = [_cut(start, stop, trainers) for start, stop in self._places]
        self._staging = Staging(AHEAD)
        segments = ownership.segments(self._me - trainers, lane) if self._serves else []
        self._own = Segments(segments, self._staging)

    # -- trainers --------------------------------------------------------------------------------------------------

    def push(self, vector: Tensor, ready: Callable[[int], None] = nothing, event: Event = no_event) -> None:
        """Send `vector`, the lane's own, to be added up.

        Args:
            vector: laid out like the lane's parameters.
            ready: ready(k) blocks until the work that writes bucket k is queued; called once for each k, ascending.
            event: event(k) marks the end of that work on a GPU.
        """
        self._pipeline(self._ascending, *self._push(vector, ready, event))

    def pull(
        self,
        vector: Tensor,
        arrived: Callable[[int], None] = nothing,
        event: Event = no_event,
        *,
        exact: bool = False,
    ) -> None:
        """Fill `vector` with the servers' parameters, the last bucket first: the order of a forward pass.

        Args:
            vector: the lane's own.
            arrived: arrived(k) is called when bucket k is there.
            event: event(k) marks the end of a GPU's work that reads or writes bucket k's former values.
            exact: as fp32, whatever the wire.
        """
        self._pipeline(reversed(self._ascending), *self._pull(vector, arrived, event, exact))

    def push_and_pull(
        self,
        gradients: Tensor,
        parameters: Tensor,
        ready: Callable[[int], None] = nothing,
        event: Event = no_event,
    ) -> None:
        """Push gradients, and pull a bucket's new parameters while the next buckets of gradients are on their way.

        A bucket's parameters are not read any more when its gradients are final: `event` is for both.
        """
        push, _ = self._push(gradients, ready, event)
        pull, finish = self._pull(parameters, nothing, event, exact=False)
        self._pipeline(self._ascending, [*push, *pull], finish)

    # -- servers ---------------------------------------------------------------------------------------------------

    def collect(self, vector: Tensor) -> None:
        """Fill the lane's elements of this server's own vector, fp32 [ownership.size(server)], with the pushed sum."""
        self._pipeline(self._ascending, *self._collect(vector))

    def serve(self, vector: Tensor, *, exact: bool = False) -> None:
        """Send the lane's elements of this server's own vector to all trainers, which pull."""
        self._pipeline(
            reversed(self._ascending), *self._serve(lambda bucket: self._own.gathered(vector, bucket), exact)
        )

    def collect_and_serve(self, gradients: Tensor, update: Callable[[int], Tensor]) -> None:
        """Serve push_and_pull.

        As soon as the lane's elements of this server's piece of bucket k are summed in `gradients`, `update(k)` returns
        those of the new parameters, fp32.
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
                return self._issue(sizes, bucket, output=self._own.receiving(vector, bucket))
            if self._me > 0:
                return self._issue(sizes, bucket)
            part = self._staging.outgoing(self._part(vector, bucket), bucket, torch.float32)
            return self._issue(sizes, bucket, part)

        def finish(bucket: int) -> None:
            if self._serves:
                self._own.received(vector, bucket)

        self._pipeline(self._ascending, [stage], finish)

    # -- the plans: each half's stages, and what remains after the last one ----------------------------------------

    def _push(self, vector: Tensor, ready: Callable[[int], None], event: Event) -> tuple[list[Stage], Finish]:
        def outgoing(bucket: int) -> Tensor:
            ready(bucket)
            return self._staging.outgoing(self._part(vector, bucket), bucket, self._wire, event)

        def slices(bucket: int) -> Tensor:
            return self._staging.buffer("slices", bucket, self._trainers * self._slice(bucket, self._me), self._wire)

        def send(bucket: int) -> Pending:
            return self._issue(self._to_owners, bucket, outgoing(bucket))

        def scatter(bucket: int) -> Pending:
            return self._issue(self._among_trainers, bucket, outgoing(bucket), slices(bucket))

        def forward(bucket: int) -> Pending:
            total = self._staging.buffer("sum", bucket, self._slice(bucket, self._me), torch.float32)
            self._add(slices(bucket), total)
            return self._issue(self._slice_to_owners, bucket, total)

        return ([send] if self._plan == "star" else [scatter, forward]), nothing

    def _collect(self, vector: Tensor) -> tuple[list[Stage], Finish]:
        def copies(bucket: int) -> Tensor:
            return self._staging.buffer("copies", bucket, self._trainers * self._own.elements(bucket), self._wire)

        def receive(bucket: int) -> Pending:
            return self._issue(self._to_owners, bucket, output=copies(bucket))

        def add(bucket: int) -> None:
            self._add(copies(bucket), self._own.receiving(vector, bucket))
            self._own.received(vector, bucket)

        def scatter(bucket: int) -> Pending:
            return self._issue(self._among_trainers, bucket)

        def receive_sums(bucket: int) -> Pending:
            return self._issue(self._slice_to_owners, bucket, output=self._own.receiving(vector, bucket))

        def received(bucket: int) -> None:
            self._own.received(vector, bucket)

        return ([receive], add) if self._plan == "star" else ([scatter, receive_sums], received)

    def _pull(
        self, vector: Tensor, arrived: Callable[[int], None], event: Event, exact: bool
    ) -> tuple[list[Stage], Finish]:
        wire = torch.float32 if exact else self._wire

        def incoming(bucket: int) -> Tensor:
            return self._staging.incoming(self._part(vector, bucket), bucket, wire)

        def own_slice(bucket: int) -> Tensor:
            return self._staging.buffer("slice", bucket, self._slice(bucket, self._me), wire, stages=2)

        def receive(bucket: int) -> Pending:
            return self._issue(_back(self._to_owners), bucket, output=incoming(bucket))

        def receive_slice(bucket: int) -> Pending:
            return self._issue(_back(self._slice_to_owners), bucket, output=own_slice(bucket))

        def spread(bucket: int) -> Pending:
            return self._issue(_back(self._among_trainers), bucket, own_slice(bucket), incoming(bucket), to_all=True)

        def finish(bucket: int) -> None:
            self._staging.land(incoming(bucket), self._part(vector, bucket), bucket, event)
            arrived(bucket)

        return ([receive] if self._plan == "star" else [receive_slice, spread]), finish

    def _serve(self, piece: Callable[[int], Tensor], exact: bool) -> tuple[list[Stage], Finish]:
        wire = torch.float32 if exact else self._wire

        def send(bucket: int) -> Pending:
            part = self._staging.outgoing(piece(bucket), bucket, wire)
            return self._issue(_back(self._to_owners), bucket, part, to_all=True)

        def send_slices(bucket: int) -> Pending:
            part = self._staging.outgoing(piece(bucket), bucket, wire)
            return self._issue(_back(self._slice_to_owners), bucket, part)

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
        """Return the elements where a trainer sends each server its part of the bucket."""
        if not sender < self._trainers <= receiver:
            return 0
        start, stop = self._parts[bucket][receiver - self._trainers]
        return stop - start

    def _among_trainers(self, bucket: int, sender: int, receiver: int) -> int:
        """Return the elements where a trainer sends each trainer its slice of the bucket."""
        return self._slice(bucket, receiver) if max(sender, receiver) < self._trainers else 0

    def _slice_to_owners(self, bucket: int, sender: int, receiver: int) -> int:
        """Return the elements where a trainer sends each server the part of its slice that the server owns."""
        if not sender < self._trainers <= receiver:
            return 0
        start, stop = self._slices[bucket][sender]
        first, last = self._parts[bucket][receiver - self._trainers]
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

    # -- places ----------------------------------------------------------------------------------------------------

    @property
    def _ascending(self) -> range:
        return range(len(self._parts))

    def _part(self, vector: Tensor, bucket: int) -> Tensor:
        """Return the bucket of a trainer's vector."""
        start, stop = self._places[bucket]
        return vector[start:stop]

    def _add(self, parts: Tensor, total: Tensor) -> None:
        """Sum the trainers' parts, which follow each other in `parts`, in rank order, in fp32."""
        first, *others = parts.view(self._trainers, len(total))
        total.copy_(first)
        for other in others:
            total.add_(other)


def _back(sizes: Sizes) -> Sizes:
    return lambda bucket, sender, receiver: sizes(bucket, receiver, sender)


def _cut(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut a bucket into slices, one for each trainer, equal but for alignment."""
    cuts = [start + (stop - start) * i // parts // ALIGNMENT * ALIGNMENT for i in range(parts)]
    return list(pairwise([*cuts, stop]))
