"""How long a run will take and what it will cost, as ranges with the origin of every number, before anyone pays.

Pure but for reading the checkout (the text's size, artifacts/measured.json): a preview needs no network for it.
"""

import math
from collections.abc import Iterator
from typing import Any

from infra.estimate import measured
from infra.estimate.notes import figures_of, notes_of
from infra.estimate.parts import HOUR, Estimate, Part, spread, unpriced
from infra.estimate.step import Step, step
from infra.fleet import fleet, prices
from infra.fleet.prices import Cost
from infra.inputs.data_lock import read_lock
from infra.sizing import memory, workload
from infra.sizing.ranges import NOTHING, Range, total
from infra.stack.config import StackConfig
from trainer.contract import geometry
from trainer.contract.errors import InputError
from trainer.contract.spec import Role

# Seconds. Drivers: Google's release notes; the rest is ours, of an image of 5 GB and a warm machine here.
BOOT, DRIVER, IMAGE = Range(40, 120), Range(180, 300), Range(90, 300)
IMPORTS, IMPORTS_HERE = Range(15, 60), Range(6, 30)  # torch, the model, one step that nobody counts; here measured 7
PRICE_BOOK = "infra/fleet/prices.yaml"  # the origin of a price, as estimates name it
COMPILING = Range(20, 180)  # 18 s for the local default on 2 cores (docs/performance.md)
TOKENIZING = Range(0.5e6, 4e6)  # bytes/s: 1 MB/s a thread measured with one long text
WRITING, WRITING_HERE = Range(0.05e9, 0.3e9), Range(0.1e9, 1e9)  # bytes/s to a bucket, hashing included. Ours.
COPYING = Range(1e9, 10e9)  # bytes/s of a checkpoint's copy, in which steps wait
SPOT_LOSS = Range(0, 0.15)  # of the time, more: Spot workers are away a while. Ours.


def outputs(config: StackConfig) -> dict[str, Any]:
    """The stack's outputs: estimatedHours, estimatedCostUsd, hourlyCostUsd."""
    found = estimate(config)
    cost = spread(found.cost, bool(found.unknown))
    hourly: Any = round(found.hourly.usd, 2)
    if not found.hourly.exact:
        hourly = {"atLeast": hourly, "unpriced": list(found.hourly.unknown)}
    return {"estimatedHours": spread(found.hours), "estimatedCostUsd": cost, "hourlyCostUsd": hourly}


def estimate(config: StackConfig, runs: list[measured.Measured] | None = None) -> Estimate:
    """Of a stack whose load() found nothing wrong. runs: those that were measured, instead of the checkout's."""
    size = workload.dimensions(config)
    costs = prices.role_costs(config)
    hourly = sum(costs.values(), Cost(0))
    if size is None:
        why = f"the dimensions of {config.file.model.initialize} stand in the checkpoint, which is not read here"
        return Estimate((), (), (), (), hourly, None, NOTHING, (why,))
    one = step(config, size, measured.read(config.root) if runs is None else runs)
    hyper = config.file.training_input.hyperparameters
    tokens = hyper.batch_size * hyper.sequence_length
    time = _time(config, size, one)
    hours = total(part.amount for part in time)
    parts = (*_machines(config, costs, hours), *_beside(config, size, hours))
    return Estimate(
        time=tuple(part for part in time if part.amount.high > 0),
        costs=parts,
        figures=tuple(figures_of(config, size, one)),
        memory=tuple(memory.needs(config)),
        hourly=hourly,
        step=one,
        tokens_per_second=one.seconds.to_do(tokens) if one.seconds.low else NOTHING,
        notes=tuple(notes_of(config, one, hours, unpriced(parts))),
        run=one.measured.run if one.measured else "",
    )


def _time(config: StackConfig, size: geometry.Dimensions, one: Step) -> list[Part]:
    """Hours, in the order in which a person thinks of them."""
    file, hyper = config.file, config.file.training_input.hyperparameters
    begin, words = _start(config)
    parts = [Part("start", begin, words)]
    for name in ("computing", "network", "optimizer", "coordination"):
        seconds: Range = getattr(one, name)
        parts.append(Part(name, seconds.times(hyper.steps), one.origins[name]))
    forward = size.flops_a_token(hyper.sequence_length) / 3
    count = workload.evaluations(config)
    held_out = file.evaluation.sequences * hyper.sequence_length
    parts.append(
        Part(
            "evaluation",
            one.flops.to_do(forward * held_out * count),
            f"{count} times at most {file.evaluation.sequences} sequences, forward alone: a third of training's FLOPs",
        )
    )
    saved, times = workload.checkpoint_bytes(config, size), hyper.steps // file.checkpoints.every
    shares = config.servers or (workload.trainers(config, 1) if file.parallel.parallelism == "fsdp" else 1)
    writing = (WRITING if config.google else WRITING_HERE).to_do(saved / shares)
    stalls = Range(COPYING.to_do(saved / shares).low * times, writing.high * 0.5 * times)
    words = f"{times} of {saved / 1e9:.3g} GB in the background: a copy at best, half the writing at worst (ours)"
    parts.append(Part("checkpoints", stalls, words))
    model = (WRITING if config.google else WRITING_HERE).to_do(4 * size.parameters) + writing
    parts.append(Part("end", model + Range(1, 10), "the last checkpoint and the model are written; nobody computes"))
    if file.sweep is not None:  # machines start once, everything else is once a trial
        many = file.sweep.max_trials
        parts[1:] = [Part(p.name, p.amount.times(many), f"{many} trials, each: {p.origin}") for p in parts[1:]]
    if config.google and any(fleet.is_spot(config, role) for role in fleet.counts(config)):
        lost = total(part.amount for part in parts[1:5])
        lost = Range(SPOT_LOSS.low * lost.low, SPOT_LOSS.high * lost.high)
        parts.append(Part("preemptions", lost, "Spot workers away for up to 15 % of the time (ours)"))
    return [Part(part.name, part.amount.times(1 / HOUR), part.origin) for part in parts]


def _start(config: StackConfig) -> tuple[Range, str]:
    """Seconds from the declaration to the first step."""
    seconds, words = (IMPORTS, "boot, image") if config.google else (IMPORTS_HERE, "processes, torch, a first step")
    if config.google:
        seconds += BOOT + IMAGE
        if any(fleet.accelerator(config, role)[1] for role in fleet.counts(config)):
            seconds, words = seconds + DRIVER, "boot, driver (3 to 5 min), image"
        seconds += TOKENIZING.to_do(_text_bytes(config))
        text = _text_bytes(config)
        words += f", torch, tokens of {text / 1e6:.3g} MB" if text else ", torch; the text is not here"
    if config.file.training_input.hyperparameters.compile:
        seconds, words = seconds + COMPILING, words + ", compiling"
    return (
        seconds,
        f"{words} (ours, and Google's release notes)" if config.google else f"{words}: 7 s on a warm machine",
    )


def _text_bytes(config: StackConfig) -> int:
    try:
        lock = read_lock(config.text)
        return lock.size if lock else config.text.stat().st_size
    except (OSError, InputError):
        return 0


def _machines(config: StackConfig, costs: dict[Role, Cost], hours: Range) -> Iterator[Part]:
    """USD. This machine's electricity and wear are nobody's list price."""
    if not config.google:
        yield Part("this machine", NOTHING, "nothing is rented")
    for role, cost in costs.items():
        count, name = fleet.counts(config)[role], fleet.machine_type(config, role).name
        spot = ", Spot" if fleet.is_spot(config, role) else ""
        words = f"{count} x {name}{spot}, {cost.usd:.3g} USD an hour with disks: {PRICE_BOOK}"
        yield Part(role, hours.times(cost.usd), words, cost.unknown)


def _beside(config: StackConfig, size: geometry.Dimensions, hours: Range) -> Iterator[Part]:
    """USD of what a run costs beside its machines."""
    if not config.google:
        return
    checkpoint, model = workload.checkpoint_bytes(config, size), 4 * size.parameters
    kept = config.file.checkpoints.keep * checkpoint + model
    if (often := config.file.checkpoints.keep_every) is not None:
        kept += config.file.training_input.hyperparameters.steps // often * checkpoint
    if config.file.sweep is not None:
        kept *= config.file.sweep.max_trials
    gigabytes = (kept + _text_bytes(config)) / 1e9
    words = f"{gigabytes:.2g} GB kept, for a month: {PRICE_BOOK}"
    month = prices.storage_gb_month(config.region)
    yield _priced("bucket", gigabytes, month, words, f"storage in {config.region}", sure=True)
    jobs = len(fleet.counts(config))
    words = f"{jobs} jobs of Cloud Scheduler that end the machines, a month; 3 an account are free: {PRICE_BOOK}"
    yield _priced("deadlines", jobs, prices.anywhere("scheduler_job_month"), words, "Cloud Scheduler")
    words = f"{model / 1e9:.2g} GB out of Google Cloud, once, if you download the model: {PRICE_BOOK}"
    yield _priced("download", model / 1e9, prices.anywhere("egress_gb"), words, "what leaves Google Cloud")
    if config.file.network.nat:
        yield _way_out(sum(fleet.counts(config).values()), model / 1e9, hours)


def _way_out(machines: int, gigabytes: float, hours: Range) -> Part:
    """network.nat: its gateway, which costs no more from 32 machines on, and what passes it."""
    each, address, passing = map(prices.anywhere, ("nat_machine_hour", "nat_address_hour", "nat_gb"))
    if each is None or address is None or passing is None:
        return Part("way out", NOTHING, "network.nat", ("Cloud NAT",))
    gateway = hours.times(min(machines, 32) * each + address)
    words = f"network.nat: a gateway; {gigabytes:.2g} GB for each machine at most pass it (ours): {PRICE_BOOK}"
    return Part("way out", gateway + Range(0, passing * gigabytes * machines), words)


def _priced(name: str, units: float, price: float | None, words: str, what: str, sure: bool = False) -> Part:
    """sure: it is paid in any case, and not perhaps."""
    usd = units * (price or 0)
    return Part(name, Range(usd if sure else 0, usd), words, () if price is not None else (what,))


def fits(found: Estimate, config: StackConfig) -> bool | None:
    """Whether the job will surely be over within maxHours and maxCostUsd; None where a price that nobody knows decides.

    A lower bound that is too much is too much all the same.
    """
    limits = config.file.limits
    hours, cost = found.hours, found.cost
    if hours is None or cost is None:
        return False
    most = math.inf if limits.max_cost_usd is None else limits.max_cost_usd
    if hours.high > limits.max_hours or cost.high > most:
        return False
    return None if found.unknown and limits.max_cost_usd is not None else True
