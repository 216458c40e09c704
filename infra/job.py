"""StackConfig -> JobSpec: the run that a stack declares, with what its machines have and where its data is.

Like infra/stack/config.py it only reads, and needs no Pulumi CLI.
"""

from infra.checks.host import disk_problem, host_problems
from infra.fleet.fleet import accelerator, counts, is_spot, machine_type
from infra.fleet.host import host_cores
from infra.fleet.prices import role_costs
from infra.inputs import checkpoint
from infra.inputs import google as google_inputs
from infra.inputs import local as local_inputs
from infra.inputs.text import text_problems
from infra.stack.config import PROJECT, ConfigError, StackConfig
from trainer.contract import identity, spec


def job_spec(config: StackConfig, cores: int | None = None) -> spec.JobSpec:
    """The run that a stack declares. Raises ConfigError if the platform or the text cannot carry it out."""
    if config.google:
        problems = google_inputs.input_problems(config)
    else:
        problems = [*text_problems(config), *checkpoint.problems(config), *host_problems(config)]
    if problems:
        raise ConfigError([f"{PROJECT}:{problem}" for problem in problems])
    file, training = config.file, config.file.training_input
    placed = google_inputs.place(config) if config.google else local_inputs.place(config, cores or host_cores())
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
        **({"hardware": _hardware(config)} if config.google else {}),
    )


def _hardware(config: StackConfig) -> dict[spec.Role, spec.Hardware]:
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


def division(config: StackConfig) -> str | None:
    """How the batch falls on the trainers, if it does not divide evenly: no error, but good to know."""
    batch, trainers = config.file.training_input.hyperparameters.batch_size, 1 + config.workers
    least, rest = divmod(batch, trainers)
    if not rest:
        return None
    busy = batch / trainers / (least + 1)
    return f"batch {batch} over {trainers} trainers: {least} or {least + 1} each, {busy:.0%} busy"
