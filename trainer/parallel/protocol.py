"""Conclusions that trainers and parameter servers draw from the same quorum, to do the same collectives in order.

A step of a group with servers is: (the lane's ranges, if the group is new;) (layout and first vector, if the servers
have none;) (progress, if a trainer has another;) (pull, if a trainer has other parameters;) push; one vote. Each lane
does these in this order, and no lane waits for another but by way of a member that has both. See docs/architecture.md.
"""

from collections.abc import Callable, Sequence

import torch

from trainer.cluster.quorum import Quorum
from trainer.contract.exchange_cost import Links, choose, describe
from trainer.contract.spec import JobSpec
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Lane, Ownership

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def servers_agree(quorum: Quorum) -> bool:
    """Return whether every server knows its place and all are at the same position. If not, they see to that first."""
    places = [server.announced.place for server in quorum.servers]
    return places == list(range(len(places))) and len({server.progress for server in quorum.servers}) == 1


def servers_filled(quorum: Quorum) -> bool:
    """Return whether all servers hold parameters. If not, at the very start, the first trainer gives them its own."""
    return all(server.announced.filled for server in quorum.servers)


def trainer_differs(quorum: Quorum) -> bool:
    """Return whether a trainer is at another position than the servers."""
    server_progress = quorum.servers[0].progress
    return any(trainer.progress != server_progress for trainer in quorum.trainers)


def pull_needed(quorum: Quorum) -> bool:
    """Return whether trainers must pull, because one has no parameters or others."""
    lineage = quorum.servers[0].progress.lineage
    return not servers_filled(quorum) or any(trainer.announced.holds != lineage for trainer in quorum.trainers)


def servers_done(quorum: Quorum) -> bool:
    """Return whether all servers have written the last checkpoint."""
    return all(server.announced.done for server in quorum.servers)


def interleaved(spec: JobSpec) -> bool:
    """Return whether servers may send a bucket's new parameters before all gradients are there.

    With clipping they wait for the norm, and with pairs for the number of tokens that count, which only trainers know.
    The rows of fsdp's processes are cut anywhere, and AdamW of a part that is no multiple of 64 elements may differ in
    the last bit from AdamW of the whole: then what was sent would not be what the step makes.
    """
    parts_match = spec.parallel.parallelism == "replicas"
    return parts_match and not spec.hyperparameters.gradient_clip and spec.data.format != "pairs"


def tell_lanes(quorum: Quorum, own: Lane | None) -> list[Lane]:
    """Tell the servers which ranges each lane's trainers hold. All members call it, once in each group.

    Args:
        quorum: of the new group.
        own: this trainer's lane; None for a server.

    Returns:
        The lane of each of quorum.lanes: a trainer has its own, a server all.
    """
    ranges = own.ranges if own is not None else None
    told = [group.broadcast_json(ranges, 0) for group in quorum.lanes]
    return [Lane(tuple((start, stop) for start, stop in pairs)) for pairs in told]


def make_exchanges(
    quorum: Quorum, spec: JobSpec, ownership: Ownership, lanes: Sequence[Lane], log: Callable[[str], None]
) -> list[Exchange]:
    """Return an exchange for each of quorum.lanes, by the plan that the stack file names or the cost model chooses.

    The lanes of a machine share its link: together they take as long as one lane of the whole vector.
    """
    trainers, wire = len(quorum.trainers), WIRE[spec.parallel.wire]
    links = Links.of(spec.cluster.trainer_gbps, spec.cluster.server_gbps)
    size, both_ways = ownership.total * wire.itemsize, interleaved(spec)
    sums = torch.float32.itemsize / wire.itemsize
    plan = spec.parallel.plan
    if plan == "auto":
        plan = choose(size, trainers, ownership.servers, links, both_ways, sums)
    if quorum.rank in (0, trainers):  # the first of each role
        log(describe(plan, size, trainers, ownership.servers, links, both_ways, sums))
    return [
        Exchange(group, trainers, ownership, lane, plan, wire) for group, lane in zip(quorum.lanes, lanes, strict=True)
    ]
