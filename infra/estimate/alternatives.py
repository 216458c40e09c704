"""The same job on other machines: how long, for how much, and which that fit are the cheapest and the fastest."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.checks import google
from infra.estimate.estimate import estimate, fits
from infra.estimate.measured import Measured
from infra.estimate.parts import Estimate
from infra.fleet import prices
from infra.fleet.catalog import ACCELERATORS, LEAST_COMPUTE_CAPABILITY, MACHINE_TYPES, MachineType
from infra.sizing import memory
from infra.stack.config import StackConfig
from infra.stack.keys import Accelerator
from trainer.contract.spec import Parallel

# N1 to compare with: a machine's memory and cores are for the CPU to train with, or beside a GPU for it to be fed.
ALONE = ("n1-standard-8", "n1-highcpu-16", "n1-standard-16", "n1-standard-32", "n1-standard-96")
BESIDE_GPUS = ("n1-standard-8", "n1-highmem-8", "n1-highmem-16")
SERVER = "n1-highmem-8"


@dataclass(frozen=True)
class Alternative:
    """A way to run the job; `shape` says in words which machines."""

    config: StackConfig
    shape: str
    estimate: Estimate
    fits: bool | None  # within the stack's limits; None: that depends on a price that nobody knows

    @property
    def cost(self) -> float:
        """USD in the middle of its range, or of the lower bounds."""
        found = self.estimate.cost
        return found.middle if found else 0.0

    @property
    def hours(self) -> float:
        found = self.estimate.hours
        return found.middle if found else 0.0


@dataclass(frozen=True)
class Choice:
    every: list[Alternative]  # that can carry the job out, by cost; unpriced ones last
    cheapest: Alternative | None  # of those that are priced and within the limits
    fastest: Alternative | None


def compare(config: StackConfig, runs: list[Measured] | None = None) -> Choice:
    """All alternatives in the stack's own region. Pure but for what estimate() reads."""
    found = []
    for candidate in dict.fromkeys(_candidates(config)):
        made = _made(config, candidate)
        if made is None:
            continue
        one = estimate(made, runs)
        if one.hours is not None:
            found.append(Alternative(made, candidate.words + _rows(config, made), one, fits(one, made)))
    found.sort(key=lambda one: (bool(one.estimate.unknown), one.cost, one.hours))
    fitting = [one for one in found if one.fits and not one.estimate.unknown]
    return Choice(
        found,
        min(fitting, key=lambda one: one.cost, default=None),
        min(fitting, key=lambda one: one.hours, default=None),
    )


def regions(config: StackConfig, runs: list[Measured] | None = None) -> list[tuple[str, Estimate]]:
    """The stack's own machines in each region of the price list. Zones and capacity there are not looked at."""
    found = []
    for region in prices.regions():
        there = replace(config, provider={**config.provider, "region": region})
        found.append((region, estimate(there, runs)))
    return found


@dataclass(frozen=True)
class _Candidate:
    machine: str
    accelerator: str
    accelerators: int  # attached
    workers: int
    servers: int
    spot: bool
    fsdp: bool

    @property
    def words(self) -> str:
        gpus = f" + {self.accelerators} x {self.accelerator.removeprefix('nvidia-')}" if self.accelerator else ""
        servers = f" + {self.servers} servers" if self.servers else ""
        return f"{1 + self.workers} x {self.machine}{gpus}{servers}{' fsdp' if self.fsdp else ''}"


def _candidates(config: StackConfig) -> Iterator[_Candidate]:
    own, servers = config.workers, config.servers
    batch = config.file.training_input.hyperparameters.batch_size
    counts = sorted({0, 3, own, 2 * own} if own else {0, 1, 3})
    for name, gpu, number in _machines(config):
        built_in = MACHINE_TYPES[name].accelerators
        if max(number, built_in) > 1:
            yield _Candidate(name, gpu, number, 0, 0, False, True)
            continue
        for workers in counts:
            if 1 + workers <= batch:
                for spot in (False, True) if workers else (False,):
                    for kept in {0, servers} if workers else {0}:
                        yield _Candidate(name, gpu, number, workers, kept, spot, False)


def _machines(config: StackConfig) -> Iterator[tuple[str, str, int]]:
    """Machine type, GPU attached and how many: ours to compare, and the stack's own."""
    named = config.file.training_input.machine_types()["master"] if config.google else None
    for name in dict.fromkeys([*ALONE, *([named] if named else [])]):
        if name in MACHINE_TYPES and not MACHINE_TYPES[name].accelerators:
            yield name, "", 0
    for model in ACCELERATORS.values():
        if model.compute_capability < LEAST_COMPUTE_CAPABILITY and config.file.image is None:
            continue  # the image's torch has no kernels for it
        for number, (vcpus, gigabytes) in model.most.items():
            for name in dict.fromkeys([*BESIDE_GPUS, *([named] if named else [])]):
                machine = MACHINE_TYPES.get(name)
                if machine and _takes(machine, vcpus, gigabytes):
                    yield name, model.name, number
    for machine in MACHINE_TYPES.values():
        if machine.accelerators:
            yield machine.name, "", 0


def _takes(machine: MachineType, vcpus: int, gigabytes: int) -> bool:
    return not machine.accelerators and machine.vcpus <= vcpus and machine.memory_gb <= gigabytes


def _made(config: StackConfig, one: _Candidate) -> StackConfig | None:
    """The stack with these machines; None if Google or their memory would refuse it."""
    file = config.file
    training = file.training_input.model_copy(
        update={
            "scale_tier": "CUSTOM",
            "master_type": one.machine,
            "worker_type": one.machine if one.workers else None,
            "worker_count": one.workers,
            "min_workers": 0,
            "parameter_server_type": (file.training_input.parameter_server_type or SERVER) if one.servers else None,
            "parameter_server_count": one.servers,
        }
    )
    attached = Accelerator(type=one.accelerator, count=one.accelerators) if one.accelerator else None
    machines = file.machines.model_copy(
        update={"accelerator": attached, "spot": one.spot, "zones": [], "reservation": None, "flex_start": False}
    )
    talk = file.parallel if one.servers else Parallel(parallelism="fsdp" if one.fsdp else "replicas")
    # A price that is not known makes a row a lower bound; as a limit it would hide it.
    limits = file.limits.model_copy(update={"max_cost_usd": None, "billing_account": None})
    update = {
        "platform": "google",
        "training_input": training,
        "machines": machines,
        "parallel": talk,
        "limits": limits,
    }
    provider = {"project": "any-project", "region": config.region}
    made = replace(config, file=file.model_copy(update=update), provider=provider)
    if any(_matters(problem) for problem in google.stack_problems(made)):
        return None
    rows = memory.fitting_rows(made)
    if rows is None and memory.needs(made):
        return None
    if rows is not None and memory.memory_problems(made):
        hyper = training.hyperparameters.model_copy(update={"micro_batch_size": rows})
        update = {"training_input": training.model_copy(update={"hyperparameters": hyper})}
        made = replace(made, file=made.file.model_copy(update=update))
    return replace(made, file=made.file.model_copy(update={"limits": file.limits}))


def _rows(config: StackConfig, made: StackConfig) -> str:
    """What the job must change to fit there."""
    rows = made.file.training_input.hyperparameters.micro_batch_size
    same = rows == config.file.training_input.hyperparameters.micro_batch_size
    return "" if same else f", microBatchSize {rows}"


def _matters(problem: str) -> bool:
    """Names and zones of another region say nothing of machines."""
    return not problem.startswith(("stack ", "gpt2-training:machines.zones"))
