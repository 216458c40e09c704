"""What Google Cloud would refuse, found out before anything is made: one line a problem, with the fix.

Pure: nothing here asks Google. Quotas and capacity are scripts/preflight's.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from infra.fleet.catalog import ACCELERATORS, LEAST_COMPUTE_CAPABILITY, MACHINE_TYPES, ZONES, MachineType, known_zones
from infra.fleet.fleet import accelerator, attached, counts, zones
from infra.fleet.prices import hourly_cost
from infra.stack.config import StackConfig
from infra.stack.keys import Accelerator, Machines
from trainer.contract.settings import TYPE_KEYS

PROVIDER_KEYS = {"project", "region"}
FAMILIES = {name.partition("-")[0] for name in MACHINE_TYPES}
STACK_NAME = re.compile(r"[a-z]([a-z0-9-]{0,14}[a-z0-9])?")  # gpt2-<stack>-master is an account's id: 30 at most
PROJECT_ID = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
# Machines log in where their account's token counts, and have no way to other registries.
DIGEST = re.compile(r"[a-z0-9-]+-docker\.pkg\.dev/[a-z0-9._/-]+@sha256:[0-9a-f]{64}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
BILLING_ACCOUNT = re.compile(r"[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}")
FLEX_HOURS = 168  # 7 days are Google's most
# Google gives parts of an H100 machine as Spot or flex-start only, and a master is neither unless it waits.
WAITING_ONLY = ("a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g")


def stack_problems(config: StackConfig) -> list[str]:
    """Everything about the stack that Google would refuse, each line starting with the full key."""
    names = _name_problems(config)
    region = _region_problems(config)
    own = _machine_problems(config)
    if not own and not region:  # the rest would follow from these
        own = _zone_problems(config) + _limit_problems(config)
    own += _capacity_problems(config.file.machines, config) + _other_problems(config)
    if not own and config.file.parallel.parallelism == "fsdp" and (found := accelerator(config, "master")[1]) < 2:
        own.append(
            f"parallel.parallelism: fsdp shares a model among the GPUs of one machine, and the master has {found}; use"
            " machines.accelerator.count 2 or more, or a masterType with several built in, for example a2-highgpu-2g"
        )
    return names + region + [f"gpt2-training:{problem}" for problem in own]


def _name_problems(config: StackConfig) -> list[str]:
    problems = project_problems(config.provider, config.stack)
    if not STACK_NAME.fullmatch(config.stack):
        problems.append(
            f"stack {config.stack}: on Google Cloud a stack's name is at most 16 small letters, digits and hyphens,"
            " starts with a letter and does not end with a hyphen; choose another"
        )
    for key in config.provider.keys() - PROVIDER_KEYS:
        if not _misspelt(key):
            problems.append(
                f"gcp:{key}: has no effect here, only project and region do; remove it (to act as an account:"
                " `gcloud auth application-default login --impersonate-service-account`)"
            )
    return problems


def project_problems(provider: Mapping[str, Any], stack: str) -> list[str]:
    """What is wrong with the project and, as it may be the project, with misspelt keys of gcp."""
    misspelt = {key: meant for key in sorted(provider.keys() - PROVIDER_KEYS) if (meant := _misspelt(key))}
    problems = [f"gcp:{key}: unknown key; did you mean gcp:{meant}?" for key, meant in misspelt.items()]
    project = provider.get("project")
    if project in (None, ""):
        if "project" not in misspelt.values():
            problems.append(f"gcp:project: missing; run `pulumi config set gcp:project YOUR-PROJECT --stack {stack}`")
    elif not PROJECT_ID.fullmatch(str(project)):
        problems.append(
            f"gcp:project: found {str(project)!r}, must be a project's id (6 to 30 small letters, digits, hyphens;"
            " neither its number nor its name); `gcloud projects list` shows them"
        )
    return problems


def _misspelt(key: str) -> str:
    """The key of gcp that was meant; empty if none is near."""
    return next(iter(difflib.get_close_matches(key, PROVIDER_KEYS, n=1, cutoff=0.75)), "")


def _region_problems(config: StackConfig) -> list[str]:
    region = config.region
    close = difflib.get_close_matches(region.lower(), ZONES, n=1, cutoff=0.85)
    hint = f"; did you mean {close[0]}?" if close else ""
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+", region):
        return [f"gcp:region: found {region!r}, must be a region such as us-central1{hint}"]
    if close and region not in ZONES and not config.file.machines.zones:
        return [f"gcp:region: found {region!r}, which is not in our table{hint} If not, name machines.zones"]
    return []


def _machine_problems(config: StackConfig) -> list[str]:
    problems: list[str] = []
    named = config.file.training_input.machine_types()
    wanted = attached(config)
    for role in counts(config):
        key, name = f"trainingInput.{TYPE_KEYS[role]}", named[role]
        if not name:
            problems.append(f"{key}: missing; give a machine type, for example n1-highmem-16")
        elif name not in MACHINE_TYPES:
            problems.append(f"{key}: unknown machine type {name!r}; {_close_machine(name)}")
        elif wanted is not None and role != "ps":
            problems += _accelerator_problems(key, MACHINE_TYPES[name], wanted)
    if wanted is not None and wanted.type in ACCELERATORS:
        problems += _image_problems(config, wanted)
    return list(dict.fromkeys(problems))


def _accelerator_problems(key: str, machine: MachineType, wanted: Accelerator) -> list[str]:
    where = "machines.accelerator"
    if wanted.type not in ACCELERATORS:
        names = [a.name for a in ACCELERATORS.values() if a.attachable]
        return [f"{where}.type: unknown accelerator {wanted.type!r}; {_close(wanted.type, names)}"]
    if machine.accelerators:
        return [f"{where}: {machine.name} has {machine.accelerators} x {machine.accelerator} built in; remove it"]
    model = ACCELERATORS[wanted.type]
    if not model.attachable:
        fitting = ", ".join(m.name for m in MACHINE_TYPES.values() if m.accelerator == model.name)
        return [f"{where}.type: {model.name} is built into machines; remove it and use {key}: one of {fitting}"]
    fits = [n for n, (cpus, gb) in model.most.items() if machine.vcpus <= cpus and machine.memory_gb <= gb]
    if wanted.count in fits:
        return []
    fix = f"use count {' or '.join(map(str, fits))}" if fits else "use a smaller machine type"
    return [
        (
            f"{where}.count: {wanted.count} x {model.name} cannot be attached to {machine.name}"
            f" ({machine.vcpus} vCPUs, {machine.memory_gb:g} GB; {key}); {fix}"
        )
    ]


def _image_problems(config: StackConfig, wanted: Accelerator) -> list[str]:
    model = ACCELERATORS[wanted.type]
    if config.file.image is not None or model.compute_capability >= LEAST_COMPUTE_CAPABILITY:
        return []
    return [
        (
            f"machines.accelerator.type: {model.name} has compute capability {model.compute_capability:g}, and the"
            f" image's PyTorch (CUDA 13) starts at {LEAST_COMPUTE_CAPABILITY:g}; use nvidia-tesla-t4, or pin an image"
            " with PyTorch for CUDA 12.6 as gpt2-training:image"
        )
    ]


def _zone_problems(config: StackConfig) -> list[str]:
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
    for role in counts(config):
        model = accelerator(config, role)[0]
        here = known_zones(config.region, model)
        what = model or str(config.file.training_input.machine_types()[role])
        if here is None and not given:
            return [
                (
                    f"machines.zones: missing; region {config.region} is not in our table, so name zones that have"
                    f" {what}: `gcloud compute {'accelerator' if model else 'machine'}-types list"
                    f" --filter=name={what}` shows them"
                )
            ]
        for zone in given:
            if here is not None and zone not in here:
                there = f"use {', '.join(here)}" if here else "use another region or accelerator"
                problems.append(f"machines.zones: {zone} has no {what}; {there}")
    if not given and not zones(config):
        problems.append(f"machines.zones: no zone of {config.region} has all the accelerators asked for; use others")
    return problems


def _capacity_problems(machines: Machines, config: StackConfig) -> list[str]:
    problems = []
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
        for role in ("master", "worker"):
            name = config.file.training_input.machine_types()[role]
            machine = MACHINE_TYPES.get(str(name))
            if machine is not None and not machine.accelerators and role in counts(config):
                problems.append(
                    f"machines.flexStart: {machine.name} (trainingInput.{TYPE_KEYS[role]}) cannot wait for capacity,"
                    " only machines with built-in GPUs can (a2, a3, g2); use one of those, or remove flexStart"
                )
        if config.file.limits.max_hours > FLEX_HOURS:
            problems.append(
                f"limits.maxHours: found {config.file.limits.max_hours:g}, more than the {FLEX_HOURS} hours that"
                f" machines.flexStart gives; use at most {FLEX_HOURS}"
            )
    else:
        for role in counts(config):
            name = config.file.training_input.machine_types()[role]
            if name in WAITING_ONLY and machines.reservation is None:
                problems.append(
                    f"trainingInput.{TYPE_KEYS[role]}: {name} is not to be had on demand; set machines.flexStart: true,"
                    " or use a3-highgpu-8g"
                )
    if machines.spot and not config.workers:
        problems.append("machines.spot: only workers can be Spot VMs, and there are none; remove it or add workers")
    if machines.reservation is not None and not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", machines.reservation):
        problems.append(f"machines.reservation: found {machines.reservation!r}, must be a reservation's name")
    return problems


def _limit_problems(config: StackConfig) -> list[str]:
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
    cost = hourly_cost(config)
    if cost is None:
        problems.append(
            "limits.maxCostUsd: the price of these machines in this region is not known, so it cannot be kept;"
            " use limits.maxHours"
        )
    elif limits.max_cost_usd < cost:
        problems.append(
            f"limits.maxCostUsd: found {limits.max_cost_usd:g}, less than the first hour, {cost:.2f} USD; raise it or"
            " use fewer or smaller machines"
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
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", file.machines.image_family):
        problems.append(f"machines.imageFamily: found {file.machines.image_family!r}, must be an image family's name")
    return problems


def _close_machine(name: str) -> str:
    """Only within its family: the nearest name of another may be a machine of quite another price."""
    family = name.lower().partition("-")[0]
    if family not in FAMILIES:
        return "known are N1 and, with GPUs built in, G2, A2 and A3; for example n1-standard-4 or g2-standard-8"
    mine = [known for known in MACHINE_TYPES if known.startswith(f"{family}-")]
    close = difflib.get_close_matches(name.lower(), mine, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"for example {mine[0]} or {mine[-1]}"


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
