"""Calculate what each role holds in memory, and report what cannot fit: at preview, before anyone pays.

`least` counts the tensors that must be in memory at the same time; only a machine with less than that is refused.
`usual` adds libraries, allocators and the copies that checkpoints take. Its figures are ours, but for parameter servers
and processes, which were measured.
"""

from dataclasses import dataclass, replace

from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES
from infra.fleet.fleet import Fleet, RoleMachines
from infra.sizing import workload
from infra.sizing.speed import half_precision
from infra.stack.config import StackConfig
from trainer.contract import geometry
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role

GIB = 2**30
# Bytes that a token keeps for the backward pass, for each layer and element of the width: 17 numbers of fp32; under
# autocast 2 inputs of norms stay fp32 and 15 are halved (counted from transformers' GPT2Block with scaled dot-product
# attention).
KEPT, KEPT_HALF = 17 * 4, 2 * 4 + 15 * 2
COMPILED = 0.5  # the least part of them that torch.compile keeps; it may compute the rest again
LOGITS, LOGITS_HALF = 8, 10  # bytes of a logit: the product, its logarithm, under autocast a copy
CUDA = 600_000_000  # bytes of a CUDA context and its libraries
FRAGMENTS = 1.15  # what allocators take for each byte of the tensors
# Measured, whatever the model: bytes of a process.
TRAINER_BYTES = 900_000_000
SERVER_BYTES = 620_000_000
SERVERS_BYTES_PER_PARAMETER = {"step": 28, "local": 44}  # of all parameter servers together


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one machine of a role holds in its GPU or in its own memory.

    gpu: the model of the GPU; empty for the machine's own memory.
    fixed: the least with micro-batches of one sequence. least, usual: see above. has: 0 if nobody knows.
    of, of_one: what `least` and `fixed` count, in words.
    """

    role: Role
    gpu: str
    fixed: float
    least: float
    usual: float
    has: float
    of: str
    of_one: str = ""

    @property
    def where(self) -> str:
        return f"{self.gpu}, each GPU" if self.gpu else "memory"


@dataclass(frozen=True)
class _Held:
    """The least bytes that a trainer holds, and what they are, in words."""

    bytes: float
    of: str


def needs(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> list[MemoryNeed]:
    """Return what the machines of each role hold, in their GPUs first."""
    all_needs = []
    for machines in fleet.roles:
        has = machines.machine.memory_gb * GIB
        if machines.role == "ps":
            all_needs.append(_server(config, machines, size.parameters))
            continue
        gpu = machines.accelerator
        held, of_one = _trainer(config, fleet, size, gpu), _trainer(config, fleet, size, gpu, 1)
        if gpu:
            memory = ACCELERATORS[gpu].memory_gb * GIB
            usual = FRAGMENTS * held.bytes + CUDA
            all_needs.append(
                MemoryNeed(machines.role, gpu, of_one.bytes, held.bytes, usual, memory, held.of, of_one.of)
            )
            # Each process makes the model in the machine's memory, then moves it to its GPU.
            processes = fleet.processes_per_trainer
            host = 4.0 * size.parameters * processes
            usual = host + workload.checkpoint_bytes(config, size) + 3 * TRAINER_BYTES * processes
            contents = "the model as it is made, a checkpoint's copy, torch"
            all_needs.append(MemoryNeed(machines.role, "", host, host, usual, has, contents))
        else:
            writes = machines.role == "master" and fleet.servers is None
            saved = workload.checkpoint_bytes(config, size) if writes else 0
            usual = FRAGMENTS * held.bytes + saved + TRAINER_BYTES
            all_needs.append(MemoryNeed(machines.role, "", of_one.bytes, held.bytes, usual, has, held.of, of_one.of))
    return all_needs


def _trainer(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, gpu: str, rows: int | None = None) -> _Held:
    """Return what a trainer holds. rows: sequences of a micro-batch; None: as many as the stack file leads to."""
    hyper = config.file.training_input.hyperparameters
    adamw = hyper.optimizer == "adamw"
    half = half_precision(gpu, hyper.precision)
    parameters = size.parameters
    copies = 2.0 * parameters if half else 0.0  # autocast's, of the weights

    # What the model and its optimizer take.
    contents = "parameters, gradients"
    if fleet.servers is not None:  # they hold the optimizer's state
        fixed = 8.0 * parameters + copies
        if config.file.parallel.synchronization == "local":
            fixed += 8.0 * parameters
    elif config.file.parallel.parallelism == "fsdp":
        parts = fleet.processes_per_trainer
        table = (size.vocabulary + size.positions) * size.width * (2 if half else 4)
        fixed = max(4.0 * parameters, (16.0 if adamw else 8.0) * parameters / parts + table)
        contents = f"1/{parts} of parameters, gradients and optimizer's state, gathered embeddings"
    else:
        trained = workload.trained(config, size)
        fixed = 4.0 * parameters + (12.0 if adamw else 4.0) * trained + copies
        contents += ", optimizer's state" if adamw else ""

    # What a micro-batch takes.
    share = geometry.share(hyper, fleet.trainers)
    tokens = (rows or share.rows) * share.length
    bytes_kept = (KEPT_HALF if half else KEPT) * (COMPILED if hyper.compile else 1.0)
    activations = tokens * size.layers * size.width * bytes_kept
    logits = min(geometry.LOGIT_CHUNK, tokens) * size.vocabulary * (LOGITS_HALF if half else LOGITS)
    of = f"{fixed / 1e9:.2g} GB {contents}; {activations / 1e9:.2g} GB activations; {logits / 1e9:.2g} GB logits"
    return _Held(fixed + activations + logits, of)


def _server(config: StackConfig, machines: RoleMachines, parameters: int) -> MemoryNeed:
    per_parameter = SERVERS_BYTES_PER_PARAMETER[config.file.parallel.synchronization]
    # The parameter, the moments and what is on its way.
    least = 12.0 if config.file.training_input.hyperparameters.optimizer == "adamw" else 8.0
    fixed = least * parameters / machines.count
    usual = SERVER_BYTES + per_parameter * parameters / machines.count
    of = f"{per_parameter} bytes a parameter, shared by {machines.count} (measured: docs/performance.md)"
    return MemoryNeed("ps", "", fixed, fixed, usual, machines.machine.memory_gb * GIB, of)


def memory_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return what cannot fit, a line for each key, without the project's name. All else must have been checked."""
    size = workload.dimensions(config)
    if size is None:
        return []
    machines = {machines.role: machines.machine for machines in fleet.roles}
    problems: dict[str, str] = {}
    for need in needs(config, fleet, size):
        if not need.has or need.least <= need.has:
            continue
        key, machine = f"trainingInput.{TYPE_KEYS[need.role]}", machines[need.role]
        model = config.file.model.name
        place = f"a {need.gpu} of {machine.name}" if need.gpu else machine.name
        if need.fixed > need.has:
            problems.setdefault(
                key,
                f"{key}: {place} has {need.has / 1e9:.0f} GB, and {model} needs at least {need.fixed / 1e9:.0f} there"
                f" ({need.of_one or need.of}); {_remedy(need)}",
            )
            continue
        key = "trainingInput.hyperparameters.microBatchSize"
        rows = fitting_rows(config, fleet, size) or 1
        hyper = config.file.training_input.hyperparameters
        given = "missing" if hyper.micro_batch_size is None else f"found {hyper.micro_batch_size}"
        problems.setdefault(
            key,
            f"{key}: {given}, and so many sequences of {hyper.sequence_length} tokens at a time take at least"
            f" {need.least / 1e9:.0f} GB of {place}, which has {need.has / 1e9:.0f} ({need.of}); use {rows}",
        )
    return list(problems.values())


