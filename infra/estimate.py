"""How long a run will take and what it will cost, as ranges with the origin of every number, before anyone pays.

Pure but for reading the checkout (the text's size, artifacts/measured.json): a preview needs no network for it.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import measured, memory, prices, workload
from infra.google import rules
from infra.google.deadline import hours_left
from infra.hardware import NOTHING, Range, total
from infra.prices import Cost
from infra.step import Step, step
from trainer.spec import Role

if TYPE_CHECKING:
    from infra.config import StackConfig

HOUR = 3600
# Seconds. Drivers: Google's release notes; the rest is ours, of an image of 5 GB and a warm machine here.
BOOT, DRIVER, IMAGE = Range(40, 120), Range(180, 300), Range(90, 300)
IMPORTS, IMPORTS_HERE = Range(15, 60), Range(6, 30)  # torch, the model, one step that nobody counts; here measured 7
COMPILING = Range(20, 180)  # 18 s for the local default on 2 cores (docs/performance.md)
TOKENIZING = Range(0.5e6, 4e6)  # bytes/s: 1 MB/s a thread measured with one long text
WRITING, WRITING_HERE = Range(0.05e9, 0.3e9), Range(0.1e9, 1e9)  # bytes/s to a bucket, hashing included. Ours.
COPYING = Range(1e9, 10e9)  # bytes/s of a checkpoint's copy, in which steps wait
REPLAY = 2 * 0.02 * 86400  # seconds between checkpoints: half of it is repeated after a loss, and a day has one. Ours.
SPOT_LOSS = Range(0, 0.15)  # of the time, more: Spot workers are away a while. Ours.


@dataclass(frozen=True)
class Part:
    """A part of the time or of the money."""

    name: str
    amount: Range  # hours or USD
    origin: str
    unknown: tuple[str, ...] = ()  # what is not priced: then it is a lower bound


@dataclass(frozen=True)
class Figure:
    """A number that the rest follows from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Estimate:
    """hours and cost are None where the model's dimensions are not known: `notes` says why."""

    time: tuple[Part, ...]
    costs: tuple[Part, ...]
    figures: tuple[Figure, ...]
    memory: tuple[memory.Need, ...]
    hourly: Cost  # of all machines
    step: Step | None
    tokens_per_second: Range
    notes: tuple[str, ...]
    run: str = ""  # that it follows, by its measured speed

    @property
    def hours(self) -> Range | None:
        return total(part.amount for part in self.time) if self.time else None

    @property
    def cost(self) -> Range | None:
        """USD; a lower bound if `unknown` is not empty."""
        return total(part.amount for part in self.costs) if self.time else None

    @property
    def unknown(self) -> tuple[str, ...]:
        return _unpriced(self.costs)


def _unpriced(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(what for part in parts for what in part.unknown))


def rounded(number: float) -> float:
    """Two digits that matter: more would be a promise."""
    return float(f"{number:.2g}")


def spread(amount: Range | None, at_least: bool = False) -> dict[str, Any]:
    """A range as a stack's output: {"low", "high"}, with "atLeast" where not everything is priced."""
    if amount is None:
        return {"unknown": "the model's dimensions stand in a checkpoint that is not here"}
    found: dict[str, Any] = {"low": rounded(amount.low), "high": rounded(amount.high)}
    return found | ({"atLeast": True} if at_least else {})


def outputs(config: "StackConfig") -> dict[str, Any]:
    """The stack's outputs: estimatedHours, estimatedCostUsd, hourlyCostUsd."""
    found = estimate(config)
    cost = spread(found.cost, bool(found.unknown))
    hourly: Any = round(found.hourly.usd, 2)
    if not found.hourly.exact:
        hourly = {"atLeast": hourly, "unpriced": list(found.hourly.unknown)}
    return {"estimatedHours": spread(found.hours), "estimatedCostUsd": cost, "hourlyCostUsd": hourly}


def estimate(config: "StackConfig", runs: list[measured.Measured] | None = None) -> Estimate:
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
        figures=tuple(_figures(config, size, one)),
        memory=tuple(memory.needs(config)),
        hourly=hourly,
        step=one,
        tokens_per_second=one.seconds.to_do(tokens) if one.seconds.low else NOTHING,
        notes=tuple(_notes(config, one, hours, _unpriced(parts))),
        run=one.measured.run if one.measured else "",
    )


def _time(config: "StackConfig", size: workload.Dimensions, one: Step) -> list[Part]:
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
    if config.google and any(prices.is_spot(config, role) for role in rules.counts(config)):
        lost = total(part.amount for part in parts[1:5])
        lost = Range(SPOT_LOSS.low * lost.low, SPOT_LOSS.high * lost.high)
        parts.append(Part("preemptions", lost, "Spot workers away for up to 15 % of the time (ours)"))
    return [Part(part.name, part.amount.times(1 / HOUR), part.origin) for part in parts]


