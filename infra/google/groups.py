"""Describe the managed instance groups of a run as data; machines.py declares them."""

from __future__ import annotations  # the types of pulumi_gcp take long to import, and only mypy needs them

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from infra.fleet.deadline import HOUR
from infra.fleet.fleet import Fleet, RoleMachines
from infra.google.controller import job_path
from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec, Role

if TYPE_CHECKING:
    import pulumi
    from pulumi_gcp import compute

BOOT = Path(__file__).with_name("boot.sh")
IMAGE_PROJECT = "deeplearning-platform-release"
NOTICE = 120  # seconds of warning before Google takes a Spot VM


class Template(TypedDict):
    """Arguments of compute.RegionInstanceTemplate that the stack file decides."""

    region: str
    machine_type: str
    description: str
    disks: list[compute.RegionInstanceTemplateDiskArgsDict]
    scheduling: compute.RegionInstanceTemplateSchedulingArgsDict
    shielded_instance_config: compute.RegionInstanceTemplateShieldedInstanceConfigArgsDict
    metadata: dict[str, pulumi.Input[str]]
    labels: dict[str, pulumi.Input[str]]
    guest_accelerators: NotRequired[list[compute.RegionInstanceTemplateGuestAcceleratorArgsDict]]
    reservation_affinity: NotRequired[compute.RegionInstanceTemplateReservationAffinityArgsDict]


@dataclass(frozen=True)
class Group:
    """The managed instance group of a role, as far as it is known before anything is made."""

    role: Role
    name: str
    count: int
    zone: str
    flex_start: bool
    run_seconds: int  # how long a machine may run
    required: int  # the fewest running machines with which the run takes a step
    template: Template  # machines.py adds what other resources decide


def groups(config: StackConfig, fleet: Fleet, job: JobSpec) -> list[Group]:
    """Describe the groups of a run, master first."""
    return [_group(config, fleet, job, machines) for machines in fleet.roles]


def _group(config: StackConfig, fleet: Fleet, job: JobSpec, machines: RoleMachines) -> Group:
    role, count, flex, zone = machines.role, machines.count, machines.flex_start, fleet.launch_zone(job.launch)
    template = template_arguments(config, job, machines)
    # A change of any of these is another group; the number of machines is not among them.
    limits = config.file.limits
    identity = [job.run, job.launch, zone, limits.max_hours, limits.max_cost_usd, template]
    if flex:
        identity.append(count)  # a request for capacity only adds machines, so another number is another group
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    required = config.file.training_input.min_workers if role == "worker" else count
    return Group(role, f"{config.stack}-{role}-{digest}", count, zone, flex, _run_seconds(config), required, template)


def template_arguments(config: StackConfig, job: JobSpec, machines: RoleMachines) -> Template:
    """Return the machines of a role, as far as the stack file decides them."""
    role, number = machines.role, machines.accelerators
    settings = config.file.machines
    metadata: dict[str, pulumi.Input[str]] = {
        "startup-script": BOOT.read_text(encoding="utf-8"),
        "enable-oslogin": "TRUE",
        "block-project-ssh-keys": "TRUE",
        "gpt2-bucket": config.bucket,
        "gpt2-run": job.run,
        "gpt2-launch": str(job.launch),
        "gpt2-role": role,
        "gpt2-stack": config.stack,
        "gpt2-gpus": str(number),
    }
    if number:
        metadata["install-nvidia-driver"] = "True"
    if role == "master":
        metadata["gpt2-controller"] = job_path(config, job)
    arguments: Template = {
        "region": config.region,
        "machine_type": machines.machine.name,
        "description": f"{role} of run {job.run}",
        "disks": [
            {
                "source_image": f"projects/{IMAGE_PROJECT}/global/images/family/{settings.image_family}",
                "boot": True,
                "auto_delete": True,
                "disk_size_gb": settings.boot_disk_gb,
                "disk_type": "pd-balanced",
            }
        ],
        "scheduling": scheduling(config, machines),
        # NVIDIA's driver modules are not signed, so machines with a GPU boot without secure boot.
        "shielded_instance_config": {
            "enable_secure_boot": not number,
            "enable_vtpm": True,
            "enable_integrity_monitoring": True,
        },
        "metadata": metadata,
        "labels": {"role": role, "run": job.run, "launch": str(job.launch)},
    }
    if machines.attached:
        arguments["guest_accelerators"] = [{"type": machines.accelerator, "count": number}]
    if settings.reservation is not None and role != "ps":
        arguments["reservation_affinity"] = {
            "type": "SPECIFIC_RESERVATION",
            "specific_reservation": {
                "key": "compute.googleapis.com/reservation-name",
                "values": [settings.reservation],
            },
        }
    elif machines.flex_start:
        arguments["reservation_affinity"] = {"type": "NO_RESERVATION"}
    return arguments


def scheduling(config: StackConfig, machines: RoleMachines) -> compute.RegionInstanceTemplateSchedulingArgsDict:
    """Return how Google may treat a machine, exactly as Google accepts it; machines.py adds termination_time."""
    common: compute.RegionInstanceTemplateSchedulingArgsDict = {
        "automatic_restart": False,  # the group replaces it
        "instance_termination_action": "DELETE",
        "on_host_maintenance": "TERMINATE" if machines.accelerators or machines.spot else "MIGRATE",
    }
    if machines.spot:
        return {
            **common,
            "provisioning_model": "SPOT",
            "preemptible": True,
            "preemption_notice_duration": {"seconds": NOTICE},
        }
    if machines.flex_start:
        return {
            **common,
            "provisioning_model": "FLEX_START",
            "preemptible": False,
            "max_run_duration": {"seconds": _run_seconds(config)},
        }
    return {**common, "provisioning_model": "STANDARD", "preemptible": False}


def _run_seconds(config: StackConfig) -> int:
    """Return how long Google lets a flex-start machine run."""
    return int(config.file.limits.max_hours * HOUR)
