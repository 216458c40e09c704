"""Report models that do not fit into memory, each with the cheapest change that makes them fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from infra.fleet import prices
from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES, machine_label
from infra.fleet.fleet import Fleet, RoleMachines, resolve_fleet
from infra.sizing import workload
from infra.sizing.memory import needs, share
from infra.stack.config import StackConfig
from infra.stack.keys import Accelerator
from trainer.contract import geometry
from trainer.contract.settings import TYPE_KEYS

ROWS_KEY = "trainingInput.hyperparameters.microBatchSize"


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
        name, model = machines[need.role].name, config.file.model.name
        place = f"a {need.gpu} of {name}" if need.gpu else name
        hyper = config.file.training_input.hyperparameters
        if need.fixed <= need.has:
            key, rows = ROWS_KEY, share(config, fleet, size).rows
            given = "missing" if hyper.micro_batch_size is None else f"found {hyper.micro_batch_size}"
            problem = (
                f"{given}, and {rows} sequences of {hyper.sequence_length} tokens at a time take at least"
                f" {need.least / 1e9:.0f} GB of {place}, which has {need.has / 1e9:.0f} ({need.of})"
            )
        else:
            key = f"trainingInput.{TYPE_KEYS[need.role]}"
            problem = (
                f"{place} has {need.has / 1e9:.0f} GB, and {model} needs at least {need.fixed / 1e9:.0f} there"
                f" ({need.of_one or need.of})"
            )
        if need.role == "ps":
            remedy = "use a machine with more memory, or a higher trainingInput.parameterServerCount"
        else:
            remedy = cheapest_change(config, fleet, size)
        problems.setdefault(key, f"{key}: {problem}; {remedy}")
    return list(problems.values())


def cheapest_change(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> str:
    """Return in words the cheapest change of a stack with which its trainers fit, for the end of an error.

    In order of what they cost: a smaller micro-batch, activations that are computed again, parameters that are shared
    by the GPUs of a machine, and other machines.
    """
    for words, changed in (*same_machines(config, fleet, size), *_other_machines(config, fleet)):
        if _trainers_fit(changed, resolve_fleet(changed), size):
            return words
    return "no machine of Google's is large enough; use a smaller model"


def fitting_micro_batch(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> int | None:
    """Return the most sequences of a trainer's micro-batch that fit, at most the stack's own; None if not even one."""
    low, high = 0, share(config, fleet, size).rows
    while low < high:
        middle = (low + high + 1) // 2
        if _trainers_fit(with_hyperparameters(config, micro_batch_size=middle), fleet, size):
            low = middle
        else:
            high = middle - 1
    return low or None


def with_hyperparameters(config: StackConfig, **update: Any) -> StackConfig:
    """Return a stack with other hyperparameters."""
    training = config.file.training_input
    hyper = training.hyperparameters.model_copy(update=update)
    return _with(config, training_input=training.model_copy(update={"hyperparameters": hyper}))


def with_sharing(config: StackConfig) -> StackConfig:
    """Return a stack whose machines share the model among their processes."""
    return _with(config, parallel=config.file.parallel.model_copy(update={"parallelism": "fsdp"}))


def _with(config: StackConfig, **update: Any) -> StackConfig:
    return replace(config, file=config.file.model_copy(update=update))


Change = tuple[str, StackConfig]


def same_machines(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> Iterator[Change]:
    """Yield changes of what the same machines do, the fastest first: each in words for an error, and the stack."""
    rows, given = fitting_micro_batch(config, fleet, size), config.file.training_input.hyperparameters
    if rows is not None:
        yield f"use {rows}", with_hyperparameters(config, micro_batch_size=rows)
    # The micro-batch is then chosen anew: one that was given may be what does not fit.
    free = with_hyperparameters(config, micro_batch_size=None) if fleet.gpus_per_trainer else config
    without = "" if free is config or given.micro_batch_size is None else " and no microBatchSize"
    for words, changed in _modes(free, fleet.processes_per_trainer):
        if words:
            yield f"use {words}{without}", changed


def _modes(config: StackConfig, processes: int) -> Iterator[Change]:
    """Yield ways to hold less on the same machines, the fastest first."""
    hyper, parallel = config.file.training_input.hyperparameters, config.file.parallel
    modes = ("none", "attention", "block")
    recomputing = modes[modes.index(hyper.recompute) :]
    for sharing in (False, True) if parallel.parallelism != "fsdp" and processes > 1 else (False,):
        for recompute in recomputing:
            words = ["parallel.parallelism: fsdp"] if sharing else []
            words += [f"hyperparameters.recompute: {recompute}"] if recompute != hyper.recompute else []
            changed = with_hyperparameters(config, recompute=recompute)
            yield " with ".join(words), with_sharing(changed) if sharing else changed


def _other_machines(config: StackConfig, fleet: Fleet) -> Iterator[Change]:
    """Yield changes of the trainers' machine type, the cheapest machine first, each with the difference in price."""
    own, attached = fleet.master, None
    if own.attached:
        attached = Accelerator(type=own.accelerator, count=own.accelerators)
    price = _price(config, own, own.machine.name, attached)
    choices = []
    for name, gpus in _machines(own):
        cost = _price(config, own, name, gpus)
        if cost.exact:
            choices.append((cost.usd, name, gpus))
    keys = " and ".join(f"trainingInput.{TYPE_KEYS[machines.role]}" for machines in fleet.trainer_roles)
    for usd, name, gpus in sorted(choices, key=lambda choice: choice[:2]):
        label = machine_label(name, gpus.type, gpus.count) if gpus else name
        dearer = f"{usd:.2f} USD an hour each"
        if price.exact:
            dearer = f"{usd - price.usd:+.2f} USD an hour each"
        without = " without machines.accelerator" if attached and gpus is None else ""
        changed = with_hyperparameters(_with_trainers(config, name, gpus), micro_batch_size=None)
        built_in = MACHINE_TYPES[name].accelerators
        for words, mode in _modes(changed, built_in or (gpus.count if gpus else fleet.processes_per_trainer)):
            yield f"use {label} for {keys}{without} ({dearer}){' with ' if words else ''}{words}", mode


