"""Resolve the machines of a run, once, from its stack file: types, counts, GPUs, zones, Spot, prices."""

from dataclasses import dataclass
from functools import cached_property

from infra.fleet.catalog import MACHINE_TYPES, MachineType, known_zones, machine_label
from infra.fleet.host import host_cores, host_gpus, host_label
from infra.fleet.prices import Cost, machine_cost
from infra.stack.config import StackConfig
from infra.stack.keys import TIER_ACCELERATOR, Accelerator, StackFile
from trainer.contract.spec import Role


@dataclass(frozen=True)
class RoleMachines:
    """The machines of one role, which are all alike.

    The machines of a local stack are processes. Their type is this computer: its cores as vCPUs, memory 0 (unknown), no
    GPUs, as its estimates are for the CPU. Its region is empty, and nothing of it is rented.
    """

    role: Role
    count: int
    machine: MachineType
    accelerator: str = ""  # the model of its GPUs, built in or attached; empty without GPUs
    accelerators: int = 0  # GPUs of one machine
    spot: bool = False
    flex_start: bool = False  # waits for capacity
    region: str = ""
    disk_gb: int = 0  # of one machine's boot disk

    @property
    def attached(self) -> bool:
        """Return whether GPUs are attached to the machine, and not built into its type."""
        return self.accelerators > 0 and not self.machine.accelerators

    @property
    def label(self) -> str:
        """The machine type and its GPUs in words, by which measured runs are compared."""
        return machine_label(self.machine.name, self.accelerator, self.accelerators)

    @cached_property
    def hourly(self) -> Cost:
        """An hour of all these machines, disks included. Cached, not a field: parsing the price book takes 0.1 s."""
        if not self.region:
            return Cost(0)
        return machine_cost(
            self.region, self.machine.name, self.spot, self.accelerator, self.accelerators, disk_gb=self.disk_gb
        ).times(self.count)


@dataclass(frozen=True)
class Fleet:
    """All machines of a run.

    roles: those that have machines, master first.
    zones: where the run may be. Empty for a local stack.
    gpus_per_trainer: GPUs of each trainer machine. The trainers of a local stack share out those of this computer.
    processes_per_trainer: processes of each trainer machine: one for each GPU; on CPUs as many as the file says.
    """

    local: bool
    roles: tuple[RoleMachines, ...]
    zones: tuple[str, ...] = ()
    gpus_per_trainer: int = 0
    processes_per_trainer: int = 1

    @property
    def master(self) -> RoleMachines:
        return self.roles[0]

    @property
    def trainer_roles(self) -> tuple[RoleMachines, ...]:
        """The master and the workers."""
        return tuple(machines for machines in self.roles if machines.role != "ps")

    @property
    def servers(self) -> RoleMachines | None:
        """The parameter servers, if there are any."""
        return next((machines for machines in self.roles if machines.role == "ps"), None)

    @property
    def size(self) -> int:
        """The number of machines."""
        return sum(machines.count for machines in self.roles)

    @property
    def trainers(self) -> int:
        """The number of processes that compute gradients."""
        return sum(machines.count for machines in self.trainer_roles) * self.processes_per_trainer

    @property
    def hourly(self) -> Cost:
        """An hour of all machines, disks included. Nothing is rented for a local stack."""
        return sum((machines.hourly for machines in self.roles), Cost(0))

    def zones_in_turn(self, launch: int) -> list[str]:
        """Return all zones in the order in which a launch (from 1) prefers them without advice on capacity."""
        turn = (launch - 1) % len(self.zones)
        return [*self.zones[turn:], *self.zones[:turn]]


def resolve_fleet(config: StackConfig) -> Fleet:
    """Resolve the machines of a stack. On Google Cloud its machine types and GPUs must have been checked."""
    if not config.google:
        computer = MachineType(host_label(), host_cores(), memory_gb=0)
        machines = tuple(RoleMachines(role, count, computer) for role, count in role_counts(config).items())
        gpus = len(host_gpus()) // (1 + config.workers)
        return Fleet(True, machines, gpus_per_trainer=gpus, processes_per_trainer=_processes(config, gpus))
    roles = tuple(_rented(config, role, count) for role, count in role_counts(config).items())
    zones = config.file.machines.zones or _common_zones(config.region, roles)
    gpus = roles[0].accelerators
    return Fleet(False, roles, tuple(zones), gpus_per_trainer=gpus, processes_per_trainer=_processes(config, gpus))


def _processes(config: StackConfig, gpus: int) -> int:
    """Return the processes of a trainer machine with so many GPUs."""
    return gpus or config.file.parallel.processes or 1


def role_counts(config: StackConfig) -> dict[Role, int]:
    """Return the number of machines of each role that has any, master first."""
    counts: dict[Role, int] = {"master": 1, "worker": config.workers, "ps": config.servers}
    return {role: count for role, count in counts.items() if count}


def spans_zones(config: StackConfig, fleet: Fleet) -> bool:
    """Return whether one group takes the run's machine from any zone. A reservation is in one zone."""
    return fleet.size == 1 and len(fleet.zones) > 1 and config.file.machines.reservation is None


def may_move(config: StackConfig, fleet: Fleet) -> bool:
    """Return whether the controller may move the run to another zone.

    A reservation is in one zone, and machines that wait in a queue (flex-start) would lose their place in it.
    """
    waits = any(machines.flex_start for machines in fleet.roles)
    pinned = waits or config.file.machines.reservation is not None
    return fleet.size > 1 and len(fleet.zones) > 1 and not pinned


def attached_accelerator(file: StackFile) -> Accelerator | None:
    """Return the GPUs that a stack file attaches to its master and workers, by name or by its scale tier."""
    tier = TIER_ACCELERATOR.get(file.training_input.scale_tier)
    return file.machines.accelerator or (Accelerator(type=tier) if tier else None)


def _rented(config: StackConfig, role: Role, count: int) -> RoleMachines:
    settings = config.file.machines
    machine = MACHINE_TYPES[str(config.file.training_input.machine_types()[role])]
    attached = attached_accelerator(config.file) if role != "ps" else None
    accelerator, accelerators = machine.accelerator, machine.accelerators
    if not accelerators and attached is not None:
        accelerator, accelerators = attached.type, attached.count
    return RoleMachines(
        role=role,
        count=count,
        machine=machine,
        accelerator=accelerator,
        accelerators=accelerators,
        spot=settings.spot and role == "worker",
        flex_start=settings.flex_start and accelerators > 0,
        region=config.region,
        disk_gb=settings.boot_disk_gb,
    )


def _common_zones(region: str, roles: tuple[RoleMachines, ...]) -> list[str]:
    """Return the zones of a region that have the GPUs of all roles; none where the catalog lacks the region."""
    zone_lists = [zones for machines in roles if (zones := known_zones(region, machines.accelerator)) is not None]
    return [zone for zone in zone_lists[0] if all(zone in zones for zones in zone_lists)] if zone_lists else []
