"""Estimate how long a step takes: computing, the network, the optimizer and coordination, each with its origin."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infra.estimate.measured import Kind, Likeness, Measured, comparable, kind_of
from infra.fleet.fleet import Fleet
from infra.sizing import workload
from infra.sizing.ranges import NOTHING, Range
from infra.sizing.speed import (
    CPU_MEMORY,
    GPUS,
    HERE,
    HERE_ORIGIN,
    Speed,
    cpu_speed,
    gpu_speed,
    half_precision,
    machine_speed,
)
from infra.stack.config import StackConfig
from trainer.contract import exchange_cost, geometry, options, spec

# Seconds of a quorum, a vote and the loop: 3 ms on one machine (docs/performance.md); between machines ours.
COORDINATION_HERE, COORDINATION = Range(0.003, 0.03), Range(0.005, 0.05)
EXCHANGE = Range(
    1.02, 1.35
)  # exchanges took so many times the cost model's seconds (docs/performance.md, shaped links)
SLOW_LINK = 8e9 / 8  # the least bytes/s of any machine: gloo uses one TCP connection for each pair. Ours.
LOOPBACK = Range(0.5e9, 3e9)  # bytes/s of all processes of one machine together. Ours.
TOUCHED = 28  # bytes that AdamW reads and writes for a parameter; SGD 12
SAME_KIND, SAME_KIND_HERE = Range(0.9, 1.15), Range(0.75, 1.33)  # of a measured step; shared cores swing by a third
OTHER_KIND = Range(0.6, 1.5)  # of measured FLOP/s, for another model or number of trainers. Ours.


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, each part with its origin.

    flops: FLOP/s of all trainers together while they compute. measured: the finished run whose speed is used.
    plan: how parameter servers and trainers exchange; empty without servers.
    """

    computing: Range
    network: Range
    optimizer: Range
    coordination: Range
    flops: Range
    origins: dict[str, str]
    measured: Measured | None
    plan: str = ""

    @property
    def seconds(self) -> Range:
        return self.computing + self.network + self.optimizer + self.coordination


@dataclass(frozen=True)
class _Work:
    """The busiest trainer's part of a step. flops: FLOPs."""

    size: geometry.Dimensions
    share: geometry.Share
    flops: float


def step(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, runs: list[Measured]) -> StepTime:
    """Estimate a step of a stack's job. runs: finished runs that were measured."""
    hyper, parallel = config.file.training_input.hyperparameters, config.file.parallel
    trainers = fleet.trainers
    share = geometry.share(hyper, trainers)
    work = _Work(size, share, share.tokens * size.flops_a_token(hyper.sequence_length))

    # By data sheets and the cost model.
    speed, origin = _speed(fleet, hyper)
    network, plan, network_origin = _network(config, fleet, work, speed)
    computing = speed.flops.to_do(work.flops)
    waiting = speed.layer.times(size.layers * share.passes)
    computing = Range(max(computing.low, waiting.low), max(computing.high, waiting.high))
    touched = workload.trained(config, size) * (TOUCHED if hyper.optimizer == "adamw" else 12)
    if fleet.servers is not None:
        moved, memory = touched / fleet.servers.count, CPU_MEMORY.times(1e9)
    elif parallel.parallelism == "fsdp":
        moved, memory = touched / trainers, speed.memory
    else:
        moved, memory = float(touched), speed.memory
    optimizer = memory.to_do(moved)
    coordination = COORDINATION if not fleet.local and len(fleet.roles) > 1 else COORDINATION_HERE

    # By a measured run, if there is one.
    cluster = spec.Cluster(workers=config.workers, parameter_servers=config.servers)
    likeness = _likeness(fleet, kind_of(size, hyper, cluster, parallel), runs)
    if likeness is not None:
        run = likeness.measured
        if likeness.same:
            swing = SAME_KIND_HERE if fleet.local else SAME_KIND
            network = swing.times(run.communication_seconds)
            computing = swing.times(work.flops / run.flops)  # includes the optimizer and coordination
            optimizer = coordination = NOTHING
            origin = f"run {run.run} took {run.step_seconds:.3g} s a step of this kind on {run.machine}"
            network_origin = f"run {run.run}"
        else:
            reached = run.flops * int(run.kind["trainers"]) / trainers if fleet.local else run.flops
            computing = OTHER_KIND.times(reached).to_do(work.flops)
            origin = f"run {run.run} reached {reached / 1e9:.3g} GFLOP/s a trainer on {run.machine}: scaled by FLOPs"

    return StepTime(
        computing=computing,
        network=network,
        optimizer=optimizer,
        coordination=coordination,
        flops=Range(work.flops / computing.high, work.flops / computing.low).times(trainers),
        origins={
            "computing": origin,
            "network": network_origin,
            "optimizer": (
                f"{moved / 1e9:.2g} GB to move at {memory.low / 1e9:.3g} to {memory.high / 1e9:.3g} GB/s (ours)"
            ),
            "coordination": "quorum and vote: 3 ms on one machine (docs/performance.md), more between machines (ours)",
        },
        measured=likeness.measured if likeness else None,
        plan=plan,
    )


