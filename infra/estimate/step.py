"""How long a step takes: computing, the network, the optimizer and finding each other, each with its origin."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infra.estimate.measured import Likeness, Measured, here, kind_of, like, machine_of
from infra.fleet import fleet
from infra.fleet.host import host_cores
from infra.sizing import workload
from infra.sizing.ranges import NOTHING, Range
from infra.sizing.speed import GPUS, HERE, HERE_ORIGIN, Speed, cpu_speed, gbps, gpu_speed, half_precision
from infra.stack.config import StackConfig
from trainer.contract import exchange_cost, geometry, spec

# What a quorum, a vote and the loop take: 3 ms on one machine (docs/performance.md); between machines ours.
COORDINATION_HERE, COORDINATION = Range(0.003, 0.03), Range(0.005, 0.05)
# Of the cost model's prediction: exchanges took 1.02 to 1.35 of it (docs/performance.md, shaped links).
EXCHANGE = Range(1.02, 1.35)
SLOW_LINK = 8e9 / 8  # bytes/s at worst, whatever the machine has: gloo uses one TCP connection for each pair. Ours.
LOOPBACK = Range(0.5e9, 3e9)  # bytes/s of all processes of one machine together. Ours.
TOUCHED = 28  # bytes that AdamW reads and writes for a parameter; SGD 12
SAME_KIND, SAME_KIND_HERE = Range(0.9, 1.15), Range(0.75, 1.33)  # of a measured step; shared cores swing by a third
OTHER_KIND = Range(0.6, 1.5)  # of measured FLOP/s, for another model or number of trainers. Ours.


@dataclass(frozen=True)
class Step:
    """Seconds of a step; each part with its origin."""

    computing: Range
    network: Range
    optimizer: Range
    coordination: Range
    flops: Range  # FLOP/s of all trainers together, while they compute
    origins: dict[str, str]
    measured: Measured | None  # the run that it follows
    plan: str = ""  # of parameter servers

    @property
    def seconds(self) -> Range:
        return self.computing + self.network + self.optimizer + self.coordination


def step(config: StackConfig, size: geometry.Dimensions, runs: list[Measured]) -> Step:
    """A step of a stack's job. runs: those that were measured."""
    hyper, parallel = config.file.training_input.hyperparameters, config.file.parallel
    accelerators = fleet.accelerator(config, "master")[1] if config.google else 1
    trainers = workload.trainers(config, accelerators)
    part = geometry.share(hyper, trainers)
    work = part.tokens * size.flops_a_token(hyper.sequence_length)
    cluster = spec.Cluster(workers=config.workers, parameter_servers=config.servers)
    alike = _alike(config, kind_of(size, hyper, cluster, parallel), runs)
    speed, origin = _speed(config, trainers)
    network, plan, of_network = _network(config, size, trainers, part, work, speed)
    computing = speed.flops.to_do(work)
    waiting = speed.layer.times(size.layers * part.passes)
    computing = Range(max(computing.low, waiting.low), max(computing.high, waiting.high))
    touched = workload.trained(config, size) * (TOUCHED if hyper.optimizer == "adamw" else 12)
    if config.servers:
        share, memory = touched / config.servers, cpu_speed(1).memory
    elif parallel.parallelism == "fsdp":
        share, memory = touched / trainers, speed.memory
    else:
        share, memory = float(touched), speed.memory
    optimizer = memory.to_do(share)
    coordination = COORDINATION if config.google and len(fleet.counts(config)) > 1 else COORDINATION_HERE
    if alike is not None:
        run = alike.measured
        if alike.same:
            swing = SAME_KIND if config.google else SAME_KIND_HERE
            network = swing.times(run.communication_seconds)
            computing = swing.times(work / run.flops)  # optimizer and coordination in it
            optimizer = coordination = NOTHING
            origin = f"run {run.run} took {run.step_seconds:.3g} s a step of this kind on {run.machine}"
        else:
            reached = run.flops if config.google else run.flops * int(run.kind["trainers"]) / trainers
            computing = OTHER_KIND.times(reached).to_do(work)
            origin = f"run {run.run} reached {reached / 1e9:.3g} GFLOP/s a trainer on {run.machine}: scaled by FLOPs"
    flops = Range(work / computing.high, work / computing.low).times(trainers)
    origins = {
        "computing": origin,
        "network": f"run {alike.measured.run}" if alike and alike.same else of_network,
        "optimizer": f"{share / 1e9:.2g} GB to move at {memory.low / 1e9:.3g} to {memory.high / 1e9:.3g} GB/s (ours)",
        "coordination": "quorum and vote: 3 ms on one machine (docs/performance.md), more between machines (ours)",
    }
    return Step(computing, network, optimizer, coordination, flops, origins, alike.measured if alike else None, plan)


def _alike(config: StackConfig, kind: dict[str, str | int | float | bool], runs: list[Measured]) -> Likeness | None:
    if not config.google:
        return like(runs, here(), kind)
    machines = {_machine(config, role) for role in fleet.counts(config) if role != "ps"}
    return like(runs, machines.pop(), kind) if len(machines) == 1 else None


