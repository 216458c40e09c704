"""The cost of a step's exchange by the network alone: it chooses the plan, and predicts a time for the log.

S bytes of gradients (and as many of parameters) on the wire, W trainers with links of B bytes/s each way, M servers
with links of C, all full duplex; latency and sums are not counted. A way takes as long as its busiest link.

star
    push: a trainer sends S, a server receives W·S/M:               max(S/B, W·S/(M·C)). A pull is the same backwards.
hierarchical
    push: a trainer sends W-1 slices of S/W to the others and forwards the sum of its own as fp32, f bytes for one of
    the wire (1 with fp32, 2 with bf16); a server receives f·S/M:   max(((W-1)/W + f/W)·S/B, f·S/(M·C))
    pull: a trainer receives its slice and W-1 others, a server sends S/M:          max(S/B, S/(M·C))
with a barrier (exact clipping: no parameter is known before the last gradient is in) a step takes push + pull. The
trainers' links alone then take 2·S/B: more than a ring all-reduce, whatever the servers are.
interleaved (no clipping) both ways share the links: what counts is a link's bytes in one direction, of both ways.
    star: max(S/B, W·S/(M·C)); hierarchical: max(((2·W-2)/W + f/W)·S/B, f·S/(M·C))
ring all-reduce of the trainers without servers: 2·(W-1)/W·S/B

(BytePS, OSDI'20, section 3, has star and ring. All of these are measured in benchmarks/parameter_server.py.)
"""

from dataclasses import dataclass
from typing import Literal

Plan = Literal["star", "hierarchical"]


@dataclass(frozen=True)
class Links:
    """The bandwidth of a trainer's and a server's link, in bytes/s each way."""

    trainer: float
    server: float
    known: bool = True

    @classmethod
    def of(cls, trainer_gbps: float | None, server_gbps: float | None) -> "Links":
        """Return links of these Gbit/s. If one is not known, all links count as equally fast."""
        if trainer_gbps is None or server_gbps is None:
            return cls(1.0, 1.0, known=False)
        return cls(trainer_gbps * 1e9 / 8, server_gbps * 1e9 / 8)


def star(size: float, trainers: int, servers: int, links: Links, interleaved: bool = False) -> float:
    """Return the seconds of a push and a pull of `size` bytes each, by the star plan."""
    way = max(size / links.trainer, trainers * size / (servers * links.server))
    return way if interleaved else 2 * way


def hierarchical(
    size: float, trainers: int, servers: int, links: Links, interleaved: bool = False, sums: float = 1.0
) -> float:
    """Return the seconds of a push and a pull of `size` bytes each, by the hierarchical plan.

    sums: bytes of fp32 for each byte on the wire.
    """
    others, own = size * (trainers - 1) / trainers / links.trainer, size / trainers / links.trainer
    to_server, from_server = sums * size / (servers * links.server), size / (servers * links.server)
    if interleaved:
        return max(2 * others + sums * own, to_server, from_server)
    return max(others + sums * own, to_server) + max(others + own, from_server)


def all_reduce(size: float, trainers: int, links: Links) -> float:
    """Return the seconds of the trainers' ring all-reduce of `size` bytes, without servers."""
    return 2 * (trainers - 1) / trainers * size / links.trainer


def choose(
    size: float, trainers: int, servers: int, links: Links, interleaved: bool = False, sums: float = 1.0
) -> Plan:
    """Return the faster plan: star, with half as many collectives, unless hierarchical is 1 % faster."""
    seconds = hierarchical(size, trainers, servers, links, interleaved, sums)
    return "hierarchical" if seconds < 0.99 * star(size, trainers, servers, links, interleaved) else "star"


def describe(
    plan: Plan, size: float, trainers: int, servers: int, links: Links, interleaved: bool = False, sums: float = 1.0
) -> str:
    """Return the prediction as a line for the log."""
    if not links.known:
        return f"{plan}: nothing predicted, because the machines' bandwidths are not known"
    seconds: dict[Plan, float] = {
        "star": star(size, trainers, servers, links, interleaved),
        "hierarchical": hierarchical(size, trainers, servers, links, interleaved, sums),
    }
    other: Plan = "star" if plan == "hierarchical" else "hierarchical"
    return (
        f"{plan}: {seconds[plan]:.3g} s a step predicted ({other} {seconds[other]:.3g} s,"
        f" all-reduce without servers {all_reduce(size, trainers, links):.3g} s)"
    )
