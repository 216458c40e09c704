"""Estimate how long a run will take and what it will cost, as ranges with the origin of every number.

Reads only the checkout (the text's size, artifacts/measured.json), so a preview needs no network for it.
"""

import math
from collections.abc import Iterator
from typing import Any

from infra.estimate import measured
from infra.estimate.extras import PRICE_BOOK, extras
from infra.estimate.notes import figures_of, notes_of, tight_memory
from infra.estimate.parts import HOUR, Estimate, Part, spread, unpriced
from infra.estimate.step import StepTime, step
from infra.fleet.fleet import Fleet
from infra.inputs.data_lock import read_lock
from infra.sizing import memory, workload
from infra.sizing.ranges import NOTHING, Range, total
from infra.stack.config import StackConfig
from infra.stack.keys import RunLimits, data_format
from trainer.contract import geometry
from trainer.contract.errors import InputError

# Seconds. The driver's are from Google's release notes; the rest are ours, for an image of 5 GB.
BOOT, DRIVER, IMAGE = Range(40, 120), Range(180, 300), Range(90, 300)
# Seconds to import torch, make the model and take a first step that is not measured: 7 on a warm machine.
IMPORTS, IMPORTS_HERE = Range(15, 60), Range(6, 30)
COMPILING = Range(20, 180)  # seconds: 18 for the local default on 2 cores (docs/performance.md)
# Bytes/s of tokenizing: 1 MB/s a core was measured with one long text. All cores tokenize a text that is long enough;
# pairs and short texts leave that to the library. One process fetches the text and writes the tokens of all. Ours.
TOKENIZING, WRITING_TOKENS = Range(0.5e6, 4e6), Range(40e6, 200e6)
WRITING, WRITING_HERE = Range(0.05e9, 0.3e9), Range(0.1e9, 1e9)  # bytes/s to a bucket, hashing included. Ours.
SPREAD_BYTES = 32 * 2**20  # of a text from which all cores tokenize (trainer/data/prepare.py)
COPYING = Range(1e9, 10e9)  # bytes/s of a checkpoint's copy, for which steps wait
SPOT_AWAY = 0.13  # the most part of the Spot workers that is away on average. Ours.


def outputs(config: StackConfig, fleet: Fleet) -> dict[str, Any]:
    """Return the stack's outputs: estimatedHours, estimatedCostUsd, hourlyCostUsd."""
    estimated = estimate(config, fleet)
    cost = spread(estimated.cost, bool(estimated.unknown))
    hourly: Any = round(estimated.hourly.usd, 2)
    if not estimated.hourly.exact:
        hourly = {"atLeast": hourly, "unpriced": list(estimated.hourly.unknown)}
    return {"estimatedHours": spread(estimated.hours), "estimatedCostUsd": cost, "hourlyCostUsd": hourly}


def estimate(config: StackConfig, fleet: Fleet, runs: list[measured.Measured] | None = None) -> Estimate:
    """Estimate a stack that load() has checked. runs: measured runs; None: those that the checkout keeps."""
    size = workload.dimensions(config)
    if size is None:
        why = f"the dimensions of {config.file.model.initialize} are in the checkpoint, which is not read here"
        return Estimate((), (), (), (), fleet.hourly, None, NOTHING, (why,))
    runs = measured.read(config.root) if runs is None else runs
    step_time = step(config, fleet, size, runs)
    hyper = config.file.training_input.hyperparameters
    tokens = hyper.batch_size * hyper.sequence_length
    time = _time(config, fleet, size, step_time)
    hours = total(part.amount for part in time)
    needs = memory.needs(config, fleet, size)
    costs = (*_machines(fleet, hours), *extras(config, fleet, size, hours, _text_bytes(config)))
    return Estimate(
        time=tuple(part for part in time if part.amount.high > 0),
        costs=costs,
        figures=tuple(figures_of(config, fleet, size, step_time)),
        memory=tuple(needs),
        hourly=fleet.hourly,
        step=step_time,
        tokens_per_second=step_time.seconds.to_do(tokens) if step_time.seconds.low else NOTHING,
        notes=(
            *tight_memory(needs),
            *notes_of(config, fleet, step_time, hours, unpriced(costs), {run.machine for run in runs}),
        ),
        run=step_time.measured.run if step_time.measured else "",
    )