def _start(config: "StackConfig") -> tuple[Range, str]:
    """Seconds from the declaration to the first step."""
    seconds, words = (IMPORTS, "boot, image") if config.google else (IMPORTS_HERE, "processes, torch, a first step")
    if config.google:
        seconds += BOOT + IMAGE
        if any(rules.accelerator(config, role)[1] for role in rules.counts(config)):
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


def _text_bytes(config: "StackConfig") -> int:
    from infra.data_lock import read_lock
    from trainer.spec import InputError

    try:
        lock = read_lock(config.text)
        return lock.size if lock else config.text.stat().st_size
    except (OSError, InputError):
        return 0


def _machines(config: "StackConfig", costs: dict[Role, Cost], hours: Range) -> Iterator[Part]:
    """USD. This machine's electricity and wear are nobody's list price."""
    if not config.google:
        yield Part("this machine", NOTHING, "nothing is rented")
    for role, cost in costs.items():
        count, name = rules.counts(config)[role], rules.machine_type(config, role).name
        spot = ", Spot" if prices.is_spot(config, role) else ""
        words = f"{count} x {name}{spot}, {cost.usd:.3g} USD an hour with disks: infra/prices.yaml"
        yield Part(role, hours.times(cost.usd), words, cost.unknown)


def _beside(config: "StackConfig", size: workload.Dimensions, hours: Range) -> Iterator[Part]:
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
    words = f"{gigabytes:.2g} GB kept, for a month: infra/prices.yaml"
    month = prices.storage_gb_month(config.region)
    yield _priced("bucket", gigabytes, month, words, f"storage in {config.region}", sure=True)
    jobs = len(rules.counts(config))
    words = f"{jobs} jobs of Cloud Scheduler that end the machines, a month; 3 an account are free: infra/prices.yaml"
    yield _priced("deadlines", jobs, prices.anywhere("scheduler_job_month"), words, "Cloud Scheduler")
    words = f"{model / 1e9:.2g} GB out of Google Cloud, once, if you download the model: infra/prices.yaml"
    yield _priced("download", model / 1e9, prices.anywhere("egress_gb"), words, "what leaves Google Cloud")
    if config.file.network.nat:
        yield _way_out(sum(rules.counts(config).values()), model / 1e9, hours)


def _way_out(machines: int, gigabytes: float, hours: Range) -> Part:
    """network.nat: its gateway, which costs no more from 32 machines on, and what passes it."""
    each, address, passing = map(prices.anywhere, ("nat_machine_hour", "nat_address_hour", "nat_gb"))
    if each is None or address is None or passing is None:
        return Part("way out", NOTHING, "network.nat", ("Cloud NAT",))
    gateway = hours.times(min(machines, 32) * each + address)
    words = f"network.nat: a gateway; {gigabytes:.2g} GB for each machine at most pass it (ours): infra/prices.yaml"
    return Part("way out", gateway + Range(0, passing * gigabytes * machines), words)


def _priced(name: str, units: float, price: float | None, words: str, what: str, sure: bool = False) -> Part:
    """sure: it is paid in any case, and not perhaps."""
    usd = units * (price or 0)
    return Part(name, Range(usd if sure else 0, usd), words, () if price is not None else (what,))


def _figures(config: "StackConfig", size: workload.Dimensions, one: Step) -> list[Figure]:
    hyper = config.file.training_input.hyperparameters
    tokens = hyper.batch_size * hyper.sequence_length
    flops = size.flops_a_token(hyper.sequence_length)
    trainers = workload.trainers(config, rules.accelerator(config, "master")[1] if config.google else 1)
    part = workload.share(hyper, trainers)
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
            f"{trainers} trainers, {tokens / trainers / part.tokens:.0%} busy (trainer/batches.py)",
        ),
        Figure(
            "speed",
            f"{one.flops.low / 1e12:.3g} to {one.flops.high / 1e12:.3g} TFLOP/s in all",
            one.origins["computing"],
        ),
    ]


def _notes(config: "StackConfig", one: Step, hours: Range, unpriced: Sequence[str]) -> list[str]:
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
    for role in rules.counts(config):
        number = rules.accelerator(config, role)[1]
        if number > 1 and config.file.parallel.parallelism != "fsdp":
            name = rules.machine_type(config, role).name
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


def fits(found: Estimate, config: "StackConfig") -> bool | None:
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
