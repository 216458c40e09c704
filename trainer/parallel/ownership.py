"""Share the flat vector (model.flat) among processes and parameter servers, and cut it into the buckets that travel.

Buckets are cut in the vector's order, which is the order in which gradients become ready. Each bucket is shared out
among all servers: so every server's link works all the time, and a bucket can be sent from where it lies.

The processes of a machine share the vector too: a process holds one lane, and exchanges it with the same lane of the
other machines and with all servers. So a machine's link carries each element once.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from trainer.model.layout import ALIGNMENT, Ranges

BUCKET_ELEMENTS = 2 * 2**20  # 8 MiB of fp32: GPT-2's 124M make 60, so that filling the pipeline costs little
NORM_BLOCKS = 8192  # at most: their sums of squares travel with every step's vote


def norm_block(total: int) -> int:
    """Return the elements of a block of the global norm, for a vector of `total` elements.

    It is a power of two, at least 64, and makes at most NORM_BLOCKS blocks. It depends on `total` alone, and
    servers own whole blocks: so the norm does not depend on the number of servers.
    """
    block = ALIGNMENT
    while block * NORM_BLOCKS < total:
        block *= 2
    return block


def cut_buckets(total: int, processes: int = 1, bucket: int | None = None) -> Ranges:
    """Return (start, stop) of each bucket of a vector.

    Args:
        total: elements of the vector.
        processes: of each machine. All buckets but the last have a whole number of norm blocks for each.
        bucket: elements of a bucket at most, but at least one norm block for each process; default BUCKET_ELEMENTS.
    """
    least = processes * norm_block(total)
    stride = max(least, (bucket or BUCKET_ELEMENTS) // least * least)
    return [(start, min(start + stride, total)) for start in range(0, total, stride)]


@dataclass(frozen=True)
class Lane:
    """The ranges of the flat vector that the processes of one local rank hold, one process on every machine.

    The lane's own vector has these ranges end to end.
    """

    ranges: tuple[tuple[int, int], ...]  # ascending, of any alignment

    @cached_property
    def size(self) -> int:
        """The elements of the lane's own vector."""
        return sum(stop - start for start, stop in self.ranges)

    @cached_property
    def aligned(self) -> bool:
        """Whether every cut is at a multiple of 64 elements, where arithmetic does not depend on the cut."""
        return all(edge % ALIGNMENT == 0 for edges in self.ranges for edge in edges)

    def place(self, start: int, stop: int) -> tuple[int, int]:
        """Return (start, stop) in the lane's own vector of its part of a range of the flat vector."""
        return self._before(start), self._before(stop)

    def held(self, start: int, stop: int) -> Ranges:
        """Return the ranges of the flat vector that the lane holds of one range."""
        first = max(0, bisect_right(self._starts, start) - 1)
        found = []
        for begin, end in self.ranges[first:]:
            if begin >= stop:
                break
            if end > start:
                found.append((max(begin, start), min(end, stop)))
        return found

    def _before(self, place: int) -> int:
        """Return how many of the lane's elements are before a place of the flat vector."""
        index = bisect_right(self._starts, place) - 1
        if index < 0:
            return 0
        start, stop = self.ranges[index]
        return self._offsets[index] + min(place, stop) - start

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self.ranges]

    @cached_property
    def _offsets(self) -> list[int]:
        return list(accumulate((stop - start for start, stop in self.ranges), initial=0))


def lanes(total: int, processes: int, bucket: int | None = None) -> list[Lane]:
    """Cut each bucket into slices of equal size, one for each process, and return each process's lane.

    Slices are whole norm blocks. So the last bucket's slices may reach beyond `total`, to the length of the flat vector
    that all lanes together have; one process alone has exactly the vector.
    """
    if processes == 1:
        return [Lane(((0, total),))]
    block = norm_block(total)
    slices: list[Ranges] = [[] for _ in range(processes)]
    for start, stop in cut_buckets(total, processes, bucket):
        size = -(-(stop - start) // (processes * block)) * block
        for k in range(processes):
            slices[k].append((start + k * size, start + (k + 1) * size))
    return [Lane(tuple(_merged(ranges))) for ranges in slices]


class Ownership:
    """The ownership of a flat vector of `total` elements. Servers differ by at most two blocks of the norm.

    buckets: (start, stop) of each bucket in the vector.
    pieces: pieces[bucket][server] = (start, stop) in the vector, ascending by server; may be empty.
    """

    def __init__(self, total: int, servers: int, bucket: int | None = None, processes: int = 1) -> None:
        """Share out `total` elements, in buckets as cut_buckets() cuts them."""
        self.total, self.servers = total, servers
        block = norm_block(total)
        self.buckets = cut_buckets(total, processes, bucket)
        self.pieces: list[list[tuple[int, int]]] = []
        held = [0] * servers  # held[n]: what the first n servers own together; aimed at n/servers of all so far
        for start, stop in self.buckets:
            cuts = [start]
            for n in range(1, servers):
                cut = start + round(stop * n / servers / block) * block - held[n]
                cuts.append(min(max(cut, cuts[-1]), stop))
                held[n] += cuts[n] - start
            self.pieces.append(list(pairwise([*cuts, stop])))

    def owned(self, server: int) -> Ranges:
        """Return the ranges of the vector that a server owns, ascending, without empty ones, neighbours merged."""
        return _merged([pieces[server] for pieces in self.pieces])

    def size(self, server: int) -> int:
        """Return how many elements a server owns: the length of its own vector."""
        return sum(stop - start for start, stop in self.owned(server))

    def places(self, server: int) -> Ranges:
        """Return (start, stop) of the server's piece of each bucket in the server's own vector."""
        ranges, start = [], 0
        for pieces in self.pieces:
            size = pieces[server][1] - pieces[server][0]
            ranges.append((start, start + size))
            start += size
        return ranges

    def parts(self, lane: Lane) -> list[Ranges]:
        """Return (start, stop) in the lane's own vector of each server's part of each bucket: parts[bucket][server].

        They follow each other. With one lane for all they are the pieces.
        """
        return [[lane.place(start, stop) for start, stop in pieces] for pieces in self.pieces]

    def segments(self, server: int, lane: Lane) -> list[Ranges]:
        """Return the ranges of the server's own vector that belong to a lane, for each bucket, neighbours merged.

        They have the elements of the lane's part in the same order. With one lane for all they are the places.
        """
        segments = []
        for pieces, (place, _) in zip(self.pieces, self.places(server), strict=True):
            begin, end = pieces[server]
            shared = lane.held(begin, end) if begin < end else []
            segments.append(_merged([(start - begin + place, stop - begin + place) for start, stop in shared]))
        return segments


def _merged(ranges: Ranges) -> Ranges:
    """Merge neighbours among ascending ranges, and leave empty ones out."""
    merged: Ranges = []
    for start, stop in ranges:
        if start == stop:
            continue
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged
