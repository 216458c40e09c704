"""Estimate the same job on other machines, and find the cheapest and the fastest that fit its limits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from infra.checks.google import stack_problems
from infra.estimate.estimate import estimate, fits
from infra.estimate.measured import Measured
from infra.estimate.parts import Estimate
from infra.fleet import prices
from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES, MachineType
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.sizing import workload
from infra.sizing.memory import fits as fits_memory
from infra.sizing.remedies import same_machines
from infra.stack.config import StackConfig
from infra.stack.keys import Accelerator
from trainer.contract.geometry import Dimensions
from trainer.contract.options import Parallel

# Machines to compare with: those whose CPU trains, those whose CPU only feeds the attached GPUs, and servers.
ALONE = (
    *("n1-standard-8", "n1-highcpu-16", "n1-standard-16", "n1-standard-32", "n1-standard-96", "e2-standard-16"),
    *("n2-standard-32", "n2d-standard-48", "n4-standard-32", "c3-standard-44", "c3d-standard-60", "c4-standard-32"),
    *("c4-standard-96", "c4d-standard-32", "c4d-standard-96"),
)
BESIDE_GPUS = ("n1-standard-8", "n1-highmem-8", "n1-highmem-16")
SERVERS = ("n1-highmem-8", "e2-highmem-8")


@dataclass(frozen=True)
class Alternative:
    """A way to run the job.

    shape: its machines in words. fits: whether it fits the stack's limits; None if that depends on an unknown price.
    """

    config: StackConfig
    fleet: Fleet
    shape: str
    estimate: Estimate
    fits: bool | None

    @property
    def cost(self) -> float:
        """USD in the middle of the range, or of the lower bounds if a price is unknown."""
        cost = self.estimate.cost
        return cost.middle if cost else 0.0

    @property
    def hours(self) -> float:
        hours = self.estimate.hours
        return hours.middle if hours else 0.0


@dataclass(frozen=True)
class Choice:
    """All alternatives that can run the job, by cost, those with unknown prices last.

    cheapest, fastest: of those that have known prices and fit the limits.
    """

    every: list[Alternative]
    cheapest: Alternative | None
    fastest: Alternative | None


def compare(config: StackConfig, fleet: Fleet, runs: list[Measured] | None = None) -> Choice:
    """Estimate all alternatives in the stack's own region. fleet: the stack's own. runs: as estimate() takes them."""
    every = []
    for candidate in dict.fromkeys(_candidates(config, fleet)):
        made = _with_machines(config, candidate)
        if made is None:
            continue
        changed, other_fleet = made
        estimated = estimate(changed, other_fleet, runs)
        if estimated.hours is not None:
            shape = candidate.words + _changes(config, changed)
            within = fits(estimated, changed.file.limits)
            every.append(Alternative(changed, other_fleet, shape, estimated, within))
    every.sort(key=lambda alternative: (bool(alternative.estimate.unknown), alternative.cost, alternative.hours))
    fitting = [alternative for alternative in every if alternative.fits and not alternative.estimate.unknown]
    return Choice(
        every,
        min(fitting, key=lambda alternative: alternative.cost, default=None),
        min(fitting, key=lambda alternative: alternative.hours, default=None),
    )


def regions(config: StackConfig, runs: list[Measured] | None = None) -> list[tuple[str, Estimate]]:
    """Estimate the stack's own machines in each region of the price list, without regard to zones and capacity."""
    estimates = []
    for region in prices.regions():
        moved = replace(config, provider={**config.provider, "region": region})
        estimates.append((region, estimate(moved, resolve_fleet(moved), runs)))
    return estimates


@dataclass(frozen=True)
class _Candidate:
    """Machines to compare with.

    accelerator, accelerators: the GPUs attached to each trainer machine. server: the type of the servers, if any.
    """

    machine: str
    accelerator: str
    accelerators: int
    workers: int
    servers: int
    server: str
    spot: bool

    @property
    def words(self) -> str:
        gpus = f" + {self.accelerators} x {self.accelerator.removeprefix('nvidia-')}" if self.accelerator else ""
        servers = f" + {self.servers} x {self.server}" if self.servers else ""
        return f"{1 + self.workers} x {self.machine}{gpus}{servers}"


def _candidates(config: StackConfig, fleet: Fleet) -> Iterator[_Candidate]:
    own, servers = config.workers, config.servers
    batch = config.file.training_input.hyperparameters.batch_size
    counts = sorted({0, 3, own, 2 * own} if own else {0, 1, 3})
    own_server = config.file.training_input.machine_types()["ps"]
    kept = [(servers, name) for name in dict.fromkeys([own_server or SERVERS[0], *SERVERS])] if servers else []
    for name, gpu, number in _machines(config, fleet):
        gpus = number or MACHINE_TYPES[name].accelerators
        for workers in counts:
            if (1 + workers) * max(1, gpus) > batch:
                continue
            for spot in (False, True) if workers else (False,):
                # The trainers' own all-reduce is faster than servers where each machine has several GPUs.
                for kept_servers, server in [(0, ""), *(kept if workers and gpus <= 1 else [])]:
                    yield _Candidate(name, gpu, number, workers, kept_servers, server, spot)


def _machines(config: StackConfig, fleet: Fleet) -> Iterator[tuple[str, str, int]]:
    """Yield machine types with the GPUs attached to them and their number: ours, and the master's on Google Cloud."""
    own = [] if fleet.local else [fleet.master.machine.name]
    for name in dict.fromkeys([*ALONE, *own]):
        if not MACHINE_TYPES[name].accelerators:
            yield name, "", 0
    for model in ACCELERATORS.values():
        for number, (vcpus, gigabytes) in model.most.items():
            for name in dict.fromkeys([*BESIDE_GPUS, *own]):
                if _takes_gpus(MACHINE_TYPES[name], vcpus, gigabytes):
                    yield name, model.name, number
    for machine in MACHINE_TYPES.values():
        if machine.accelerators:
            yield machine.name, "", 0


def _takes_gpus(machine: MachineType, vcpus: int, gigabytes: int) -> bool:
    """Return whether GPUs can be attached that allow so many vCPUs and so much memory."""
    return machine.takes_gpus and machine.vcpus <= vcpus and machine.memory_gb <= gigabytes


def _with_machines(config: StackConfig, candidate: _Candidate) -> tuple[StackConfig, Fleet] | None:
    """Return the stack with other machines, and these; None if Google would refuse them or the model does not fit."""
    file = config.file
    training = file.training_input.model_copy(
        update={
            "scale_tier": "CUSTOM",
            "master_type": candidate.machine,
            "worker_type": candidate.machine if candidate.workers else None,
            "worker_count": candidate.workers,
            "min_workers": 0,
            "parameter_server_type": candidate.server or None,
            "parameter_server_count": candidate.servers,
        }
    )
    attached = None
    if candidate.accelerator:
        attached = Accelerator(type=candidate.accelerator, count=candidate.accelerators)
    machines = file.machines.model_copy(
        update={
            "accelerator": attached,
            "spot": candidate.spot,
            "zones": [],
            "reservation": None,
            "flex_start": False,
            "compact_placement": False,
        }
    )
    parallel = _parallel(file.parallel, candidate)
    # With a limit, an unknown price would be refused. Without it, the price only makes the row a lower bound.
    limits = file.limits.model_copy(update={"max_cost_usd": None, "billing_account": None})
    update = {
        "platform": "google",
        "training_input": training,
        "machines": machines,
        "parallel": parallel,
        "limits": limits,
    }
    provider = {"project": "any-project", "region": config.region}
    changed = replace(config, file=file.model_copy(update=update), provider=provider)
    if any(_is_of_machines(problem) for problem in stack_problems(changed)):
        return None
    fleet, size = resolve_fleet(changed), workload.dimensions(changed)
    fitting = None if size is None else _that_fits(changed, fleet, size)
    if fitting is None:
        return None
    return replace(fitting, file=fitting.file.model_copy(update={"limits": file.limits})), fleet


def _parallel(own: Parallel, candidate: _Candidate) -> Parallel:
    """Return how other machines share a step: replicas, which are faster than fsdp where they fit."""
    update: dict[str, Any] = {"parallelism": "replicas", "processes": None}
    if not candidate.servers:
        update |= {"plan": "auto", "synchronization": "step", "every": 1}
    gpus = candidate.accelerators or MACHINE_TYPES[candidate.machine].accelerators
    if candidate.workers == candidate.servers == 0 and gpus <= 1:  # nothing is sent
        update["wire"] = "fp32"
    return own.model_copy(update=update)


def _that_fits(config: StackConfig, fleet: Fleet, size: Dimensions) -> StackConfig | None:
    """Return the stack, or the fastest change of what its machines do with which it fits; None if nothing fits."""
    if fits_memory(config, fleet, size):
        return config
    changes = (changed for _, changed in same_machines(config, fleet, size))
    return next((changed for changed in changes if fits_memory(changed, fleet, size)), None)


def _changes(config: StackConfig, changed: StackConfig) -> str:
    """Return in words what the job needs on other machines to fit into their memory; empty if nothing."""
    hyper = changed.file.training_input.hyperparameters
    own = config.file.training_input.hyperparameters
    words = [", fsdp"] if changed.file.parallel.parallelism == "fsdp" else []
    if hyper.recompute != own.recompute:
        words.append(f", recompute {hyper.recompute}")
    if hyper.micro_batch_size != own.micro_batch_size:
        words.append(f", microBatchSize {hyper.micro_batch_size}" if hyper.micro_batch_size else ", no microBatchSize")
    return "".join(words)


def _is_of_machines(problem: str) -> bool:
    """Return whether a problem is one of the machines, and not of the stack's name or of another region's zones."""
    return not problem.startswith(("stack ", "gpt2-training:machines.zones"))