def _time(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, step_time: StepTime) -> list[Part]:
    """Return the parts of the time, in hours, in the order in which a person thinks of them."""
    file, hyper = config.file, config.file.training_input.hyperparameters
    start, origin = _start(config, fleet)
    parts = [Part("start", start, origin)]

    # Steps.
    for name in ("computing", "network", "optimizer", "coordination"):
        seconds: Range = getattr(step_time, name)
        parts.append(Part(name, seconds.times(hyper.steps), step_time.origins[name]))

    # Evaluation.
    forward = size.flops_a_token(hyper.sequence_length) / 3
    count = workload.evaluations(config)
    held_out = file.evaluation.sequences * hyper.sequence_length
    parts.append(
        Part(
            "evaluation",
            step_time.flops.to_do(forward * held_out * count),
            f"{count} times at most {file.evaluation.sequences} sequences, forward alone: a third of training's FLOPs",
        )
    )

    # Checkpoints and the end. Each parameter server writes its own part of a checkpoint.
    saved, times = workload.checkpoint_bytes(config, size), hyper.steps // file.checkpoints.every
    writers = config.servers or 1
    speed = WRITING_HERE if fleet.local else WRITING
    writing = speed.to_do(saved / writers)
    stalls = Range(COPYING.to_do(saved / writers).low * times, writing.high * 0.5 * times)
    origin = f"{times} of {saved / 1e9:.3g} GB in the background: a copy at best, half the writing at worst (ours)"
    parts.append(Part("checkpoints", stalls, origin))
    end = speed.to_do(4 * size.parameters) + writing + Range(1, 10)
    parts.append(Part("end", end, "the last checkpoint and the model are written; nobody computes"))

    if file.sweep is not None:  # machines start once, everything else happens once a trial
        trials = file.sweep.max_trials
        parts[1:] = [Part(p.name, p.amount.times(trials), f"{trials} trials, each: {p.origin}") for p in parts[1:]]
    if spot := sum(machines.count for machines in fleet.trainer_roles if machines.spot):
        machines = sum(machines.count for machines in fleet.trainer_roles)
        away = SPOT_AWAY * spot
        longer = away / (machines - away)  # a machine that is away costs its share: the others deal its rows
        lost = total(part.amount for part in parts[1:5])
        origin = f"up to {away:.2g} of {machines} trainers away on average, whose rows the others compute (ours)"
        parts.append(Part("preemptions", Range(0, longer * lost.high), origin))
    return [Part(part.name, part.amount.times(1 / HOUR), part.origin) for part in parts]


def _start(config: StackConfig, fleet: Fleet) -> tuple[Range, str]:
    """Return the seconds from the declaration to the first step, and their origin."""
    if fleet.local:
        seconds, origin, source = IMPORTS_HERE, "processes, torch, a first step", ": 7 s on a warm machine"
    else:
        seconds, origin, source = IMPORTS + (BOOT + IMAGE), "boot, image", " (ours, and Google's release notes)"
        if any(machines.accelerators for machines in fleet.roles):
            seconds, origin = seconds + DRIVER, "boot, driver (3 to 5 min), image"
        origin += ", torch"
    if text := _text_bytes(config):
        cores, speed = _tokenizing(config, fleet, text)
        seconds += speed.to_do(text)
        origin += f", tokens of {text / 1e6:.3g} MB on {cores:g} core{'' if cores == 1 else 's'}"
    elif not fleet.local:
        origin += "; the text is not here"
    if config.file.training_input.hyperparameters.compile:
        seconds, origin = seconds + COMPILING, origin + ", compiling"
    return seconds, origin + source


def _tokenizing(config: StackConfig, fleet: Fleet, text: int) -> tuple[float, Range]:
    """Return the cores of the master that tokenize a text of so many bytes, and their bytes/s together."""
    machine = fleet.master.machine
    cores = machine.vcpus if fleet.local else max(1, machine.vcpus / 2)
    every = TOKENIZING.times(cores)
    spread = text > SPREAD_BYTES and data_format(config.file.data) == "text"
    least = every.low if spread else TOKENIZING.low  # the library may use one core or all
    return cores, Range(min(least, WRITING_TOKENS.low), min(every.high, WRITING_TOKENS.high))


def _text_bytes(config: StackConfig) -> int:
    """Return the size of the source text; 0 if it is neither here nor in a lock file."""
    try:
        lock = read_lock(config.text)
        return lock.size if lock else config.text.stat().st_size
    except (OSError, InputError):
        return 0


def _machines(fleet: Fleet, hours: Range) -> Iterator[Part]:
    """Yield the cost of each role's machines. This computer's electricity and wear have no list price."""
    if fleet.local:
        yield Part("this machine", NOTHING, "nothing is rented")
        return
    for machines in fleet.roles:
        cost, spot = machines.hourly, ", Spot" if machines.spot else ""
        basis = f"{machines.count} x {machines.machine.name}{spot}, {cost.usd:.3g} USD an hour with disks: {PRICE_BOOK}"
        yield Part(machines.role, hours.times(cost.usd), basis, cost.unknown)


def fits(estimated: Estimate, limits: RunLimits) -> bool | None:
    """Return whether the job will surely end within maxHours and maxCostUsd.

    None if that depends on a price that is not known. If the known prices alone are too much, it does not.
    """
    hours, cost = estimated.hours, estimated.cost
    if hours is None or cost is None:
        return False
    most = math.inf if limits.max_cost_usd is None else limits.max_cost_usd
    if hours.high > limits.max_hours or cost.high > most:
        return False
    return None if estimated.unknown and limits.max_cost_usd is not None else True
