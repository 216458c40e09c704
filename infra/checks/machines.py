"""Find what Google would refuse about machine types and GPUs: names, what is attached to what, how they are given out.

Nothing here asks Google.
"""

import difflib
from collections.abc import Mapping

from infra.fleet.catalog import ACCELERATORS, LEAST_COMPUTE_CAPABILITY, MACHINE_TYPES, TOO_OLD, MachineType, Way
from infra.fleet.fleet import Fleet, RoleMachines
from infra.stack.config import StackConfig
from infra.stack.keys import Accelerator
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role

CPU_FAMILIES = list(dict.fromkeys(m.family for m in MACHINE_TYPES.values() if not m.accelerators))
GPU_FAMILIES = sorted({machine.family for machine in MACHINE_TYPES.values() if machine.accelerators})
ARM = ("a4x", "c4a", "n4a", "t2a")  # families with Arm CPUs
ON_DEMAND = "a3-highgpu-8g"  # the machine with newest GPUs that Google gives out on demand


def machine_problems(named: Mapping[Role, str | None], attached: Accelerator | None) -> list[str]:
    """Return what is wrong with machine types and attached GPUs.

    Args:
        named: the machine type that the stack file names for each role with machines. It may be unknown.
        attached: the GPUs that the stack file attaches to master and workers.
    """
    problems: list[str] = []
    for role, name in named.items():
        key = f"trainingInput.{TYPE_KEYS[role]}"
        if not name:
            problems.append(f"{key}: missing; give a machine type, for example n1-highmem-16")
        elif name not in MACHINE_TYPES:
            problems.append(f"{key}: {_unknown_machine(name)}")
        elif attached is not None and role != "ps":
            problems += _accelerator_problems(key, MACHINE_TYPES[name], attached)
    return list(dict.fromkeys(problems))


def way_problems(config: StackConfig, named: Mapping[Role, str | None]) -> list[str]:
    """Return machine types that Google does not give out in the way that the stack file asks for."""
    problems = []
    for role, name in named.items():
        machine = MACHINE_TYPES.get(str(name))
        way = _way(config, role)
        if machine is None or way in machine.ways or (way == "flex-start" and not machine.accelerators):
            continue
        *others, last = machine.ways
        problems.append(
            f"trainingInput.{TYPE_KEYS[role]}: {name} is given out as {', '.join(others)} or {last}, not {way};"
            f" set machines.flexStart: true, or use {ON_DEMAND}"
        )
    return problems


def cluster_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return what is wrong with several machines together: unlike GPUs, networks that are not built, placement."""
    problems = _precision_problems(config, fleet)
    master, *workers = fleet.trainer_roles
    for machines in workers:
        if (machines.accelerator, machines.accelerators) != (master.accelerator, master.accelerators):
            problems.append(
                f"trainingInput.{TYPE_KEYS[machines.role]}: {machines.machine.name} has {_gpus(machines)}, and the"
                f" master, {master.machine.name}, has {_gpus(master)}; trainers share each step evenly, so give both"
                " the same GPUs"
            )
    direct = [machines for machines in fleet.roles if machines.machine.links == "RDMA"]
    if sum(machines.count for machines in direct) > 1:
        names = " and ".join(dict.fromkeys(machines.machine.name for machines in direct))
        problems.append(
            f"trainingInput.{TYPE_KEYS[direct[-1].role]}: several {names} talk over a network for RDMA, which is not"
            " built here yet; use one such machine alone (workerCount 0), or a3-megagpu-8g"
        )
    if not config.file.machines.compact_placement:
        return problems
    key = "machines.compactPlacement"
    if fleet.size < 2:
        problems.append(f"{key}: there is one machine; remove it, or add workers")
    apart = dict.fromkeys(machines.machine.name for machines in fleet.roles if not machines.machine.compact)
    if apart:
        problems.append(
            f"{key}: Google places no {' or '.join(apart)} compactly; remove it, or use G2, A2, A3, C3 or N2"
        )
    if config.file.machines.flex_start:
        problems.append(f"{key}: cannot go with machines.flexStart; remove one of them")
    if config.file.machines.reservation is not None:
        problems.append(f"{key}: cannot go with machines.reservation, which has a placement of its own; remove one")
    return problems


def _precision_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return a precision that the master's GPU, or its CPU, does not compute in."""
    precision, gpu = config.file.training_input.hyperparameters.precision, fleet.master.accelerator
    key = f"trainingInput.hyperparameters.precision: found {precision}"
    if precision == "fp16" and not gpu:
        return [f"{key}, which needs a GPU, and {fleet.master.machine.name} has none; use auto or fp32"]
    if precision == "bf16" and gpu and ACCELERATORS[gpu].compute_capability < 8.0:
        return [f"{key}, which a {gpu} emulates slowly; use fp16, fp32 or auto"]
    return []


