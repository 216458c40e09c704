"""Estimate how long a step takes: computing, the network, the optimizer and coordination, each with its origin."""

from dataclasses import dataclass

from infra.estimate.measured import Kind, Likeness, Measured, comparable, kind_of
from infra.estimate.network import exchange
from infra.fleet.fleet import Fleet
from infra.sizing import memory, workload
from infra.sizing.ranges import NOTHING, Range
from infra.sizing.speed import CPU_MEMORY, HERE, HERE_ORIGIN, Speed, cpu_speed, gpu_speed, machine_speed
from infra.stack.config import StackConfig
from trainer.contract import geometry, options, spec

# Seconds of a quorum, a vote and the loop: 3 ms on one machine (docs/performance.md); between machines ours.
COORDINATION_HERE, COORDINATION = Range(0.003, 0.03), Range(0.005, 0.05)
TOUCHED = 28  # bytes that AdamW reads and writes for a parameter; SGD 12
SAME_KIND, SAME_KIND_HERE = Range(0.9, 1.15), Range(0.75, 1.33)  # of a measured step; shared cores swing by a third
OTHER_KIND = Range(0.6, 1.5)  # of measured FLOP/s, for another model or number of trainers. Ours.


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, each part with its origin.

    flops: FLOP/s of all processes together while they compute. measured: the finished run whose speed is used.
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


def step(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, runs: list[Measured]) -> StepTime:
    """Estimate a step of a stack's job. runs: finished runs that were measured."""
    hyper, parallel = config.file.training_input.hyperparameters, config.file.parallel
    processes, share = fleet.trainers, memory.share(config, fleet, size)
    flops = share.tokens * size.flops_a_token(hyper.sequence_length)  # of the busiest process
    recomputed = share.tokens * size.recomputed_flops_a_token(hyper.recompute, hyper.sequence_length)

    # By data sheets and the cost model.
    speed, origin = _speed(fleet, hyper)
    computing = speed.flops.to_do(flops + recomputed)
    if recomputed:
        origin += f"; recompute: {hyper.recompute} adds {recomputed / flops:.0%}"
    waiting = speed.layer.times(size.layers * share.passes)
    computing = Range(max(computing.low, waiting.low), max(computing.high, waiting.high))
    found = exchange(config, fleet, size, computing)
    network, network_origin = found.seconds, found.origin
    touched = workload.trained(config, size) * (TOUCHED if hyper.optimizer == "adamw" else 12)
    if fleet.servers is not None:
        moved, bandwidth = touched / fleet.servers.count, CPU_MEMORY.times(1e9)
    else:  # each process of a machine updates its own part
        moved, bandwidth = touched / fleet.processes_per_trainer, speed.memory
    optimizer = bandwidth.to_do(moved)
    coordination = COORDINATION if not fleet.local and fleet.size > 1 else COORDINATION_HERE

    # By a measured run, if there is one.
    cluster = spec.Cluster(
        workers=config.workers, parameter_servers=config.servers, processes=fleet.processes_per_trainer
    )
    likeness = _likeness(fleet, kind_of(size, hyper, cluster, parallel), runs)
    if likeness is not None:
        run = likeness.measured
        if likeness.same:
            swing = SAME_KIND_HERE if fleet.local else SAME_KIND
            network = swing.times(run.communication_seconds)
            computing = swing.times(flops / run.flops)  # includes the optimizer and coordination
            optimizer = coordination = NOTHING
            origin = f"run {run.run} took {run.step_seconds:.3g} s a step of this kind on {run.machine}"
            network_origin = f"run {run.run}"
        else:
            reached = run.flops * run.processes / processes if fleet.local else run.flops
            computing = OTHER_KIND.times(reached).to_do(flops)
            origin = f"run {run.run} reached {reached / 1e9:.3g} GFLOP/s a trainer on {run.machine}: scaled by FLOPs"

    return StepTime(
        computing=computing,
        network=network,
        optimizer=optimizer,
        coordination=coordination,
        flops=Range(flops / computing.high, flops / computing.low).times(processes),
        origins={
            "computing": origin,
            "network": network_origin,
            "optimizer": (
                f"{moved / 1e9:.2g} GB to move at {bandwidth.low / 1e9:.3g} to {bandwidth.high / 1e9:.3g} GB/s (ours)"
            ),
            "coordination": "quorum and vote: 3 ms on one machine (docs/performance.md), more between machines (ours)",
        },
        measured=likeness.measured if likeness else None,
        plan=found.plan,
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
