"""The machines that a stack file asks for: types, counts, GPUs, zones."""

from infra.fleet.catalog import MACHINE_TYPES, MachineType, known_zones
from infra.stack.config import StackConfig
from infra.stack.keys import TIER_ACCELERATOR, Accelerator
from trainer.contract.spec import Role


def counts(config: StackConfig) -> dict[Role, int]:
    """Machines of each role, those with none left out."""
    all_of_them: dict[Role, int] = {"master": 1, "worker": config.workers, "ps": config.servers}
    return {role: count for role, count in all_of_them.items() if count}


def machine_type(config: StackConfig, role: Role) -> MachineType:
    """The machine type of a role, after stack_problems() found nothing."""
    name = config.file.training_input.machine_types()[role]
    return MACHINE_TYPES[str(name)]


def accelerator(config: StackConfig, role: Role) -> tuple[str, int]:
    """Model and number of the GPUs of a machine of that role, built in or attached; ("", 0) for none."""
    machine = MACHINE_TYPES.get(str(config.file.training_input.machine_types()[role]))
    if machine is not None and machine.accelerators:
        return machine.accelerator, machine.accelerators
    wanted = attached(config)
    if wanted is None or role == "ps":
        return "", 0
    return wanted.type, wanted.count


def zones(config: StackConfig) -> list[str]:
    """Where the run may live; each launch takes the next. Empty if no zone has all its machines."""
    if config.file.machines.zones:
        return config.file.machines.zones
    possible: list[str] | None = None
    for role in counts(config):
        here = known_zones(config.region, accelerator(config, role)[0])
        if here is not None:
            possible = here if possible is None else [zone for zone in possible if zone in here]
    return possible or []


def attached(config: StackConfig) -> Accelerator | None:
    tier = TIER_ACCELERATOR.get(config.file.training_input.scale_tier)
    return config.file.machines.accelerator or (Accelerator(type=tier) if tier else None)


def is_spot(config: StackConfig, role: Role) -> bool:
    return config.file.machines.spot and role == "worker"
