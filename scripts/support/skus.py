"""Find the SKUs of machine parts in Google's billing catalog, and their prices.

Only its description identifies a SKU ("Spot Preemptible A2 Instance Core running in Americas"), so the patterns match
all of it. Reserved capacity, commitments, flex-start (DWS), calendar mode, sole tenancy and custom machines have
similar descriptions, some of them with usageType OnDemand. Sources: SkyPilot's and dstack's catalogs, Infracost, read
in 2026-11.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES, MachineType
from infra.fleet.cpu_machines import CPU_FAMILIES
from infra.fleet.prices import HOURS_A_MONTH

COMPUTE, STORAGE = "services/6F81-5844-456A", "services/95FF-2EF5-5EA1"
# Descriptions with one of these words are other ways to pay.
OTHER_TARIFFS = re.compile(
    r"Reserved|Reservation|Commitment|DWS|Flex|Calendar|Sole Tenan|Premium|Custom|suspended|Dual-region|Multi-region",
    re.I,
)
GPUS = {
    "nvidia-tesla-t4": "Nvidia Tesla T4 GPU",
    "nvidia-l4": "Nvidia L4 GPU",
    "nvidia-rtx-pro-6000": "RTX 6000 96GB",
    "nvidia-tesla-a100": "Nvidia Tesla A100 GPU",
    "nvidia-a100-80gb": "Nvidia Tesla A100 80GB GPU",
    "nvidia-h100-80gb": "Nvidia H100 80GB GPU",
    "nvidia-h100-mega-80gb": "Nvidia H100 80GB (?:Mega|Plus) GPU",  # on demand it is called Plus in some regions
}
# The names of families in descriptions, where they are not the family in capitals.
FAMILIES = {"n1": "N1 Predefined", "n2d": "N2D AMD", "a3-megagpu": "A3Plus"}
# Whole machines are sold by the GPU. SKUs of a3-ultragpu are not known, so its price stays unknown.
SLICES = {"a4-highgpu-8g": r"Spot Preemptible A4 Nvidia B200 \(1 gpu slice\)"}
UNPRICED = ("a3-ultragpu-8g",)
PriceKey = tuple[str, ...]  # the path of a price in prices.yaml: ("regions", "us-central1", "n1_vcpu", "spot")


@dataclass
class Skus:
    """The SKUs of a few regions, found by description."""

    doubts: dict[str, None] = field(default_factory=dict)  # lines for a person about parts with several prices
    _by_region: dict[str, list[tuple[str, str, float]]] = field(default_factory=dict)  # description, unit, USD

    def add(self, skus: Iterable[Mapping[str, Any]], regions: Iterable[str]) -> None:
        """Add SKUs in the catalog's JSON, but only those of the given regions and of usual tariffs."""
        wanted_regions = set(regions)
        for sku in skus:
            description = sku.get("description", "")
            sku_regions = wanted_regions.intersection(sku.get("serviceRegions", []))
            if not sku_regions or OTHER_TARIFFS.search(description):
                continue
            if sku.get("category", {}).get("usageType") not in ("OnDemand", "Preemptible"):
                continue
            unit_and_price = rate(sku)
            if unit_and_price is not None:
                for region in sku_regions:
                    self._by_region.setdefault(region, []).append((description, *unit_and_price))

    def price(self, region: str, pattern: str, unit: str) -> float | None:
        """Return the USD of one unit of the SKU whose description matches, or None if no or several prices match."""
        description_pattern = re.compile(rf"{pattern}(?: (?:running )?in .+)?")
        prices = {
            usd
            for description, sku_unit, usd in self._by_region.get(region, [])
            if sku_unit == unit and description_pattern.fullmatch(description)
        }
        if len(prices) > 1:
            costs = " and ".join(f"{usd:g}" for usd in sorted(prices))
            self.doubts[f"{region}: the SKUs called {pattern!r} cost {costs}, so that none is taken"] = None
        return prices.pop() if len(prices) == 1 else None

    def prices(self, region: str) -> Iterator[tuple[PriceKey, float | None]]:
        """Yield all prices of a region, with their path in prices.yaml. A price is None if it is not known."""
        at: PriceKey = ("regions", region)
        for kind in ("on_demand", "spot"):
            spot = kind == "spot"
            for family in CPU_FAMILIES:
                yield (*at, f"{family}_vcpu", kind), self._part(region, family, "Core", spot)
                yield (*at, f"{family}_memory_gb", kind), self._part(region, family, "Ram", spot)
            for model in ACCELERATORS.values():
                if model.attachable:
                    yield (*at, "accelerators", model.name, kind), self._gpu(region, model.name, spot)
            for machine in MACHINE_TYPES.values():
                if machine.accelerators:
                    yield (*at, "machines", machine.name, kind), self._machine(region, machine, spot)
        yield (*at, "disk_gb_month", "price"), self.price(region, "Balanced PD Capacity", "GiBy.mo")
        yield (*at, "hyperdisk_gb_month", "price"), self.price(region, "Hyperdisk Balanced Capacity", "GiBy.mo")
        yield (*at, "storage_gb_month", "price"), self.price(region, "Standard Storage .+", "GiBy.mo")

    def _machine(self, region: str, machine: MachineType, spot: bool) -> float | None:
        if machine.name in UNPRICED:
            return None
        if machine.name in SLICES:
            slice_price = self.price(region, SLICES[machine.name], "h") if spot else None
            return None if slice_price is None else slice_price * machine.accelerators
        series = machine.name.rpartition("-")[0]
        family = series if series in FAMILIES else machine.family
        parts = [
            (machine.vcpus, self._part(region, family, "Core", spot)),
            (machine.memory_gb, self._part(region, family, "Ram", spot)),
            (machine.accelerators, self._gpu(region, machine.accelerator, spot)),
        ]
        if machine.ssd_gb:
            parts.append((machine.ssd_gb / HOURS_A_MONTH, self._local_ssd(region, spot)))
        total = 0.0
        for number, price in parts:
            if price is None:
                return None
            total += number * price
        return total

    def _part(self, region: str, family: str, part: str, spot: bool) -> float | None:
        name = FAMILIES.get(family, family.upper())
        unit = "h" if part == "Core" else "GiBy.h"
        return self.price(region, f"{'Spot Preemptible ' if spot else ''}{name} Instance {part}", unit)

    def _gpu(self, region: str, name: str, spot: bool) -> float | None:
        return self.price(region, f"{GPUS[name]}{' attached to Spot Preemptible VMs' if spot else ''}", "h")

    def _local_ssd(self, region: str, spot: bool) -> float | None:
        attached = " attached to Spot Preemptible VMs" if spot else ""
        return self.price(region, f"SSD backed Local Storage{attached}", "GiBy.mo")


def rate(sku: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the unit of a SKU and its price in USD in the first tier that is not free, or None without a price."""
    try:
        expression = sku["pricingInfo"][-1]["pricingExpression"]  # the last is the newest
        tiers = [tier["unitPrice"] for tier in expression["tieredRates"]]
    except (KeyError, IndexError):
        return None
    for tier in tiers:
        usd = int(tier.get("units", 0)) + tier.get("nanos", 0) / 1e9
        if usd > 0 and tier.get("currencyCode", "USD") == "USD":
            return expression.get("usageUnit", ""), usd
    return None
