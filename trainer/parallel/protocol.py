"""What trainers and parameter servers conclude from the same quorum, so that both do the same collectives in order.

A step of a group with servers is: (a layout and a first vector, if the servers have none;) (a progress, if a trainer
has another;) (pull, if a trainer has other parameters;) push; one vote. See docs/architecture.md.
"""

from collections.abc import Callable

import torch

from trainer.cluster.membership import Quorum
from trainer.contract.exchange_cost import Links, choose, describe
from trainer.contract.spec import JobSpec
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Shards

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def settled(quorum: Quorum) -> bool:
    """Does every server know which it is, and are all at the same point? If not, they mend that first."""
    places = [server.announced.place for server in quorum.servers]
    return places == list(range(len(places))) and len({server.progress for server in quorum.servers}) == 1


def filled(quorum: Quorum) -> bool:
    """Do all servers have parameters? If not, which is at the very start, the first trainer gives them its own."""
    return all(server.announced.filled for server in quorum.servers)


def strangers(quorum: Quorum) -> bool:
    """Is a trainer at another point than the servers?"""
    here = quorum.servers[0].progress
    return any(trainer.progress != here for trainer in quorum.trainers)


def stale(quorum: Quorum) -> bool:
    """Must parameters be pulled, because a trainer has none or others?"""
    lineage = quorum.servers[0].progress[2]
    return not filled(quorum) or any(trainer.announced.holds != lineage for trainer in quorum.trainers)


def done(quorum: Quorum) -> bool:
    """Have all servers written the last checkpoint?"""
    return all(server.announced.done for server in quorum.servers)


def interleaved(spec: JobSpec) -> bool:
    """May servers send a bucket's new parameters before all gradients are there? With clipping they wait for the norm.

    And with pairs for the number of tokens that count, which trainers alone know.
    """
    return not spec.hyperparameters.gradient_clip and spec.data.format != "pairs"


def make_exchange(quorum: Quorum, spec: JobSpec, shards: Shards, log: Callable[[str], None]) -> Exchange:
    """The group's exchange, by the plan that the stack file names or the cost model chooses."""
    trainers, wire = len(quorum.trainers), WIRE[spec.parallel.wire]
    links = Links.of(spec.cluster.trainer_gbps, spec.cluster.server_gbps)
    size, both_ways = shards.total * wire.itemsize, interleaved(spec)
    sums = torch.float32.itemsize / wire.itemsize
    plan = spec.parallel.plan
    if plan == "auto":
        plan = choose(size, trainers, shards.servers, links, both_ways, sums)
    if quorum.rank in (0, trainers):  # the first of each role
        log(describe(plan, size, trainers, shards.servers, links, both_ways, sums))
    return Exchange(quorum.group, trainers, shards, plan, wire)
