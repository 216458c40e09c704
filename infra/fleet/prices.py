"""What things cost by the price list of prices.yaml, in USD.

A price that is not there is unknown, and is never taken for nothing: it makes a sum a lower bound that says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.fleet import accelerator, counts, is_spot, machine_type
from infra.stack.config import StackConfig
from trainer.contract.spec import Role

HOURS_A_MONTH = 730  # Google's, for what it sells by the month
NEAR = 2.3  # times the memory, for a machine of another cloud to be near


@dataclass(frozen=True)
class Cost:
    """USD. With parts that nobody priced it is a lower bound."""

    usd: float
    unknown: tuple[str, ...] = ()  # those parts, in words: "nvidia-l4 Spot in europe-west4"

    @property
    def exact(self) -> bool:
        return not self.unknown

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.usd + other.usd, tuple(dict.fromkeys(self.unknown + other.unknown)))

    def times(self, number: float) -> "Cost":
        return Cost(self.usd * number, self.unknown)


@dataclass(frozen=True)
class Equivalent:
    """The nearest machine of another cloud at its list price, USD an hour; to compare with, nothing runs there."""

    cloud: str
    machine: str
    on_demand: float
    spot: float | None
    region: str
    date: str
    source: str


@cache
def book() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8"))
    return found


def regions() -> list[str]:
    """Those of which the list has prices."""
    return list(book()["regions"])


def machine_cost(
    region: str, machine: str, spot: bool, accelerator: str = "", accelerators: int = 0, disk_gb: float = 0
) -> Cost:
    """An hour of one machine with its disk. Built-in GPUs are in its price, whether they are named here or not."""
    kind, of = ("spot", " Spot") if spot else ("on_demand", "")
    here, model = _region(region), MACHINE_TYPES.get(machine)
    if model is not None and model.family == "n1":
        vcpu, memory = _number(here, "n1_vcpu", kind), _number(here, "n1_memory_gb", kind)
        price = None if vcpu is None or memory is None else model.vcpus * vcpu + model.memory_gb * memory
    else:
        price = _number(here, "machines", machine, kind)
    cost = _known(price, f"{machine}{of} in {region}")
    if accelerators and (model is None or not model.accelerators):
        gpu = _known(_number(here, "accelerators", accelerator, kind), f"{accelerator}{of} in {region}")
        cost += gpu.times(accelerators)
    if disk_gb:
        disk = _known(_number(here, "disk_gb_month", "price"), f"disks in {region}")
        cost += disk.times(disk_gb / HOURS_A_MONTH)
    return cost


def role_costs(config: StackConfig) -> dict[Role, Cost]:
    """An hour of all machines of each role, disks included; none on this machine."""
    if not config.google:
        return {}
    disk = config.file.machines.boot_disk_gb
    return {
        role: machine_cost(
            config.region,
            machine_type(config, role).name,
            is_spot(config, role),
            *accelerator(config, role),
            disk_gb=disk,
        ).times(count)
        for role, count in counts(config).items()
    }


def hourly_cost(config: StackConfig) -> float | None:
    """USD an hour of all machines of a stack on Google Cloud, disks included; None if a price is not known."""
    total = sum(role_costs(config).values(), Cost(0))
    return total.usd if total.exact else None


def storage_gb_month(region: str) -> float | None:
    """A GB of a bucket of the class Standard, a month."""
    return _number(_region(region), "storage_gb_month", "price")


def anywhere(name: str) -> float | None:
    """What costs the same in all regions: egress_gb, scheduler_job_month, nat_gb and so on."""
    return _number(book(), name, "price")


def elsewhere(machine: str, accelerator: str, accelerators: int) -> dict[str, Equivalent | None]:
    """The nearest machine of each other cloud; None where nothing is near.

    Near is the same GPUs, as many of them; without any, as many vCPUs and about the memory. The nearest of those has
    vCPUs and memory that differ by the smallest factor.
    """
    model = MACHINE_TYPES[machine]
    gpus = (model.accelerator, model.accelerators) if model.accelerators else (accelerator, accelerators)
    found: dict[str, Equivalent | None] = {}
    for cloud, there in book()["elsewhere"].items():
        fitting = {
            name: other
            for name, other in there["machines"].items()
            if (other.get("accelerator", ""), other.get("accelerators", 0)) == gpus
            and (gpus[1] or (other["vcpus"] == model.vcpus and _apart(other["memory_gb"], model.memory_gb) <= NEAR))
        }
        factors = {
            name: _apart(other["vcpus"], model.vcpus) * _apart(other["memory_gb"], model.memory_gb)
            for name, other in fitting.items()
        }
        found[cloud] = None
        if fitting:
            name = min(factors, key=factors.__getitem__)
            source = book()["sources"][fitting[name].get("source", there["source"])]
            prices = fitting[name]["on_demand"], _number(fitting[name], "spot")
            found[cloud] = Equivalent(cloud, name, *prices, there["region"], str(source["date"]), source["what"])
    return found


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _region(name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = book()["regions"].get(name, {})
    return found


def _known(price: float | None, what: str) -> Cost:
    return Cost(0, (what,)) if price is None else Cost(price)


def _number(node: Any, *path: str) -> float | None:
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, (int, float)) else None  # or the word unknown
