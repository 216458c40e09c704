"""StackConfig -> JobSpec: the run that a stack declares, with what its machines have and where its data is.

Like infra/stack/config.py it only reads, and needs no Pulumi CLI.
"""

from infra.checks.host import disk_problem, host_problems
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.inputs import checkpoint
from infra.inputs import google as google_inputs
from infra.inputs import local as local_inputs
from infra.inputs.text import text_problems
from infra.stack.config import PROJECT, ConfigError, StackConfig
from trainer.contract import identity, spec


def job_spec(config: StackConfig, fleet: Fleet | None = None) -> spec.JobSpec:
    """Return the run that a stack declares.

    Args:
        config: a stack that load() has checked.
        fleet: its machines; None: resolve them.

    Raises ConfigError if the platform or the text cannot carry the run out.
    """
    fleet = fleet or resolve_fleet(config)
    if config.google:
        problems = google_inputs.input_problems(config)
    else:
        problems = [*text_problems(config), *checkpoint.problems(config), *host_problems(config)]
    if problems:
        raise ConfigError([f"{PROJECT}:{problem}" for problem in problems])
    file, training = config.file, config.file.training_input
    if config.google:
        placed = google_inputs.place(config, fleet)
    else:
        placed = local_inputs.place(config, cores=fleet.master.machine.vcpus)
    data = file.data.model_copy(update=placed.data)
    model = file.model.model_copy(update={"initialize": placed.initialize})
    begun = file.model.model_copy(update={"initialize": placed.content})
    code = file.image.rpartition("@")[2] if file.image else identity.code_hash(config.root / "trainer")
    run = identity.run_id(begun, data, placed.fingerprint, training.hyperparameters, file.parallel, code, file.sweep)
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
        **({"hardware": _hardware(fleet)} if config.google else {}),
    )


def _hardware(fleet: Fleet) -> dict[spec.Role, spec.Hardware]:
    return {
        machines.role: spec.Hardware(
            machine_type=machines.machine.name,
            accelerator=machines.accelerator or None,
            accelerators=machines.accelerators,
            spot=machines.spot,
            usd_per_hour=round(machines.hourly.usd / machines.count, 4) if machines.hourly.exact else None,
        )
        for machines in fleet.roles
    }


def division(config: StackConfig) -> str | None:
    """How the batch falls on the trainers, if it does not divide evenly: no error, but good to know."""
    batch, trainers = config.file.training_input.hyperparameters.batch_size, 1 + config.workers
    least, rest = divmod(batch, trainers)
    if not rest:
        return None
    busy = batch / trainers / (least + 1)
    return f"batch {batch} over {trainers} trainers: {least} or {least + 1} each, {busy:.0%} busy"
