"""What each role holds in memory, and whether that fits: what cannot is an error at preview, before anyone pays.

least: what tensors take that must be there at the same time; refused is only what is less than that. usual: with what
libraries, allocators and copies for checkpoints take beside them; ours, but for parameter servers, which were measured.
"""

from dataclasses import dataclass, replace

from infra.fleet import fleet
from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES
from infra.fleet.fleet import accelerator, counts, machine_type
from infra.sizing import workload
from infra.sizing.speed import half_precision
from infra.stack.config import StackConfig
from trainer.contract import geometry
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role

GIB = 2**30
# Bytes of an element of width and layer that a token keeps for the backward pass: 17 of fp32; under autocast 2 inputs
# of norms stay fp32 and 15 are halved (counted from transformers' GPT2Block with scaled dot-product attention).
KEPT, KEPT_HALF = 17 * 4, 2 * 4 + 15 * 2
COMPILED = 0.5  # of them at least: torch.compile may compute some again
LOGITS, LOGITS_HALF = 8, 10  # bytes of a logit: the product, its logarithm, under autocast a copy
CUDA = 600_000_000  # bytes of a CUDA context and its libraries
FRAGMENTS = 1.15  # of what the tensors take: allocators


@dataclass(frozen=True)
class Need:
    """Bytes that one machine of a role holds, in its GPU or in its own memory."""

    role: Role
    gpu: str  # "" is the machine's own memory
    fixed: float  # least, with micro-batches of one sequence
    least: float
    usual: float
    has: float  # 0: not known
    of: str  # what takes it, in words
    of_one: str = ""  # the same of `fixed`

    @property
    def where(self) -> str:
        return f"{self.gpu}, each GPU" if self.gpu else "memory"


@dataclass(frozen=True)
class _Held:
    """Of a trainer, at least; and what takes it, in words."""

    bytes: float
    of: str


def needs(config: StackConfig) -> list[Need]:
    """Of each role; none if the model's dimensions are not known."""
    size = workload.dimensions(config)
    if size is None:
        return []
    found = []
    for role, gpu, has in _places(config):
        if role == "ps":
            found.append(_server(config, size.parameters, has))
            continue
        held, of_one = _trainer(config, size, gpu), _trainer(config, size, gpu, 1)
        if gpu:
            memory = ACCELERATORS[gpu].memory_gb * GIB
            usual = FRAGMENTS * held.bytes + CUDA
            found.append(Need(role, gpu, of_one.bytes, held.bytes, usual, memory, held.of, of_one.of))
            processes = accelerator(config, role)[1] if config.file.parallel.parallelism == "fsdp" else 1
            host = 4.0 * size.parameters * processes  # the model is made in each process's memory, then moved
            saved = workload.checkpoint_bytes(config, size)
            usual = host + saved + 3 * TRAINER_BYTES * processes
            found.append(Need(role, "", host, host, usual, has, "the model as it is made, a checkpoint's copy, torch"))
        else:
            saved = workload.checkpoint_bytes(config, size) if role == "master" and not config.servers else 0
            usual = FRAGMENTS * held.bytes + saved + TRAINER_BYTES
            found.append(Need(role, "", of_one.bytes, held.bytes, usual, has, held.of, of_one.of))
    return found


def _places(config: StackConfig) -> list[tuple[Role, str, float]]:
    """Role, GPU and bytes of the machine's own memory, which is 0 where nobody knows: on this machine."""
    if config.google:
        return [(r, accelerator(config, r)[0], machine_type(config, r).memory_gb * GIB) for r in counts(config)]
    roles: dict[Role, int] = {"master": 1, "worker": config.workers, "ps": config.servers}
    return [(role, "", 0.0) for role, count in roles.items() if count]


