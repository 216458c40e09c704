"""The sentences and figures that an estimate adds to its parts."""

import shutil
from collections.abc import Sequence

from infra.estimate.parts import HOUR, Figure
from infra.estimate.step import Step
from infra.fleet import fleet
from infra.fleet.deadline import hours_left
from infra.sizing import workload
from infra.sizing.ranges import Range
from infra.stack.config import StackConfig
from trainer.contract import geometry

REPLAY = 2 * 0.02 * 86400  # seconds between checkpoints: half of it is repeated after a loss, and a day has one. Ours.


def figures_of(config: StackConfig, size: geometry.Dimensions, one: Step) -> list[Figure]:
    hyper = config.file.training_input.hyperparameters
    tokens = hyper.batch_size * hyper.sequence_length
    flops = size.flops_a_token(hyper.sequence_length)
    trainers = workload.trainers(config, fleet.accelerator(config, "master")[1] if config.google else 1)
    part = geometry.share(hyper, trainers)
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
            "busiest trainer",
            f"{part.passes} x {part.rows} sequences a step",
            f"{trainers} trainers, {tokens / trainers / part.tokens:.0%} busy (trainer/data/batches.py)",
        ),
        Figure(
            "speed",
            f"{one.flops.low / 1e12:.3g} to {one.flops.high / 1e12:.3g} TFLOP/s in all",
            one.origins["computing"],
        ),
    ]


def notes_of(config: StackConfig, one: Step, hours: Range, unpriced: Sequence[str]) -> list[str]:
    """What a person should know beside the numbers."""
    found = []
    if config.file.sweep is not None:
        found.append(
            f"a sweep of {config.file.sweep.max_trials} trials, each taken as the hyperparameters of the file say; what"
            " is varied may make it longer, stopping early makes it shorter"
        )
    if (task := config.file.evaluation.task) is not None:
        found.append(f"evaluation.task {task}: the master scores the finished model, which is not in these numbers")
    if one.measured is not None:
        found.append(one.origins["computing"] + "; that is preferred to data sheets")
    elif not config.google:
        found.append("no finished run on this machine is known, so this is rough; the first one narrows it")
        if shutil.which("nvidia-smi"):
            found.append("it is for the CPU: what this machine's GPU does is known after the first run")
    often = int(REPLAY / one.seconds.middle)
    if config.servers and config.file.checkpoints.every > max(1, often):
        hours_lost = config.file.checkpoints.every * one.seconds.middle / HOUR
        found.append(
            f"checkpoints.every: a lost parameter server takes the run back by up to {hours_lost:.2g} hours;"
            f" {max(1, often)} keeps that under 2 % at one loss a day"
        )
    if not config.google:
        return found
    for role in fleet.counts(config):
        number = fleet.accelerator(config, role)[1]
        if number > 1 and config.file.parallel.parallelism != "fsdp":
            name = fleet.machine_type(config, role).name
            found.append(
                f"{role}: one GPU of {name} trains, {number - 1} idle and are paid for; parallelism: fsdp uses all"
            )
    if unpriced:
        found.append(f"the cost is a lower bound: not priced are {', '.join(unpriced)}")
    ends, limits = hours_left(config), config.file.limits
    which = "limits.maxHours" if ends >= limits.max_hours else "limits.maxCostUsd"
    if hours.low > ends:
        part = 100 * ends / hours.middle
        found.append(f"{which} ends this run after {ends:.3g} hours, at about {part:.0f} % of its steps")
    elif hours.high > ends:
        found.append(f"{which} may end this run before its last step: it leaves {ends:.3g} hours")
    return found
