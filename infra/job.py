"""StackConfig -> JobSpec: the run that a stack declares, with what its machines have and where its data is.

Like infra/config.py it only reads, and needs no Pulumi CLI.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import start
from infra.config import PROJECT, ConfigError, StackConfig
from infra.hardware import host_cores
from infra.preflight import disk_problem, gpus, host_problems, text_problems
from infra.stack_file import data_format
from trainer import spec


@dataclass(frozen=True)
class Placed:
    """Where a run finds what it starts from, and what its machines have."""

    fingerprint: str  # of the text
    data: dict[str, Any]  # fields of spec.Data that differ from the stack file's
    initialize: str | None  # as the machines reach it
    content: str | None  # the same, named by its content
    cluster: dict[str, Any]  # fields of spec.Cluster that the machines decide


def job_spec(config: StackConfig, cores: int | None = None) -> spec.JobSpec:
    """The run that a stack declares. Raises ConfigError if the platform or the text cannot carry it out."""
    if config.google:
        from infra.google.inputs import input_problems, place

        problems = input_problems(config)
    else:
        problems = [*text_problems(config), *start.problems(config), *host_problems(config)]
    if problems:
        raise ConfigError([f"{PROJECT}:{problem}" for problem in problems])
    file, training = config.file, config.file.training_input
    placed = place(config) if config.google else _here(config, cores or host_cores())
    data = file.data.model_copy(update=placed.data)
    model = file.model.model_copy(update={"initialize": placed.initialize})
    begun = file.model.model_copy(update={"initialize": placed.content})
    code = file.image.rpartition("@")[2] if file.image else spec.code_hash(config.root / "trainer")
    run = spec.run_id(begun, data, placed.fingerprint, training.hyperparameters, file.parallel, code, file.sweep)
    if not config.google and (problem := disk_problem(config, run)):
        raise ConfigError([f"{PROJECT}:{problem}"])
    # Left out where they are none: a preview lists all of a changed object that was given.
    few = {"min_workers": training.min_workers, "parameter_servers": config.servers}
    cluster = placed.cluster | {name: count for name, count in few.items() if count}
    return spec.JobSpec(
        run=run,
        launch=file.launch,
        model=model,
        data=data,
        fingerprint=placed.fingerprint,
        code=code,
        hyperparameters=training.hyperparameters,
        evaluation=file.evaluation,
        checkpoints=file.checkpoints,
        parallel=file.parallel,
        cluster=spec.Cluster(workers=config.workers, **cluster),
        sweep=file.sweep,
        **({"hardware": _hardware(config)} if config.google else {}),
    )


def _hardware(config: StackConfig) -> dict[spec.Role, spec.Hardware]:
    from infra.google.rules import accelerator, counts, machine_type
    from infra.prices import is_spot, role_costs

    found: dict[spec.Role, spec.Hardware] = {}
    costs = role_costs(config)
    for role, count in counts(config).items():
        model, number = accelerator(config, role)
        cost = costs[role]
        found[role] = spec.Hardware(
            machine_type=machine_type(config, role).name,
            accelerator=model or None,
            accelerators=number,
            spot=is_spot(config, role),
            usd_per_hour=round(cost.usd / count, 4) if cost.exact else None,
        )
    return found


def _here(config: StackConfig, cores: int) -> Placed:
    """On this machine: the text is copied into the bucket, folders are used where they are."""
    file = config.file
    fingerprint = spec.fingerprint(config.text)
    data: dict[str, Any] = {"path": f"data/{fingerprint}/{config.text.name}", "format": data_format(file.data)}
    if file.data.vocabulary_path is not None:
        data["vocabulary_path"] = _located(config.root, file.data.vocabulary_path)
    where = content = None
    if (found := start.locate(config)) is not None:
        where, content = found.where, found.content
        if file.data.tokenizer == "checkpoint":
            data["vocabulary_path"] = where
    processes = gpus() if file.parallel.parallelism == "fsdp" else 1
    # With more threads than cores, trainers are 20 times slower, and here they share the cores. Parameter servers get
    # none of them: they compute, with one thread, while trainers wait.
    cluster = {"threads": max(1, cores // ((1 + config.workers) * processes))}
    return Placed(fingerprint, data, where, content, cluster | ({"processes": processes} if processes > 1 else {}))


def _located(root: Path, named: str) -> str:
    """Where the folder lies that a stack file names; hub ids and gs:// as they are."""
    folder = root / Path(named).expanduser()
    return str(folder.resolve()) if folder.is_dir() else named


def division(config: StackConfig) -> str | None:
    """How the batch falls on the trainers, if it does not divide evenly: no error, but good to know."""
    batch, trainers = config.file.training_input.hyperparameters.batch_size, 1 + config.workers
    least, rest = divmod(batch, trainers)
    if not rest:
        return None
    busy = batch / trainers / (least + 1)
    return f"batch {batch} over {trainers} trainers: {least} or {least + 1} each, {busy:.0%} busy"
