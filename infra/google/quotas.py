"""Check whether Google's quotas are enough for a stack. `up` and scripts.preflight ask.

They come from the Cloud Quotas API, which knows every GPU, or else from Compute Engine, which also knows the use.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from infra.fleet.catalog import ACCELERATORS
from infra.fleet.fleet import Fleet
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

SERVICE = "services/compute.googleapis.com"
GPU_FAMILIES = ("H100", "H100_MEGA")  # these have one quota, with the family as a dimension
CPUS = {"n1": "CPUS", "a2": "A2_CPUS"}  # by machine family; the quotas of other families are not known for sure
DISKS = "SSD_TOTAL_GB"  # balanced disks count as SSD


@dataclass(frozen=True)
class Check:
    """The result of one check, in a line for a person."""

    name: str
    state: Literal["ok", "problem", "unknown", "note"]
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Need:
    """A stack's part of one quota: for machines on demand, and for Spot or flex-start machines."""

    metric: str  # Compute Engine's name, such as NVIDIA_T4_GPUS
    on_demand: int
    spot: int = 0
    everywhere: bool = False  # a quota over all regions


@dataclass(frozen=True)
class Limit:
    """The limit of a quota, and how much of it is in use if that is known."""

    value: float
    used: float | None = None


def needs(fleet: Fleet, nat: bool) -> tuple[list[Need], list[str]]:
    """Return what the machines need, and the machine families whose CPU quota is not known."""
    amounts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    unknown: list[str] = []
    for machines in fleet.roles:
        machine, count, gpus = machines.machine, machines.count, machines.accelerators
        # Flex-start machines take the quota of Spot machines.
        totals = amounts[machines.spot or machines.flex_start]
        if gpus:
            totals[f"NVIDIA_{ACCELERATORS[machines.accelerator].quota}_GPUS"] += count * gpus
            totals["GPUS_ALL_REGIONS"] += count * gpus
        if machine.family in CPUS:
            totals[CPUS[machine.family]] += count * machine.vcpus
        elif machine.family not in unknown:
            unknown.append(machine.family)
        totals["CPUS_ALL_REGIONS"] += count * machine.vcpus
        amounts[False][DISKS] += count * machines.disk_gb
        amounts[False]["INSTANCES"] += count
    if nat:
        amounts[False]["IN_USE_ADDRESSES"] += 1
    metrics = dict.fromkeys([*amounts[False], *amounts[True]])
    return [Need(m, amounts[False][m], amounts[True][m], m.endswith("_ALL_REGIONS")) for m in metrics], unknown


class QuotaLimits:
    """The limits of a project and a region, read once each."""

    def __init__(self, api: GoogleApi, project: str, region: str) -> None:
        self._api, self._project, self._region = api, project, region
        self._off = False  # the Cloud Quotas API does not answer
        self._compute = self._listed(f"projects/{project}") | self._listed(f"projects/{project}/regions/{region}")

    def of(self, metric: str) -> Limit | None:
        """Return the limit of a quota; None if neither API knows it."""
        listed = self._compute.get(metric)
        value = self._cloud(metric)
        if value is None:
            return listed
        return Limit(value, listed.used if listed else None)

    def _listed(self, path: str) -> dict[str, Limit]:
        """Return Compute Engine's limits by their metric; none if it does not answer."""
        try:
            quotas = self._api.call("compute", "GET", path).get("quotas", [])
        except ApiError:
            return {}
        return {q["metric"]: Limit(q.get("limit", 0.0), q.get("usage", 0.0)) for q in quotas if "metric" in q}

    def _cloud(self, metric: str) -> float | None:
        """Return the Cloud Quotas API's limit; None if it does not know the quota or does not answer."""
        if self._off:
            return None
        name, family = quota_id(metric)
        try:
            info = self._api.call(
                "cloudquotas", "GET", f"projects/{self._project}/locations/global/{SERVICE}/quotaInfos/{name}"
            )
        except ApiError as error:
            self._off = error.status != 404
            return None
        wanted_dimensions = {"region": self._region, "gpu_family": family}
        return effective(info.get("dimensionsInfos", []), {k: v for k, v in wanted_dimensions.items() if v})


