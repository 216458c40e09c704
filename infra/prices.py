"""What machines cost, from prices.yaml. A price that is not there is None: unknown is never taken for nothing."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.spec import Role

if TYPE_CHECKING:
    from infra.config import StackConfig

HOURS_A_MONTH = 730


@cache
def book() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8"))
    return found


def hourly_cost(config: "StackConfig") -> float | None:
    """USD an hour of all machines of a stack on Google Cloud, disks included; None if a price is not known."""
    from infra.google.rules import accelerator, counts, machine_type

    total = 0.0
    for role, count in counts(config).items():
        machine, (model, number) = machine_type(config, role), accelerator(config, role)
        one = machine_price(config.region, machine.name, is_spot(config, role))
        if one is None:
            return None
        if number and not machine.accelerators:
            gpu = _get(config.region, "accelerators", model, "spot" if is_spot(config, role) else "on_demand")
            if gpu is None:
                return None
            one += number * gpu
        disk = _get(config.region, "disk_gb_month")
        if disk is None:
            return None
        total += count * (one + config.file.machines.boot_disk_gb * disk / HOURS_A_MONTH)
    return total


def is_spot(config: "StackConfig", role: Role) -> bool:
    return config.file.machines.spot and role == "worker"


def machine_price(region: str, name: str, spot: bool) -> float | None:
    """USD an hour of one machine without attached GPUs and disk; None if not known."""
    from infra.google.catalog import MACHINE_TYPES

    kind, machine = ("spot" if spot else "on_demand"), MACHINE_TYPES[name]
    if machine.family != "n1":
        return _get(region, "machines", name, kind)
    vcpu, memory = _get(region, "vcpu", kind), _get(region, "memory_gb", kind)
    return None if vcpu is None or memory is None else machine.vcpus * vcpu + machine.memory_gb * memory


def _get(*path: str) -> float | None:
    node: Any = book()
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, (int, float)) else None
