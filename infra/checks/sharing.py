"""Find work that cannot be shared out as a stack file says: a step among the processes of all trainers."""

from infra.fleet.fleet import Fleet
from infra.stack.config import StackConfig
from trainer.contract import search_space


def sharing_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return what is wrong with the processes among which a step is shared, a line each, without the project's name.

    fleet: machines in which nothing else is wrong.
    """
    file, problems = config.file, []
    training, gpus = file.training_input, fleet.gpus_per_trainer
    given = file.parallel.processes
    if gpus and given not in (None, gpus):
        problems.append(
            f"parallel.processes: found {given}, and a trainer has {_count(gpus, 'GPU')} here, each with a process of"
            " its own; remove it"
        )
    if file.parallel.parallelism == "fsdp" and fleet.processes_per_trainer < 2:
        problems.append(_unshared(fleet))
    machines, batch = 1 + config.workers, training.hyperparameters.batch_size
    if file.parallel.wire != "fp32" and machines == 1 and fleet.servers is None:
        problems.append(
            f"parallel.wire: found {file.parallel.wire}, and there is one machine, which sends nothing; remove it, or"
            " add workers"
        )
    if machines <= batch < fleet.trainers:  # fewer rows than machines are found in the file itself
        fix = "fewer workers" if config.workers else "a machine with fewer GPUs" if gpus else "fewer parallel.processes"
        problems.append(
            f"trainingInput.hyperparameters.batchSize: found {batch}, less than the {fleet.trainers} processes of"
            f" {_count(machines, 'trainer')}; use at least {fleet.trainers}, or {fix}"
        )
    elif file.sweep is not None and fleet.processes_per_trainer > 1:
        problems += search_space.problems(file.sweep, training.hyperparameters, fleet.trainers, file.model.positions)
    return problems


def _unshared(fleet: Fleet) -> str:
    """Say that fsdp has nothing to share a model among."""
    key = "parallel.parallelism: fsdp shares a model among the GPUs of a machine"
    if not fleet.gpus_per_trainer:
        return f"{key}, or its processes, and a trainer has one process; use parallel.processes: 2 or more, or replicas"
    if fleet.local:
        return f"{key}, and a trainer has 1 here; use fewer workers, or replicas"
    return (
        f"{key}, and a trainer has 1; use machines.accelerator.count 2 or more, or machine types with several built in,"
        " for example a2-highgpu-2g, or replicas"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