def fitting_rows(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> int | None:
    """Return how many sequences of a micro-batch fit as usual, halving from today's number; None if not even one."""
    training = config.file.training_input
    rows = geometry.share(training.hyperparameters, fleet.trainers).rows
    while rows:
        hyper = training.hyperparameters.model_copy(update={"micro_batch_size": rows})
        file = config.file.model_copy(update={"training_input": training.model_copy(update={"hyperparameters": hyper})})
        if all(need.usual <= need.has for need in needs(replace(config, file=file), fleet, size) if need.has):
            return rows
        rows //= 2
    return None


def _remedy(need: MemoryNeed) -> str:
    if need.role == "ps":
        return "use a machine with more memory, or a higher trainingInput.parameterServerCount"
    if need.gpu:
        larger = [model for model in ACCELERATORS.values() if model.memory_gb * GIB > 1.2 * need.fixed]
        named = next((m.name for model in larger for m in MACHINE_TYPES.values() if m.accelerator == model.name), "")
        example = f", for example {named}" if named else ""
        return f"use a GPU with more{example}, or parallel.parallelism: fsdp on a machine with several"
    fitting = [m for m in MACHINE_TYPES.values() if m.family == "n1" and m.memory_gb * GIB > 1.2 * need.fixed]
    smallest = min(fitting, key=lambda m: m.memory_gb, default=None)
    return f"use {smallest.name} or larger" if smallest else "use a smaller model"
