"""Write the figures and sentences that an estimate adds to its parts."""

import shutil
from collections.abc import Collection, Sequence

from infra.estimate.parts import HOUR, Figure
from infra.estimate.step import StepTime
from infra.fleet.caveats import image_caveats, network_caveats, untried_caveats, waiting_caveats
from infra.fleet.deadline import launch_hours
from infra.fleet.fleet import Fleet
from infra.sizing import memory
from infra.sizing.ranges import Range
from infra.stack.config import StackConfig
from trainer.contract import geometry

# Seconds between checkpoints at which a lost server, one a day, costs 2 % of the time: half of them are repeated. Ours.
REPLAY = 2 * 0.02 * 86400


def figures_of(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, step_time: StepTime) -> list[Figure]:
    """Return the numbers from which the estimate follows."""
    hyper = config.file.training_input.hyperparameters
    tokens = hyper.batch_size * hyper.sequence_length
    flops = size.flops_a_token(hyper.sequence_length)
    processes, share = fleet.trainers, memory.share(config, fleet, size)
    busy = f"{processes} processes" if fleet.processes_per_trainer > 1 else f"{processes} trainers"
    sizes = f"{size.layers} layers, {size.width} wide, {size.vocabulary:,} tokens, {size.positions} positions"
    return [
        Figure("parameters", f"{size.parameters:,}", sizes),
        Figure("FLOPs a token", f"{flops:.3g}", "6·N + 12·L·H·Q·T, N without positions (Chowdhery et al. 2022)"),
        Figure(
            "tokens a step", f"{tokens:,}", f"batchSize {hyper.batch_size} x sequenceLength {hyper.sequence_length}"
        ),
        Figure("tokens in all", f"{tokens * hyper.steps:.3g}", f"{hyper.steps:,} steps"),
        Figure("FLOPs in all", f"{flops * tokens * hyper.steps:.3g}", "without evaluation"),
        Figure(
            "busiest process" if fleet.processes_per_trainer > 1 else "busiest trainer",
            f"{share.passes} x {share.rows} sequences a step",
            f"{busy}, {tokens / processes / share.tokens:.0%} busy (trainer/data/batches.py)",
        ),
        Figure(
            "speed",
            f"{step_time.flops.low / 1e12:.3g} to {step_time.flops.high / 1e12:.3g} TFLOP/s in all",
            step_time.origins["computing"],
        ),
    ]


def tight_memory(needs: Sequence[memory.MemoryNeed]) -> list[str]:
    """Return the memory that holds the least, but not what is usual, a sentence each."""
    return [
        f"{need.role}: {need.where} has {need.has / 1e9:.0f} GB, and a step takes about {need.usual / 1e9:.0f}: it may"
        " not fit; recompute, a smaller microBatchSize, and fsdp on several GPUs take less"
        for need in needs
        if need.has and need.least <= need.has < need.usual
    ]


def notes_of(
    config: StackConfig,
    fleet: Fleet,
    step_time: StepTime,
    hours: Range,
    unpriced: Sequence[str],
    tried: Collection[str],
) -> list[str]:
    """Return what a person should know besides the numbers, a sentence each.

    hours: of the whole run. unpriced: what has no known price. tried: the machines of measured runs, by their labels.
    """
    notes = []
    if config.file.sweep is not None:
        notes.append(
            f"a sweep of {config.file.sweep.max_trials} trials, each taken as the hyperparameters of the file say; what"
            " is varied may make it longer, stopping early makes it shorter"
        )
    if (task := config.file.evaluation.task) is not None:
        notes.append(f"evaluation.task {task}: the master scores the finished model, which is not in these numbers")
    if step_time.measured is not None:
        notes.append(step_time.origins["computing"] + "; that is preferred to data sheets")
    elif fleet.local:
        notes.append("no finished run on this machine is known, so this is rough; the first one narrows it")
        if shutil.which("nvidia-smi"):
            notes.append("it is for the CPU: what this machine's GPU does is known after the first run")
    rare_enough = max(1, int(REPLAY / step_time.seconds.middle))
    if config.servers and config.file.checkpoints.every > rare_enough:
        hours_lost = config.file.checkpoints.every * step_time.seconds.middle / HOUR
        notes.append(
            f"checkpoints.every: a lost parameter server takes the run back by up to {hours_lost:.2g} hours;"
            f" {rare_enough} keeps that under 2 % at one loss a day"
        )
    if fleet.local:
        return notes
    notes += network_caveats(fleet) + image_caveats(fleet, config.file.machines.image_family)
    notes += waiting_caveats(fleet) + untried_caveats(fleet, tried)
    if unpriced:
        notes.append(f"the cost is a lower bound: not priced are {', '.join(unpriced)}")
    limits = config.file.limits
    ends = launch_hours(limits, fleet)
    which = "limits.maxHours" if ends >= limits.max_hours else "limits.maxCostUsd"
    if hours.low > ends:
        part = 100 * ends / hours.middle
        notes.append(f"{which} ends this run after {ends:.3g} hours, at about {part:.0f} % of its steps")
    elif hours.high > ends:
        notes.append(f"{which} may end this run before its last step: it leaves {ends:.3g} hours")
    return notes