def _trainer(config: StackConfig, size: geometry.Dimensions, gpu: str, rows: int | None = None) -> _Held:
    hyper = config.file.training_input.hyperparameters
    adamw = hyper.optimizer == "adamw"
    half = half_precision(gpu, hyper.precision)
    parameters = size.parameters
    copies = 2.0 * parameters if half else 0.0  # autocast's, of the weights
    words = "parameters, gradients"
    if config.servers:  # they hold the optimizer's state
        fixed = 8.0 * parameters + copies
        if config.file.parallel.synchronization == "local":
            fixed += 8.0 * parameters
    elif config.file.parallel.parallelism == "fsdp":
        parts = max(1, accelerator(config, "master")[1]) if config.google else 1
        table = (size.vocabulary + size.positions) * size.width * (2 if half else 4)
        fixed = max(4.0 * parameters, (16.0 if adamw else 8.0) * parameters / parts + table)
        words = f"1/{parts} of parameters, gradients and optimizer's state, gathered embeddings"
    else:
        trained = workload.trained(config, size)
        fixed = 4.0 * parameters + (12.0 if adamw else 4.0) * trained + copies
        words += ", optimizer's state" if adamw else ""
    share = geometry.share(hyper, workload.trainers(config, accelerator(config, "master")[1] if config.google else 1))
    tokens = (rows or share.rows) * share.length
    kept = (KEPT_HALF if half else KEPT) * (COMPILED if hyper.compile else 1.0)
    activations = tokens * size.layers * size.width * kept
    logits = min(geometry.CHUNK, tokens) * size.vocabulary * (LOGITS_HALF if half else LOGITS)
    of = f"{fixed / 1e9:.2g} GB {words}; {activations / 1e9:.2g} GB activations; {logits / 1e9:.2g} GB logits"
    return _Held(fixed + activations + logits, of)


def _server(config: StackConfig, parameters: int, has: float) -> Need:
    a_parameter = SERVERS_BYTES_PER_PARAMETER[config.file.parallel.synchronization]
    least = 12.0 if config.file.training_input.hyperparameters.optimizer == "adamw" else 8.0  # and what is on its way
    usual = SERVER_BYTES + a_parameter * parameters / config.servers
    of = f"{a_parameter} bytes a parameter, shared by {config.servers} (measured: docs/performance.md)"
    fixed = least * parameters / config.servers
    return Need("ps", "", fixed, fixed, usual, has, of)


def memory_problems(config: StackConfig) -> list[str]:
    """What cannot fit, one line each, without the project's name; after everything else about the stack is right."""
    problems: dict[str, str] = {}
    for need in needs(config):
        if not need.has or need.least <= need.has:
            continue
        key, machine = f"trainingInput.{TYPE_KEYS[need.role]}", machine_type(config, need.role)
        model = config.file.model.name
        place = f"a {need.gpu} of {machine.name}" if need.gpu else machine.name
        if need.fixed > need.has:
            problems.setdefault(
                key,
                f"{key}: {place} has {need.has / 1e9:.0f} GB, and {model} needs at least {need.fixed / 1e9:.0f} there"
                f" ({need.of_one or need.of}); {_remedy(config, need)}",
            )
            continue
        key, rows = "trainingInput.hyperparameters.microBatchSize", fitting_rows(config) or 1
        hyper = config.file.training_input.hyperparameters
        found = "missing" if hyper.micro_batch_size is None else f"found {hyper.micro_batch_size}"
        problems.setdefault(
            key,
            f"{key}: {found}, and so many sequences of {hyper.sequence_length} tokens at a time take at least"
            f" {need.least / 1e9:.0f} GB of {place}, which has {need.has / 1e9:.0f} ({need.of}); use {rows}",
        )
    return list(problems.values())


def fitting_rows(config: StackConfig) -> int | None:
    """The most sequences of a micro-batch, halved from what it would be, that fit as usual; None if not even one."""
    training = config.file.training_input
    number = fleet.accelerator(config, "master")[1] if config.google else 1
    rows = geometry.share(training.hyperparameters, workload.trainers(config, number)).rows
    while rows:
        hyper = training.hyperparameters.model_copy(update={"micro_batch_size": rows})
        file = config.file.model_copy(update={"training_input": training.model_copy(update={"hyperparameters": hyper})})
        if all(need.usual <= need.has for need in needs(replace(config, file=file)) if need.has):
            return rows
        rows //= 2
    return None


def _remedy(config: StackConfig, need: Need) -> str:
    if need.role == "ps":
        return "use a machine with more memory, or a higher trainingInput.parameterServerCount"
    if need.gpu:
        larger = [a for a in ACCELERATORS.values() if a.memory_gb * GIB > 1.2 * need.fixed]
        named = next((m.name for a in larger for m in MACHINE_TYPES.values() if m.accelerator == a.name), "")
        of = f", for example {named}" if named else ""
        return f"use a GPU with more{of}, or parallel.parallelism: fsdp on a machine with several"
    fitting = [m for m in MACHINE_TYPES.values() if m.family == "n1" and m.memory_gb * GIB > 1.2 * need.fixed]
    smallest = min(fitting, key=lambda m: m.memory_gb, default=None)
    return f"use {smallest.name} or larger" if smallest else "use a smaller model"


# Of memory, whatever the model: measured.
TRAINER_BYTES = 900_000_000
SERVER_BYTES = 620_000_000
SERVERS_BYTES_PER_PARAMETER = {"step": 28, "local": 44}  # of all parameter servers together