def _likeness(fleet: Fleet, kind: Kind, runs: list[Measured]) -> Likeness | None:
    """Return the run to follow. Trainers on different machines follow none, as measured runs have one machine."""
    labels = {machines.label for machines in fleet.trainer_roles}
    return comparable(runs, labels.pop(), kind) if len(labels) == 1 else None


def _speed(fleet: Fleet, hyper: options.Hyperparameters) -> tuple[Speed, str]:
    """Return the speed of the slowest trainer, for which the others wait, and its origin."""
    if fleet.local:  # the trainers share the cores
        cores = fleet.master.machine.vcpus
        speed = cpu_speed(cores / fleet.trainers, HERE, HERE_ORIGIN)
        return speed, f"{cores} cores here at {HERE.low:g} to {HERE.high:g} GFLOP/s: {HERE_ORIGIN}"
    speeds = []
    for machines in fleet.trainer_roles:
        machine, gpu = machines.machine, machines.accelerator
        if gpu:
            speeds.append((gpu_speed(gpu, hyper), f"{gpu}: "))
        else:
            speeds.append((machine_speed(machine), f"{machine.name}: "))
    slowest, description = min(speeds, key=lambda pair: pair[0].flops.middle)
    return slowest, description + slowest.origin


def _network(config: StackConfig, fleet: Fleet, work: _Work, speed: Speed) -> tuple[Range, str, str]:
    """Return the seconds of a step, the plan of parameter servers, and the origin."""
    parallel, servers, trainers = config.file.parallel, config.servers, fleet.trainers
    hyper = config.file.training_input.hyperparameters
    wire = 2 if parallel.wire == "bf16" else 4
    sent = float(workload.trained(config, work.size) * wire)  # bytes
    if parallel.parallelism == "fsdp":
        return _gathered(fleet, work, hyper.precision)
    if trainers == 1 and not servers:
        return NOTHING, "", "a trainer alone"
    if fleet.local:
        ways = trainers * 2 if servers else 2 * (trainers - 1)
        seconds = LOOPBACK.to_do(ways * sent).times(1 / parallel.every)
        return seconds, "", f"{ways} x {sent / 1e6:.3g} MB through this machine at 0.5 to 3 GB/s (ours)"

    # Between machines: the cost model with the machines' links at best, and with slow ones at worst.
    link = min(machines.machine.gbps for machines in fleet.trainer_roles) * 1e9 / 8
    out = fleet.servers.machine.gbps * 1e9 / 8 if fleet.servers else link
    best = exchange_cost.Links(link, out)
    worst = exchange_cost.Links(min(link, SLOW_LINK), min(out, SLOW_LINK))
    interleaved = not hyper.gradient_clip
    plan = ""
    if servers:
        sums = 4 / wire
        plan = parallel.plan
        if plan == "auto":
            plan = exchange_cost.choose(sent, trainers, servers, best, interleaved, sums)
        by: Callable[..., float] = (
            exchange_cost.star if plan == "star" else partial(exchange_cost.hierarchical, sums=sums)
        )
        ideal = by(sent, trainers, servers, best, interleaved)
        slow = by(sent, trainers, servers, worst, interleaved)
        # Half of the exchange pushes gradients, which the last backward pass hides.
        backward = 2 / 3 * speed.flops.to_do(work.flops / work.share.passes).low
        hidden = 0.0 if hyper.compile or parallel.every > 1 else min(ideal / 2, backward)
        origin = f"{plan} plan, {servers} servers"
    else:
        ideal = exchange_cost.all_reduce(sent, trainers, best)
        slow = exchange_cost.all_reduce(sent, trainers, worst)
        hidden, origin = 0.0, "ring all-reduce"
    seconds = Range(EXCHANGE.low * ideal - hidden, EXCHANGE.high * slow).times(1 / parallel.every)
    origin += f" of {sent / 1e6:.3g} MB (trainer/contract/exchange_cost.py) at {link * 8e-9:g} Gbit/s a trainer"
    return seconds, plan, f"{origin}; at worst 8 Gbit/s and 1.35 of it (docs/performance.md, ours)"


def _gathered(fleet: Fleet, work: _Work, precision: str) -> tuple[Range, str, str]:
    """Return what fsdp takes between the GPUs of a machine: parameters gathered twice a micro-batch, gradients once."""
    gpu = fleet.master.accelerator
    if not gpu:
        return NOTHING, "", "one machine's processes"
    weight = 2 if half_precision(gpu, precision) else 4  # bytes of one as it is gathered
    trainers = fleet.trainers
    moved = work.share.passes * work.size.parameters * (2 * weight + 4) * (trainers - 1) / trainers
    peers = GPUS[gpu].peers * 1e9
    origin = f"parameters gathered twice, gradients summed: {moved / 1e9:.3g} GB at {GPUS[gpu].peers:g} GB/s (ours)"
    return Range(0.5 * moved / peers, 2 * moved / peers), "", origin
