"""Estimate what a step waits for: gradients and parameters between a machine's processes, and between machines."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infra.fleet.fleet import Fleet
from infra.sizing import memory, workload
from infra.sizing.ranges import NOTHING, Range
from infra.sizing.speed import GPUS
from infra.stack.config import StackConfig
from infra.stack.keys import data_format
from trainer.contract import exchange_cost, geometry
from trainer.contract.memory import keeps_whole_gradients

# Exchanges took so many times the cost model's seconds (docs/performance.md, shaped links).
EXCHANGE = Range(1.02, 1.35)
# The least bytes/s of a connection between machines: gloo uses one TCP connection for each pair, of each lane. Ours.
SLOW_LINK = 8e9 / 8
LOOPBACK = Range(0.5e9, 3e9)  # bytes/s of all processes of one machine together. Ours.
PEERS = Range(0.5, 2)  # times the bandwidth between the GPUs of a machine. Ours.
# The part of what can travel while the GPU computes that does so: all of it at best, half at worst. Ours.
HIDDEN = Range(0.5, 1)


@dataclass(frozen=True)
class Exchange:
    """What a step waits for.

    seconds: what computing does not hide. plan: of the parameter servers; empty without them. origin: in words.
    """

    seconds: Range
    plan: str
    origin: str


def exchange(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, computing: Range) -> Exchange:
    """Estimate the exchange of a step.

    Gradients travel during the last backward pass, bucket by bucket: first between the processes of a machine, then, a
    lane for each process, between machines over the one link that each has.

    Args:
        config: the stack.
        fleet: its machines.
        size: the model's dimensions.
        computing: seconds in which the busiest process computes its part of a step.
    """
    parallel = config.file.parallel
    if fleet.trainers == 1 and fleet.servers is None:
        return Exchange(NOTHING, "", "a process alone")
    sent = float(workload.trained(config, size) * (2 if parallel.wire == "bf16" else 4))  # bytes of all lanes
    if fleet.local:
        ways = fleet.trainers * 2 if fleet.servers else 2 * (fleet.trainers - 1)
        seconds = LOOPBACK.to_do(ways * sent).times(1 / parallel.every)
        return Exchange(seconds, "", f"{ways} x {sent / 1e6:.3g} MB through this machine at 0.5 to 3 GB/s (ours)")

    # The last backward pass hides gradients. With fsdp all passes hide parameters.
    passes = memory.share(config, fleet, size).passes
    last = computing.times(2 / 3 / passes)
    inside, gathered, inside_origin = _inside(config, fleet, size)
    between, plan, between_origin = _between(config, fleet, sent)
    seconds = NOTHING
    if fleet.servers is not None:  # half of the exchange brings parameters, which are waited for
        seconds, between = between.times(0.5), between.times(0.5)
    seconds += _uncovered(inside + between, last)
    if parallel.parallelism == "fsdp":
        seconds += _uncovered(gathered, computing)
    else:
        seconds += gathered
    seconds = seconds.times(1 / parallel.every)
    origins = [origin for origin in (inside_origin, between_origin) if origin]
    origins.append(f"the last backward pass, {last.low * 1e3:.3g} ms at best, hides half to all it can (ours)")
    return Exchange(seconds, plan, "; ".join(origins))


def _uncovered(travelling: Range, computing: Range) -> Range:
    """Return the part of transfers that the computing beside them does not hide."""
    low = travelling.low - HIDDEN.high * min(travelling.low, computing.low)
    return Range(low, max(low, travelling.high - HIDDEN.low * min(travelling.high, computing.high)))


def _inside(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> tuple[Range, Range, str]:
    """Return the seconds in which a machine's processes sum gradients and gather parameters, and the origin."""
    processes, gpu = fleet.processes_per_trainer, fleet.master.accelerator
    if processes == 1:
        return NOTHING, NOTHING, ""
    trained, passes, others = workload.trained(config, size), 1, (processes - 1) / processes
    summed, gathered, words = 4.0 * trained, 4.0 * trained, "parameters gathered once"
    if config.file.parallel.parallelism == "fsdp":
        process, share = memory.process_of(config, fleet, size, gpu), memory.share(config, fleet, size)
        passes = share.passes
        gathered = (4.0 if process.half else 8.0) * size.parameters * passes
        words = f"parameters gathered {2 * passes} times"
        if gpu and not keeps_whole_gradients(process, share.rows, memory.gpu_bytes(gpu)):
            summed *= passes
            words += f", gradients summed {passes} times for want of memory"
    moved = (summed * others, gathered * others)
    if not gpu:
        both = [LOOPBACK.to_do(amount * processes) for amount in moved]
        return both[0], both[1], f"{processes} processes through their machine at 0.5 to 3 GB/s (ours)"
    peers = PEERS.times(GPUS[gpu].peers * 1e9)
    origin = (
        f"{processes} GPUs: {moved[0] / 1e9:.3g} GB of gradients and {moved[1] / 1e9:.3g} GB of parameters, {words},"
        f" at {peers.low / 1e9:g} to {peers.high / 1e9:g} GB/s (ours)"
    )
    return peers.to_do(moved[0]), peers.to_do(moved[1]), origin


def _between(config: StackConfig, fleet: Fleet, sent: float) -> tuple[Range, str, str]:
    """Return the seconds between machines, the plan of parameter servers, and the origin.

    By the cost model: with the machines' links at best, and at worst with slow connections, one for each lane.
    """
    parallel, hyper = config.file.parallel, config.file.training_input.hyperparameters
    machines, lanes = sum(role.count for role in fleet.trainer_roles), fleet.processes_per_trainer
    if machines == 1 and fleet.servers is None:
        return NOTHING, "", ""
    link = min(role.machine.gbps for role in fleet.trainer_roles) * 1e9 / 8
    out = fleet.servers.machine.gbps * 1e9 / 8 if fleet.servers else link
    best = exchange_cost.Links(link, out)
    worst = exchange_cost.Links(min(link, lanes * SLOW_LINK), min(out, lanes * SLOW_LINK))
    plan = ""
    if fleet.servers is not None:
        servers, sums = fleet.servers.count, 2 if parallel.wire == "bf16" else 1
        interleaved = not (  # as trainer/parallel/protocol.py decides
            hyper.gradient_clip or parallel.parallelism == "fsdp" or data_format(config.file.data) == "pairs"
        )
        plan = parallel.plan
        if plan == "auto":
            plan = exchange_cost.choose(sent, machines, servers, best, interleaved, sums)
        by: Callable[..., float] = (
            exchange_cost.star if plan == "star" else partial(exchange_cost.hierarchical, sums=sums)
        )
        ideal = by(sent, machines, servers, best, interleaved)
        slow = by(sent, machines, servers, worst, interleaved)
        words = f"{plan} plan, {servers} servers"
    else:
        ideal = exchange_cost.all_reduce(sent, machines, best)
        slow = exchange_cost.all_reduce(sent, machines, worst)
        words = "ring all-reduce"
    over = f" in {lanes} lanes over one link" if lanes > 1 else ""
    origin = (
        f"{words} of {sent / 1e6:.3g} MB in {parallel.wire}{over} (trainer/contract/exchange_cost.py) at"
        f" {link * 8e-9:g} Gbit/s a trainer; at worst {worst.trainer * 8e-9:g} Gbit/s and {EXCHANGE.high} of it"
        " (docs/performance.md, ours)"
    )
    return Range(EXCHANGE.low * ideal, EXCHANGE.high * slow), plan, origin