def _gpus(machines: RoleMachines) -> str:
    """Return the GPUs of one machine in words."""
    return f"{machines.accelerators} x {machines.accelerator}" if machines.accelerators else "no GPUs"


def _way(config: StackConfig, role: Role) -> Way:
    """Return how the machines of a role are asked for."""
    machines = config.file.machines
    if machines.flex_start:
        return "flex-start"
    if machines.spot and role == "worker":
        return "Spot"
    return "reservation" if machines.reservation is not None and role != "ps" else "on demand"


def _accelerator_problems(key: str, machine: MachineType, attached: Accelerator) -> list[str]:
    """Return what is wrong with attaching GPUs to a machine. key: names the machine's type."""
    where = "machines.accelerator"
    if attached.type in TOO_OLD:
        return [
            (
                f"{where}.type: {attached.type} has compute capability {TOO_OLD[attached.type]:g}, and PyTorch for CUDA"
                f" 13 starts at {LEAST_COMPUTE_CAPABILITY:g}; use nvidia-tesla-t4, or a g2 machine without accelerator"
            )
        ]
    if attached.type not in ACCELERATORS:
        names = [model.name for model in ACCELERATORS.values() if model.attachable]
        return [f"{where}.type: unknown accelerator {attached.type!r}; {_close(attached.type, names)}"]
    if machine.accelerators:
        return [f"{where}: {machine.name} has {machine.accelerators} x {machine.accelerator} built in; remove it"]
    model = ACCELERATORS[attached.type]
    if not model.attachable:
        fitting = ", ".join(m.name for m in MACHINE_TYPES.values() if m.accelerator == model.name)
        return [f"{where}.type: {model.name} is built into machines; remove it and use {key}: one of {fitting}"]
    if not machine.takes_gpus:
        return [f"{where}: GPUs can be attached to N1 machines only, not to {machine.name} ({key}); use n1-highmem-8"]
    fits = [n for n, (cpus, gb) in model.most.items() if machine.vcpus <= cpus and machine.memory_gb <= gb]
    if attached.count in fits:
        return []
    fix = f"use count {' or '.join(map(str, fits))}" if fits else "use a smaller machine type"
    return [
        (
            f"{where}.count: {attached.count} x {model.name} cannot be attached to {machine.name}"
            f" ({machine.vcpus} vCPUs, {machine.memory_gb:g} GB; {key}); {fix}"
        )
    ]


def _unknown_machine(name: str) -> str:
    """Say what is wrong with a machine type that is not in the table.

    Suggest a machine type of the same family only: the nearest name of another family may have quite another price.
    """
    family = name.lower().partition("-")[0]
    if family in ARM:
        return f"{name} has Arm CPUs, and the trainer's image is for x86; use a machine of another family"
    if family not in (*CPU_FAMILIES, *GPU_FAMILIES):
        known = f"{', '.join(CPU_FAMILIES)} and, with GPUs built in, {', '.join(GPU_FAMILIES)}".upper()
        known = known.replace("AND, WITH GPUS BUILT IN,", "and, with GPUs built in,")
        return f"unknown machine type {name!r}; known are {known}; for example n1-standard-4 or g2-standard-8"
    siblings = [type_name for type_name in MACHINE_TYPES if type_name.startswith(f"{family}-")]
    close = difflib.get_close_matches(name.lower(), siblings, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"for example {siblings[0]} or {siblings[-1]}"
    return f"unknown machine type {name!r}; {hint}"


def _close(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(choices)}"