def _machine(config: StackConfig, role: spec.Role) -> str:
    return machine_of(fleet.machine_type(config, role).name, *fleet.accelerator(config, role))


def _speed(config: StackConfig, trainers: int) -> tuple[Speed, str]:
    """Of the slowest trainer, for which the others wait."""
    hyper = config.file.training_input.hyperparameters
    if not config.google:
        speed = cpu_speed(host_cores() / trainers, HERE, HERE_ORIGIN)
        words = f"{host_cores()} cores here at {HERE.low:g} to {HERE.high:g} GFLOP/s: {HERE_ORIGIN}"
        return speed, words
    found = []
    for role in fleet.counts(config):
        if role == "ps":
            continue
        machine, gpu = fleet.machine_type(config, role), fleet.accelerator(config, role)[0]
        if gpu:
            found.append((gpu_speed(gpu, hyper), f"{gpu}: "))
        else:
            words = f"{machine.name}: {machine.vcpus // 2 or 1} cores at 15 to 60 GFLOP/s: "
            found.append((cpu_speed(max(1, machine.vcpus / 2)), words))
    slowest = min(found, key=lambda one: one[0].flops.middle)
    return slowest[0], slowest[1] + slowest[0].origin


def _network(
    config: StackConfig,
    size: geometry.Dimensions,
    trainers: int,
    part: geometry.Share,
    work: float,
    speed: Speed,
) -> tuple[Range, str, str]:
    """Seconds of a step, the plan of parameter servers, and the origin."""
    parallel, servers = config.file.parallel, config.servers
    hyper = config.file.training_input.hyperparameters
    wire = 2 if parallel.wire == "bf16" else 4
    bytes_ = float(workload.trained(config, size) * wire)
    if parallel.parallelism == "fsdp":
        return _gathered(config, size, trainers, part)
    if trainers == 1 and not servers:
        return NOTHING, "", "a trainer alone"
    if not config.google:
        ways = trainers * 2 if servers else 2 * (trainers - 1)
        seconds = LOOPBACK.to_do(ways * bytes_).times(1 / parallel.every)
        return seconds, "", f"{ways} x {bytes_ / 1e6:.3g} MB through this machine at 0.5 to 3 GB/s (ours)"
    link = min(gbps(fleet.machine_type(config, r)) for r in fleet.counts(config) if r != "ps") * 1e9 / 8
    out = gbps(fleet.machine_type(config, "ps")) * 1e9 / 8 if servers else link
    interleaved = not hyper.gradient_clip
    plan = ""
    if servers:
        sums, best = 4 / wire, exchange_cost.Links(link, out)
        plan = (
            parallel.plan
            if parallel.plan != "auto"
            else exchange_cost.choose(bytes_, trainers, servers, best, interleaved, sums)
        )
        by: Callable[..., float] = (
            exchange_cost.star if plan == "star" else partial(exchange_cost.hierarchical, sums=sums)
        )
        ideal = by(bytes_, trainers, servers, best, interleaved)
        slow = by(
            bytes_, trainers, servers, exchange_cost.Links(min(link, SLOW_LINK), min(out, SLOW_LINK)), interleaved
        )
        backward = 2 / 3 * speed.flops.to_do(work / part.passes).low
        hidden = 0.0 if hyper.compile or parallel.every > 1 else min(ideal / 2, backward)  # of the push
        words = f"{plan} plan, {servers} servers"
    else:
        ideal = exchange_cost.all_reduce(bytes_, trainers, exchange_cost.Links(link, link))
        slow = exchange_cost.all_reduce(
            bytes_, trainers, exchange_cost.Links(min(link, SLOW_LINK), min(link, SLOW_LINK))
        )
        hidden, words = 0.0, "ring all-reduce"
    seconds = Range(EXCHANGE.low * ideal - hidden, EXCHANGE.high * slow).times(1 / parallel.every)
    words += f" of {bytes_ / 1e6:.3g} MB (trainer/contract/exchange_cost.py) at {link * 8e-9:g} Gbit/s a trainer"
    return seconds, plan, f"{words}; at worst 8 Gbit/s and 1.35 of it (docs/performance.md, ours)"


def _gathered(
    config: StackConfig, size: geometry.Dimensions, trainers: int, part: geometry.Share
) -> tuple[Range, str, str]:
    """fsdp: parameters are gathered twice a micro-batch, gradients summed once, from GPU to GPU of one machine."""
    gpu = fleet.accelerator(config, "master")[0] if config.google else ""
    if not gpu:
        return NOTHING, "", "one machine's processes"
    half = half_precision(gpu, config.file.training_input.hyperparameters.precision)
    moved = part.passes * size.parameters * (2 * (2 if half else 4) + 4) * (trainers - 1) / trainers
    peers = GPUS[gpu].peers * 1e9
    words = f"parameters gathered twice, gradients summed: {moved / 1e9:.3g} GB at {GPUS[gpu].peers:g} GB/s (ours)"
    return Range(0.5 * moved / peers, 2 * moved / peers), "", words
