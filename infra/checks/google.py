"""Find what Google Cloud would refuse before anything is made: a line for each problem, with its fix.

Nothing here asks Google. `scripts.preflight` asks about quotas and capacity.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from infra.checks.boot_image import image_problems
from infra.checks.machines import cluster_problems, machine_problems, way_problems
from infra.fleet.catalog import MACHINE_TYPES, known_zones
from infra.fleet.fleet import Fleet, attached_accelerator, resolve_fleet, role_counts
from infra.fleet.zones import REGIONS
from infra.stack.config import StackConfig
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role

PROVIDER_KEYS = {"project", "region"}
STACK_NAME = re.compile(r"[a-z]([a-z0-9-]{0,14}[a-z0-9])?")  # gpt2-<stack>-master must be an account's id: 30 at most
PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
# Artifact Registry accepts the token of a machine's account. Machines cannot reach other registries.
DIGEST = re.compile(r"[a-z0-9-]+-docker\.pkg\.dev/[a-z0-9._/-]+@sha256:[0-9a-f]{64}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
BILLING_ACCOUNT = re.compile(r"[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}")
FLEX_HOURS = 168  # Google's limit is 7 days
PLACES = {region.rstrip("0123456789") for region in REGIONS}  # such as europe-west


def stack_problems(config: StackConfig) -> list[str]:
    """Return everything about the stack that Google would refuse, each line starting with the full key."""
    names = _name_problems(config)
    region = _region_problems(config)
    named = _named_types(config)
    attached = attached_accelerator(config.file)
    own = machine_problems(named, attached)
    fleet = None if own else resolve_fleet(config)
    if fleet is not None and not region:  # wrong zones and limits would only follow from a wrong region
        own = cluster_problems(config, fleet) + _zone_problems(config, fleet) + _limit_problems(config, fleet)
    own += _capacity_problems(config, named) + image_problems(config, named) + _other_problems(config)
    return names + region + [f"gpt2-training:{problem}" for problem in own]


def _named_types(config: StackConfig) -> dict[Role, str | None]:
    """Return the machine type that the stack file names for each role with machines. It may be unknown."""
    types = config.file.training_input.machine_types()
    return {role: types[role] for role in role_counts(config)}


def _name_problems(config: StackConfig) -> list[str]:
    problems = project_problems(config.provider, config.stack)
    if not STACK_NAME.fullmatch(config.stack):
        problems.append(
            f"stack {config.stack}: on Google Cloud a stack's name is at most 16 small letters, digits and hyphens,"
            " starts with a letter and does not end with a hyphen; choose another"
        )
    for key in config.provider.keys() - PROVIDER_KEYS:
        if not _meant_key(key):
            problems.append(
                f"gcp:{key}: has no effect here, only project and region do; remove it (to act as an account:"
                " `gcloud auth application-default login --impersonate-service-account`)"
            )
    return problems


def project_problems(provider: Mapping[str, Any], stack: str) -> list[str]:
    """Return what is wrong with the project, and misspelled keys of gcp, one of which may be the project."""
    misspelled = {key: meant for key in sorted(provider.keys() - PROVIDER_KEYS) if (meant := _meant_key(key))}
    problems = [f"gcp:{key}: unknown key; did you mean gcp:{meant}?" for key, meant in misspelled.items()]
    project = provider.get("project")
    if project in (None, ""):
        if "project" not in misspelled.values():
            problems.append(f"gcp:project: missing; run `pulumi config set gcp:project YOUR-PROJECT --stack {stack}`")
    elif not PROJECT_ID.fullmatch(str(project)):
        problems.append(
            f"gcp:project: found {str(project)!r}, must be a project's id (6 to 30 small letters, digits, hyphens;"
            " neither its number nor its name); `gcloud projects list` shows them"
        )
    return problems


def _meant_key(key: str) -> str:
    """Return the key of gcp that a misspelled one resembles; empty if it resembles none."""
    return next(iter(difflib.get_close_matches(key, PROVIDER_KEYS, n=1, cutoff=0.75)), "")


def _region_problems(config: StackConfig) -> list[str]:
    region = config.region
    close = difflib.get_close_matches(region.lower(), REGIONS, n=1, cutoff=0.85)
    if re.fullmatch(r"[a-z]+-[a-z]+[0-9]+", region) and region.rstrip("0123456789") in PLACES:
        close = []  # another number is another region, and no misspelling
    hint = f"; did you mean {close[0]}?" if close else ""
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+", region):
        return [f"gcp:region: found {region!r}, must be a region such as us-central1{hint}"]
    if close and region not in REGIONS and not config.file.machines.zones:
        return [f"gcp:region: found {region!r}, which is not in our table{hint} If not, name machines.zones"]
    return []


def _zone_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    given = config.file.machines.zones
    problems = [
        f"machines.zones: {zone} is there {given.count(zone)} times; name each zone once"
        for zone in dict.fromkeys(given)
        if given.count(zone) > 1
    ]
    problems += [
        f"machines.zones: {zone} is not in gcp:region {config.region}; use zones of that region"
        for zone in given
        if not re.fullmatch(rf"{re.escape(config.region)}-[a-z]", zone)
    ]
    if problems:
        return problems
    for machines in fleet.roles:
        model = machines.accelerator
        possible = known_zones(config.region, model)
        type_name = model or machines.machine.name
        if possible is None and not given:
            return [
                (
                    f"machines.zones: missing; region {config.region} is not in our table, so name zones that have"
                    f" {type_name}: `gcloud compute {'accelerator' if model else 'machine'}-types list"
                    f" --filter=name={type_name}` shows them"
                )
            ]
        for zone in given:
            if possible is not None and zone not in possible:
                fix = f"use {', '.join(possible)}" if possible else "use another region or accelerator"
                problems.append(f"machines.zones: {zone} has no {type_name}; {fix}")
    if not fleet.zones:
        problems.append(f"machines.zones: no zone of {config.region} has all the accelerators asked for; use others")
    return problems


def _capacity_problems(config: StackConfig, named: Mapping[Role, str | None]) -> list[str]:
    """Return what is wrong with Spot, a reservation or flex-start. Unknown machine types are no problem of these."""
    machines, problems = config.file.machines, []
    ways = [
        name
        for name, used in (
            ("machines.spot", machines.spot),
            ("machines.reservation", machines.reservation is not None),
            ("machines.flexStart", machines.flex_start),
        )
        if used
    ]
    if len(ways) > 1:
        problems.append(f"{ways[0]}: cannot go with {ways[1]}; each is another way to get capacity: choose one")
    if machines.flex_start:
        for role, name in named.items():
            machine = MACHINE_TYPES.get(str(name))
            if machine is not None and not machine.accelerators and role != "ps":
                problems.append(
                    f"machines.flexStart: {machine.name} (trainingInput.{TYPE_KEYS[role]}) cannot wait for capacity,"
                    " only machines with built-in GPUs can (a2, a3, a4, g2, g4); use one of those, or remove flexStart"
                )
        if config.servers:
            problems.append(
                "machines.flexStart: parameter servers do not wait for capacity, so they would be paid for until the"
                " GPUs come, which may take days; set trainingInput.parameterServerCount: 0, or remove flexStart"
            )
        if config.file.limits.max_hours > FLEX_HOURS:
            problems.append(
                f"limits.maxHours: found {config.file.limits.max_hours:g}, more than the {FLEX_HOURS} hours that"
                f" machines.flexStart gives; use at most {FLEX_HOURS}"
            )
    if len(ways) < 2:
        problems += way_problems(config, named)
    if machines.spot and not config.workers:
        problems.append("machines.spot: only workers can be Spot VMs, and there are none; remove it or add workers")
    if machines.reservation is not None and not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", machines.reservation):
        problems.append(f"machines.reservation: found {machines.reservation!r}, must be a reservation's name")
    return problems


def _limit_problems(config: StackConfig, fleet: Fleet) -> list[str]:
    limits, problems = config.file.limits, []
    if limits.billing_account is not None:
        if not BILLING_ACCOUNT.fullmatch(limits.billing_account):
            problems.append(
                f"limits.billingAccount: found {limits.billing_account!r}, must look like 012345-6789AB-CDEF01;"
                " `gcloud billing accounts list` shows it"
            )
        if limits.max_cost_usd is None:
            problems.append("limits.billingAccount: a budget needs limits.maxCostUsd; give it, or remove this")
    if limits.max_cost_usd is None:
        return problems
    cost = fleet.hourly
    if not cost.exact:
        problems.append(
            "limits.maxCostUsd: the price of these machines in this region is not known, so it cannot be kept;"
            " use limits.maxHours"
        )
    elif limits.max_cost_usd < cost.usd:
        problems.append(
            f"limits.maxCostUsd: found {limits.max_cost_usd:g}, less than the first hour, {cost.usd:.2f} USD; raise it"
            " or use fewer or smaller machines"
        )
    return problems


def _other_problems(config: StackConfig) -> list[str]:
    file, problems = config.file, []
    if file.image is not None and not DIGEST.fullmatch(file.image):
        problems.append(
            f"image: found {file.image!r}, must be in Artifact Registry and pinned by digest,"
            " REGION-docker.pkg.dev/...@sha256:...; `python -m scripts.build_image` prints one"
        )
    if file.notify is not None and not EMAIL.fullmatch(file.notify):
        problems.append(f"notify: found {file.notify!r}, must be an e-mail address")
    return problems
