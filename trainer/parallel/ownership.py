"""Share the flat vector (model.flat) among parameter servers, and cut it into the buckets in which it travels.

Buckets are cut in the vector's order, which is the order in which gradients become ready. Each bucket is shared out
among all servers: so every server's link works all the time, and a bucket can be sent from where it lies.
"""

from itertools import pairwise

BUCKET_ELEMENTS = 2 * 2**20  # 8 MiB of fp32: GPT-2's 124M make 60, so that filling the pipeline costs little
NORM_BLOCKS = 8192  # at most: their sums of squares travel with every step's vote


def norm_block(total: int) -> int:
    """Return the elements of a block of the global norm, for a vector of `total` elements.

    It is a power of two, at least 64, and makes at most NORM_BLOCKS blocks. It depends on `total` alone, and
    servers own whole blocks: so the norm does not depend on the number of servers.
    """
    block = 64
    while block * NORM_BLOCKS < total:
        block *= 2
    return block


class Ownership:
    """The ownership of a flat vector of `total` elements. Servers differ by at most two blocks of the norm.

    buckets: (start, stop) of each bucket in the vector.
    pieces: pieces[bucket][server] = (start, stop) in the vector, ascending by server; may be empty.
    """

    def __init__(self, total: int, servers: int, bucket: int = BUCKET_ELEMENTS) -> None:
        """Share out `total` elements. A bucket has `bucket` elements at most, but at least one block of the norm."""
        self.total, self.servers = total, servers
        block = norm_block(total)
        stride = max(block, bucket // block * block)
        self.buckets = [(start, min(start + stride, total)) for start in range(0, total, stride)]
        self.pieces: list[list[tuple[int, int]]] = []
        held = [0] * servers  # held[n]: what the first n servers own together; aimed at n/servers of all so far
        for start, stop in self.buckets:
            cuts = [start]
            for n in range(1, servers):
                cut = start + round(stop * n / servers / block) * block - held[n]
                cuts.append(min(max(cut, cuts[-1]), stop))
                held[n] += cuts[n] - start
            self.pieces.append(list(pairwise([*cuts, stop])))

    def owned(self, server: int) -> list[tuple[int, int]]:
        """Return the ranges of the vector that a server owns, ascending, without empty ones, neighbours merged."""
        ranges: list[tuple[int, int]] = []
        for pieces in self.pieces:
            start, stop = pieces[server]
            if start == stop:
                continue
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        return ranges

    def size(self, server: int) -> int:
        """Return how many elements a server owns: the length of its own vector."""
        return sum(stop - start for start, stop in self.owned(server))

    def places(self, server: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the server's piece of each bucket in the server's own vector."""
        ranges, start = [], 0
        for pieces in self.pieces:
            size = pieces[server][1] - pieces[server][0]
            ranges.append((start, start + size))
            start += size
        return ranges