def _machines(own: RoleMachines) -> Iterator[tuple[str, Accelerator | None]]:
    """Yield machine types that compute like ours, on GPUs or on CPUs, with the GPUs that are attached to them."""
    for machine in MACHINE_TYPES.values():
        if "on demand" not in machine.ways:
            continue
        if bool(machine.accelerators) == bool(own.accelerators) and machine.name != own.machine.name:
            yield machine.name, None
        elif own.attached and machine.takes_gpus:
            for count, (vcpus, gigabytes) in ACCELERATORS[own.accelerator].most.items():
                if machine.vcpus <= vcpus and machine.memory_gb <= gigabytes:
                    yield machine.name, Accelerator(type=own.accelerator, count=count)


def _price(config: StackConfig, own: RoleMachines, name: str, gpus: Accelerator | None) -> prices.Cost:
    """Return an hour of one machine on demand."""
    kind, count = (gpus.type, gpus.count) if gpus else ("", 0)
    return prices.machine_cost(config.region, name, False, kind, count, disk_gb=own.disk_gb)


def _with_trainers(config: StackConfig, name: str, gpus: Accelerator | None) -> StackConfig:
    """Return a stack with another machine type of its master and workers."""
    training, types = config.file.training_input, config.file.training_input.machine_types()
    workers, servers = training.counts()
    changed = training.model_copy(
        update={
            "scale_tier": "CUSTOM",
            "master_type": name,
            "worker_type": name if workers else None,
            "worker_count": workers,
            "parameter_server_type": types["ps"],
            "parameter_server_count": servers,
        }
    )
    machines = config.file.machines.model_copy(update={"accelerator": gpus})
    return _with(config, training_input=changed, machines=machines)


def _trainers_fit(config: StackConfig, fleet: Fleet, size: geometry.Dimensions) -> bool:
    """Return whether all trainers have enough memory as usual, and the batch has a row for each of their processes."""
    if fleet.trainers > config.file.training_input.hyperparameters.batch_size:
        return False
    return all(need.usual <= need.has for need in needs(config, fleet, size) if need.role != "ps" and need.has)
