"""Look up what machines, disks and storage cost by the price list prices.yaml, in USD.

A price that is not in the list is unknown, and never counts as zero: it turns a sum into a lower bound that says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.cpu_machines import CPU_FAMILIES

HOURS_A_MONTH = 730  # Google's own figure, for prices by the month
NEAR = 2.3  # the largest ratio of two machines' memory at which they count as near


@dataclass(frozen=True)
class Cost:
    """USD. A lower bound if some parts have no known price.

    unknown: those parts in words, for example "nvidia-l4 Spot in europe-west4".
    """

    usd: float
    unknown: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        return not self.unknown

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.usd + other.usd, tuple(dict.fromkeys(self.unknown + other.unknown)))

    def times(self, number: float) -> "Cost":
        return Cost(self.usd * number, self.unknown)


@dataclass(frozen=True)
class Equivalent:
    """The nearest machine of another cloud, at its list price in USD an hour. For comparison: nothing runs there."""

    cloud: str
    machine: str
    on_demand: float
    spot: float | None
    region: str
    date: str
    source: str


@cache
def book() -> dict[str, Any]:
    """Return the whole price list, as prices.yaml has it."""
    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("prices.yaml").read_text(encoding="utf-8"))
    return content


def regions() -> list[str]:
    """Return the regions that the list has prices of."""
    return list(book()["regions"])


def machine_cost(
    region: str, machine: str, spot: bool, accelerator: str = "", accelerators: int = 0, disk_gb: float = 0
) -> Cost:
    """Return the price of one machine with its disk for an hour.

    Any names may be given: what the list does not have is unknown. The price of a machine includes its built-in GPUs,
    whether they are given or not.
    """
    kind, suffix = ("spot", " Spot") if spot else ("on_demand", "")
    listed, machine_type = _region(region), MACHINE_TYPES.get(machine)
    if machine_type is not None and machine_type.family in CPU_FAMILIES:
        family = machine_type.family
        vcpu, memory = _number(listed, f"{family}_vcpu", kind), _number(listed, f"{family}_memory_gb", kind)
        price = None if vcpu is None or memory is None else machine_type.vcpus * vcpu + machine_type.memory_gb * memory
    else:
        price = _number(listed, "machines", machine, kind)
    cost = _cost(price, f"{machine}{suffix} in {region}")
    if accelerators and (machine_type is None or not machine_type.accelerators):
        gpu = _cost(_number(listed, "accelerators", accelerator, kind), f"{accelerator}{suffix} in {region}")
        cost += gpu.times(accelerators)
    if disk_gb:
        hyperdisk = machine_type is not None and machine_type.disk == "hyperdisk-balanced"
        name, words = ("hyperdisk_gb_month", "Hyperdisk") if hyperdisk else ("disk_gb_month", "disks")
        disk = _cost(_number(listed, name, "price"), f"{words} in {region}")
        cost += disk.times(disk_gb / HOURS_A_MONTH)
    return cost


def storage_gb_month(region: str) -> float | None:
    """Return the price of a GB in a bucket of the class Standard for a month, or None."""
    return _number(_region(region), "storage_gb_month", "price")


def anywhere(name: str) -> float | None:
    """Return a price that is the same in all regions, or None. name: egress_gb, class_a_thousand and so on."""
    return _number(book(), name, "price")


def elsewhere(machine: str, accelerator: str, accelerators: int) -> dict[str, Equivalent | None]:
    """Return the nearest machine of each other cloud, or None where no machine is near.

    A machine is near if it has the same GPUs, as many of them; without GPUs, if it has as many vCPUs and about the same
    memory. The nearest has vCPUs and memory that differ by the smallest factor.
    """
    own = MACHINE_TYPES[machine]
    gpus = (own.accelerator, own.accelerators) if own.accelerators else (accelerator, accelerators)
    nearest: dict[str, Equivalent | None] = {}
    for cloud, listed in book()["elsewhere"].items():
        near = {
            name: other
            for name, other in listed["machines"].items()
            if (other.get("accelerator", ""), other.get("accelerators", 0)) == gpus
            and (gpus[1] or (other["vcpus"] == own.vcpus and _ratio(other["memory_gb"], own.memory_gb) <= NEAR))
        }
        factors = {
            name: _ratio(other["vcpus"], own.vcpus) * _ratio(other["memory_gb"], own.memory_gb)
            for name, other in near.items()
        }
        nearest[cloud] = None
        if near:
            name = min(factors, key=factors.__getitem__)
            source = book()["sources"][near[name].get("source", listed["source"])]
            prices = near[name]["on_demand"], _number(near[name], "spot")
            nearest[cloud] = Equivalent(cloud, name, *prices, listed["region"], str(source["date"]), source["what"])
    return nearest


def _ratio(first: float, second: float) -> float:
    return max(first, second) / min(first, second)


def _region(name: str) -> Mapping[str, Any]:
    listed: Mapping[str, Any] = book()["regions"].get(name, {})
    return listed


def _cost(price: float | None, price_name: str) -> Cost:
    return Cost(0, (price_name,)) if price is None else Cost(price)


def _number(node: Any, *path: str) -> float | None:
    """Return the number at a path of keys; None if a key is missing or the list says "unknown"."""
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, (int, float)) else None
