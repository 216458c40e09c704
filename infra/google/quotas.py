"""Check whether Google's quotas are enough for a stack. `up` and scripts.preflight ask.

They come from the Cloud Quotas API, which knows every GPU, or else from Compute Engine, which also knows the use.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from infra.fleet.catalog import ACCELERATORS
from infra.fleet.cpu_machines import CPU_FAMILIES, VM_FAMILY_CPUS
from infra.fleet.fleet import Fleet
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

SERVICE = "services/compute.googleapis.com"
# On demand these GPUs have one quota, with the family as a dimension. Their Spot and flex-start quotas have names of
# their own, such as PREEMPTIBLE-NVIDIA-H200-GPUS (public projects that read them in 2026).
GPU_FAMILIES = ("H100", "H100_MEGA", "H200", "B200", "RTX_PRO_6000")
DISKS = {"pd-balanced": "SSD_TOTAL_GB", "hyperdisk-balanced": "HDB_TOTAL_GB"}  # balanced disks count as SSD
DAYS_OF_CHOICE = 168  # hours; GPU machines that end within this may take either quota (Google, since 2024-06-18)


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

    metric: str  # Compute Engine's name, such as NVIDIA_T4_GPUS; with a family in brackets, one of its dimensions
    on_demand: int
    spot: int = 0
    everywhere: bool = False  # a quota over all regions


@dataclass(frozen=True)
class Limit:
    """The limit of a quota, and how much of it is in use if that is known."""

    value: float
    used: float | None = None


def needs(fleet: Fleet, nat: bool) -> list[Need]:
    """Return what the machines need of each quota.

    Machines with GPUs built in need quota for their GPUs alone: for A2, A3, A4, G2 and G4, "you don't need to request
    CPU quotas" (Google's page "Allocation quotas").
    """
    amounts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    for machines in fleet.roles:
        machine, count, gpus = machines.machine, machines.count, machines.accelerators
        # Flex-start machines take the quota of Spot machines.
        totals = amounts[machines.spot or machines.flex_start]
        if gpus:
            totals[f"NVIDIA_{ACCELERATORS[machines.accelerator].quota}_GPUS"] += count * gpus
            totals["GPUS_ALL_REGIONS"] += count * gpus
        if (family := CPU_FAMILIES.get(machine.family)) is not None:
            by_family = f"{VM_FAMILY_CPUS}({family.name.upper()})"
            totals[by_family if family.quota == VM_FAMILY_CPUS else family.quota] += count * machine.vcpus
            totals["CPUS_ALL_REGIONS"] += count * machine.vcpus
        amounts[False][DISKS[machine.disk]] += count * machines.disk_gb
        amounts[False]["INSTANCES"] += count
    if nat:
        amounts[False]["IN_USE_ADDRESSES"] += 1
    metrics = dict.fromkeys([*amounts[False], *amounts[True]])
    return [Need(m, amounts[False][m], amounts[True][m], m.endswith("_ALL_REGIONS")) for m in metrics]


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
        name, dimensions = quota_id(metric)
        try:
            info = self._api.call(
                "cloudquotas", "GET", f"projects/{self._project}/locations/global/{SERVICE}/quotaInfos/{name}"
            )
        except ApiError as error:
            self._off = error.status != 404
            return None
        return effective(info.get("dimensionsInfos", []), {"region": self._region, **dimensions})


def quota_id(metric: str) -> tuple[str, dict[str, str]]:
    """Return the Cloud Quotas API's name of a quota, and the dimension that says the family if it has one for all."""
    for model in GPU_FAMILIES:
        if metric == f"NVIDIA_{model}_GPUS":
            return "GPUS-PER-GPU-FAMILY-per-project-region", {"gpu_family": f"NVIDIA_{model}"}
    name, _, family = metric.rstrip(")").partition("(")
    scope = "" if metric.endswith("_ALL_REGIONS") else "-region"
    return f"{name.replace('_', '-')}-per-project{scope}", {"vm_family": family} if family else {}


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
    checks: list[Check] = []
    for need in needs(fleet, config.file.network.nat):
        if need.everywhere:
            checks += _everywhere(need, limits)
        else:
            checks += _regional(need, limits, config.region, config.file.limits.max_hours <= DAYS_OF_CHOICE)
    return checks


def _regional(need: Need, limits: QuotaLimits, region: str, short: bool) -> list[Check]:
    """Check a quota of the region, and the separate one of Spot machines. short: the machines end within 7 days."""
    limit = limits.of(need.metric)
    if not need.spot:
        check = _judge(need.metric, need.on_demand, limit, region)
        return [_either(need, check, limits) if short and check.state == "problem" else check]
    metric = f"PREEMPTIBLE_{'CPUS' if 'CPUS' in need.metric else need.metric}"
    spot = limits.of(metric)
    if spot is not None and spot.value == 0:  # then Spot machines use the quota of the others
        return [_judge(need.metric, need.on_demand + need.spot, limit, region, " (Spot too, without quota of its own)")]
    checks = [_judge(metric, need.spot, spot, region)]
    return [_judge(need.metric, need.on_demand, limit, region), *checks] if need.on_demand else checks


def _either(need: Need, check: Check, limits: QuotaLimits) -> Check:
    """Return a GPU quota's problem, or "unknown" if the preemptible quota is enough for machines that end soon."""
    spot = limits.of(f"PREEMPTIBLE_{need.metric}") if need.metric.endswith("_GPUS") else None
    if spot is None or spot.value < need.on_demand:
        return check
    finding = f"{check.found}; PREEMPTIBLE_{need.metric} has {spot.value:,.0f}, which machines that end within 7 days"
    return Check(check.name, "unknown", f"{finding} may use too", check.fix)


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
