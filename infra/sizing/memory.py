"""Predict what each role holds in memory, before anyone pays; trainer/contract/memory.py counts a trainer's tensors.

`least` counts the tensors that must be in memory at the same time; only a machine with less than that is refused.
`usual` adds libraries, allocators and the copies that checkpoints take. Its figures are ours, but for parameter servers
and processes, which were measured.
"""

from dataclasses import dataclass

from infra.fleet.catalog import ACCELERATORS
from infra.fleet.fleet import Fleet, RoleMachines
from infra.sizing import workload
from infra.sizing.speed import half_precision
from infra.stack.config import StackConfig
from trainer.contract import geometry
from trainer.contract import memory as trainer_memory
from trainer.contract.memory import TrainerProcess
from trainer.contract.spec import Role

GIB = 2**30
# GiB of a GPU that torch reports, as its messages about memory quote them; of others it is 98.5 % of the nominal size.
REPORTED_GIB = {"nvidia-tesla-t4": 14.6, "nvidia-l4": 22.0}
SERVER_BYTES = 620_000_000  # of a process, whatever the model; measured
SERVERS_BYTES_PER_PARAMETER = {"step": 28, "local": 44}  # of all parameter servers together


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one machine of a role holds in each of its GPUs, or in its own memory.

    gpu: the model of the GPU; empty for the machine's own memory.
    fixed: the least with micro-batches of one sequence. least, usual: see above. has: 0 if nobody knows.
    of, of_one: the parts of `least` and `fixed`, in words.
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


def gpu_bytes(gpu: str) -> float:
    """Return the memory of a GPU model of Google's that a process can use."""
    return REPORTED_GIB.get(gpu, 0.985 * ACCELERATORS[gpu].memory_gb) * GIB


def process_of(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, gpu: str) -> TrainerProcess:
    """Return a process of a trainer whose GPU is of this model; "" computes on its CPU."""
    hyper = config.file.training_input.hyperparameters
    return TrainerProcess(
        size=size,
        hyper=hyper,
        parallel=config.file.parallel,
        trained=workload.trained(config, size),
        processes=fleet.processes_per_trainer,
        half=half_precision(gpu, hyper.precision),
        servers=fleet.servers is not None,
        gpu=bool(gpu),
    )


def share(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> geometry.Share:
    """Return the busiest process's part of a step, with the micro-batch that trainers choose by their memory."""
    fitting = []
    for machines in fleet.trainer_roles:
        gpu, machine_bytes = machines.accelerator, machines.machine.memory_gb * GIB
        has = gpu_bytes(gpu) if gpu else machine_bytes / fleet.processes_per_trainer
        fitting.append(trainer_memory.fitting_rows(process_of(config, fleet, size, gpu), has))
    return geometry.share(config.file.training_input.hyperparameters, fleet.trainers, max(1, min(fitting)))


def needs(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> list[MemoryNeed]:
    """Return what the machines of each role hold, in their GPUs first."""
    rows, all_needs = share(config, fleet, size).rows, []
    for machines in fleet.roles:
        if machines.role == "ps":
            all_needs.append(_server(config, machines, workload.trained(config, size)))
        elif machines.accelerator:
            all_needs.append(_gpu(process_of(config, fleet, size, machines.accelerator), machines, rows))
            all_needs.append(_host(config, fleet, machines, size))
        else:
            all_needs.append(_cpu(config, fleet, machines, process_of(config, fleet, size, ""), rows))
    return all_needs


def fits(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> bool:
    """Return whether all that is usual fits, as far as it is known."""
    return all(need.usual <= need.has for need in needs(config, fleet, size) if need.has)


def _gpu(process: TrainerProcess, machines: RoleMachines, rows: int) -> MemoryNeed:
    held, one = trainer_memory.held(process, rows), trainer_memory.held(process, 1)
    return MemoryNeed(
        role=machines.role,
        gpu=machines.accelerator,
        fixed=one.total,
        least=held.total,
        usual=trainer_memory.usual_bytes(process, rows),
        has=gpu_bytes(machines.accelerator),
        of=_words(process, held, rows),
        of_one=_words(process, one, 1),
    )


def _host(config: StackConfig, fleet: Fleet, machines: RoleMachines, size: geometry.Dimensions) -> MemoryNeed:
    """Return what a machine with GPUs holds beside them: each process makes the model there, then moves it."""
    processes = fleet.processes_per_trainer
    host = 4.0 * size.parameters * processes
    usual = host + workload.checkpoint_bytes(config, size) + 3 * trainer_memory.TRAINER_BYTES * processes
    contents = "the model as it is made, a checkpoint's copy, torch"
    return MemoryNeed(machines.role, "", host, host, usual, machines.machine.memory_gb * GIB, contents)


def _cpu(config: StackConfig, fleet: Fleet, machines: RoleMachines, process: TrainerProcess, rows: int) -> MemoryNeed:
    """Return what a machine holds that computes on its CPU, with all its processes."""
    count = fleet.processes_per_trainer
    held, one = trainer_memory.held(process, rows), trainer_memory.held(process, 1)
    return MemoryNeed(
        role=machines.role,
        gpu="",
        fixed=count * one.total,
        least=count * held.total,
        usual=count * trainer_memory.usual_bytes(process, rows),
        has=machines.machine.memory_gb * GIB,
        of=_words(process, held, rows),
        of_one=_words(process, one, 1),
    )


def _words(process: TrainerProcess, held: trainer_memory.Held, rows: int) -> str:
    """Return the parts of what a process holds, in words."""
    state = "parameters, gradients"
    if not process.servers and process.hyper.optimizer == "adamw":
        state += ", optimizer's state"
        state += f" of 1/{process.processes}" if process.processes > 1 and not process.sharded else ""
    if process.sharded:
        state = f"1/{process.processes} of {state}"
    copies = "gathered blocks" if process.sharded else "copies of weights"
    parts = [(held.state, state), (held.copies, copies)] if held.copies else [(held.state, state)]
    sequences = f"{rows} sequence{'' if rows == 1 else 's'}"
    parts += [(held.activations, f"activations of {sequences}"), (held.head, "logits and their gradient")]
    return "; ".join(f"{amount / 1e9:.2g} GB {what}" for amount, what in parts)


def _server(config: StackConfig, machines: RoleMachines, parameters: int) -> MemoryNeed:
    per_parameter = SERVERS_BYTES_PER_PARAMETER[config.file.parallel.synchronization]
    # The parameter, the moments and what is on its way.
    least = 12.0 if config.file.training_input.hyperparameters.optimizer == "adamw" else 8.0
    fixed = least * parameters / machines.count
    usual = SERVER_BYTES + per_parameter * parameters / machines.count
    of = f"{per_parameter} bytes a parameter, shared by {machines.count} (measured: docs/performance.md)"
    return MemoryNeed("ps", "", fixed, fixed, usual, machines.machine.memory_gb * GIB, of)