def quota_id(metric: str) -> tuple[str, str]:
    """Return the Cloud Quotas API's name of a quota, and the GPU family if the quota is one for all families."""
    for model in GPU_FAMILIES:
        if metric == f"NVIDIA_{model}_GPUS":
            return "GPUS-PER-GPU-FAMILY-per-project-region", f"NVIDIA_{model}"
    scope = "" if metric.endswith("_ALL_REGIONS") else "-region"
    return f"{metric.replace('_', '-')}-per-project{scope}", ""


def effective(infos: list[dict[str, Any]], wanted_dimensions: dict[str, str]) -> float | None:
    """Return the value for the wanted dimensions; None if none fits. Google lists the more specific ones first."""
    for info in infos:
        dimensions = info.get("dimensions") or {}
        places = info.get("applicableLocations") or []
        if any(wanted_dimensions.get(name) != value for name, value in dimensions.items()):
            continue
        if "region" not in dimensions and places and not {wanted_dimensions["region"], "global"} & set(places):
            continue
        value = float(info.get("details", {}).get("value", 0))  # JSON leaves out a zero
        return math.inf if value < 0 else value
    return None


def check_quotas(config: StackConfig, fleet: Fleet, limits: QuotaLimits) -> list[Check]:
    """Check each quota that the stack needs."""
    quota_needs, families = needs(fleet, config.file.network.nat)
    checks: list[Check] = []
    for need in quota_needs:
        checks += _everywhere(need, limits) if need.everywhere else _regional(need, limits, config.region)
    for family in families:
        finding = f"which quota the CPUS of {family} machines count in is not known here"
        checks.append(Check(f"quota of {family} CPUs", "unknown", finding, _ask(f"the CPUs of {family}")))
    return checks


def _regional(need: Need, limits: QuotaLimits, region: str) -> list[Check]:
    """Check a quota of the region, and the separate one of Spot machines."""
    limit = limits.of(need.metric)
    if not need.spot:
        return [_judge(need.metric, need.on_demand, limit, region)]
    metric = f"PREEMPTIBLE_{'CPUS' if need.metric in CPUS.values() else need.metric}"
    spot = limits.of(metric)
    if spot is not None and spot.value == 0:  # then Spot machines use the quota of the others
        return [_judge(need.metric, need.on_demand + need.spot, limit, region, " (Spot too, without quota of its own)")]
    checks = [_judge(metric, need.spot, spot, region)]
    return [_judge(need.metric, need.on_demand, limit, region), *checks] if need.on_demand else checks


def _everywhere(need: Need, limits: QuotaLimits) -> list[Check]:
    """Check a quota over all regions. Sources disagree whether Spot machines count in it."""
    limit, both = limits.of(need.metric), need.on_demand + need.spot
    if limit is not None and need.on_demand <= limit.value < both:
        finding = f"{need.on_demand} needed on demand and {need.spot} of Spot machines, limit {limit.value:g};"
        return [
            Check(f"quota {need.metric}", "unknown", f"{finding} whether Spot counts here is not known", _ask(both))
        ]
    return [_judge(need.metric, both, limit, "all regions")]


def _judge(metric: str, amount: int, limit: Limit | None, where: str, note: str = "") -> Check:
    """Compare the amount that is needed with the limit and its use."""
    name = f"quota {metric}"
    if limit is None:
        fix = "look in the console, or enable cloudquotas.googleapis.com and ask again"
        return Check(name, "unknown", f"{amount:,} needed{note}; the limit cannot be read", fix)
    value = "none" if math.isinf(limit.value) else f"{limit.value:,.0f}"
    finding = f"{amount:,} needed{note}, limit {value} in {where}"
    if amount > limit.value:
        return Check(name, "problem", finding, _ask(amount, quota_id(metric)[0]))
    if limit.used and amount + limit.used > limit.value:
        usage = f"{finding}, {limit.used:,.0f} in use"
        return Check(name, "unknown", usage, "fine if they are this stack's own; else wait for them, or ask for more")
    return Check(name, "ok", finding)


def _ask(amount: object, name: str = "") -> str:
    return f"ask for {amount} or more{f' of {name}' if name else ''} (console: IAM, Quotas), or use fewer machines"
