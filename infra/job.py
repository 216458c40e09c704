"""Declare the run of a stack: StackConfig -> JobSpec. Like infra/stack it only reads, and needs no Pulumi CLI."""

from typing import Any

from infra.checks.host import disk_problem, host_problems
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.inputs.resolve import Inputs, resolve
from infra.stack.config import PROJECT, ConfigError, StackConfig
from trainer.contract import identity, spec


def job_spec(config: StackConfig, fleet: Fleet | None = None) -> spec.JobSpec:
    """Return the run that a stack declares; arguments and errors are those of declare()."""
    return declare(config, fleet or resolve_fleet(config))[1]


def declare(config: StackConfig, fleet: Fleet) -> tuple[Inputs, spec.JobSpec]:
    """Return what the run of a stack starts from, and the run itself.

    Args:
        config: a stack that load() has checked.
        fleet: its machines.

    Raises:
        ConfigError: the inputs or this machine cannot carry the run out; one line for each problem.
        InputError: the text's lock file cannot be used.
    """
    inputs = resolve(config, on_host=() if config.google else host_problems(config, fleet))
    file, training = config.file, config.file.training_input
    data = file.data.model_copy(update=inputs.data)

    # The run's name covers the checkpoint's content; its machines read it from an address or a folder.
    start = inputs.checkpoint
    by_content = file.model.model_copy(update={"initialize": start.content() if start else None})
    code = file.image.rpartition("@")[2] if file.image else identity.code_hash(config.root / "trainer")
    parameters = training.hyperparameters
    run = identity.run_id(by_content, data, inputs.fingerprint, parameters, file.parallel, code, file.sweep)
    if not config.google and (problem := disk_problem(config, run)):
        raise ConfigError([f"{PROJECT}:{problem}"])

    cluster = _local_cluster(fleet) if fleet.local else _google_cluster(fleet)
    # Leave counts of zero out: a preview lists every key of a changed object that the program passed.
    counts = {"min_workers": training.min_workers, "parameter_servers": config.servers}
    cluster |= {name: count for name, count in counts.items() if count}
    return inputs, spec.JobSpec(
        run=run,
        launch=file.launch,
        model=file.model.model_copy(update={"initialize": start.where if start else None}),
        data=data,
        fingerprint=inputs.fingerprint,
        code=code,
        hyperparameters=parameters,
        evaluation=file.evaluation,
        checkpoints=file.checkpoints,
        parallel=file.parallel,
        cluster=spec.Cluster(workers=config.workers, **cluster),
        sweep=file.sweep,
        **({"hardware": _hardware(fleet)} if not fleet.local else {}),
    )


def _google_cluster(fleet: Fleet) -> dict[str, Any]:
    """Return the fields of spec.Cluster that machine types of Google Cloud decide."""
    trainers = [machines.machine for machines in fleet.trainer_roles]
    # Hyperthreads do not speed matrix products up: one thread for each core. All trainers of a run use as many.
    cores = min(machine.vcpus for machine in trainers) // 2
    cluster: dict[str, Any] = {"threads": max(1, cores // fleet.processes_per_trainer), **_processes(fleet)}
    if fleet.servers is not None:  # only the cost model of parameter servers asks how fast the network is
        cluster["trainer_gbps"] = min(machine.gbps for machine in trainers)
        cluster["server_gbps"] = fleet.servers.machine.gbps
    return cluster


def _local_cluster(fleet: Fleet) -> dict[str, Any]:
    """Return the fields of spec.Cluster that this machine decides."""
    # With more threads than cores, trainers are 20 times slower, and here they share the cores. Parameter servers get
    # none of them: they compute, with one thread, while trainers wait.
    cores = fleet.master.machine.vcpus
    return {"threads": max(1, cores // fleet.trainers), **_processes(fleet)}


def _processes(fleet: Fleet) -> dict[str, Any]:
    """Return the processes and GPUs of each trainer machine. One process and no GPU are left out, as above."""
    counts: dict[str, Any] = {}
    if fleet.processes_per_trainer > 1:
        counts["processes"] = fleet.processes_per_trainer
    if fleet.gpus_per_trainer:
        counts["gpus"] = fleet.gpus_per_trainer
    return counts


def _hardware(fleet: Fleet) -> dict[spec.Role, spec.Hardware]:
    """Return each role's machines on Google Cloud, with the price of one."""
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


def division(config: StackConfig, fleet: Fleet) -> str | None:
    """Return how trainers share a batch that does not divide evenly, which is no error; None if it does."""
    batch, shares = config.file.training_input.hyperparameters.batch_size, fleet.trainers
    least, rest = divmod(batch, shares)
    if not rest:
        return None
    among = f"{shares} {'trainers' if fleet.processes_per_trainer == 1 else 'processes'}"
    return f"batch {batch} over {among}: {least} or {least + 1} each, {batch / shares / (least + 1):.0%} busy"
