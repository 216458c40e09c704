"""Describe the managed instance groups of a run as data; machines.py declares them."""

from __future__ import annotations  # the types of pulumi_gcp take long to import, and only mypy needs them

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from infra.fleet.boot_image import CONTAINER_OPTIMIZED, DEEP_LEARNING, image_project
from infra.fleet.deadline import HOUR
from infra.fleet.fleet import Fleet, RoleMachines
from infra.google.controller import job_path
from infra.google.zones import LaunchZones
from infra.inputs import docker
from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec, Role

if TYPE_CHECKING:
    import pulumi
    from pulumi_gcp import compute

BOOT = Path(__file__).with_name("boot.sh")
HYPERDISK_IOPS, HYPERDISK_THROUGHPUT = 3000, 140  # IOPS and MiB/s that a Hyperdisk has at no charge
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
    resource_policies: NotRequired[str]


@dataclass(frozen=True)
class Group:
    """A managed instance group of a role, as far as it is known before anything is made."""

    role: Role
    name: str
    zones: tuple[str, ...]  # one, unless the run has one machine, which may be in any of them
    count: int  # of machines, if the run is in this zone
    current: bool  # whether the run is in this zone
    required: int  # the fewest running machines with which the run takes a step
    flex_start: bool
    template: Template  # machines.py adds what other resources decide

    @property
    def zone(self) -> str:
        """The zone of the group; empty if it spans several."""
        return self.zones[0] if len(self.zones) == 1 else ""

    @property
    def target(self) -> int:
        """The number of machines that the group should have."""
        return self.count if self.current else 0


def groups(config: StackConfig, fleet: Fleet, job: JobSpec, zones: LaunchZones, hours: float) -> list[Group]:
    """Describe the groups of a run, role by role, master first; the groups of a role in the order of the zones.

    hours: how long a machine that waited for capacity may run.
    """
    described = []
    for machines in fleet.roles:
        template = template_arguments(config, job, machines, hours)
        described += _role_groups(config, job, zones, machines, template)
    return described


def group_resource(role: Role, zone: str) -> str:
    """Return Pulumi's name of a group. It begins with the role. zone: empty if the group spans several."""
    return f"{role}-{zone}-group" if zone else f"{role}-group"


def _role_groups(
    config: StackConfig, job: JobSpec, zones: LaunchZones, machines: RoleMachines, template: Template
) -> list[Group]:
    role = machines.role
    described = []
    for group_zones in [(zone,) for zone in zones.candidates] if zones.current else [zones.candidates]:
        # A change of any of these is another group; the number of machines is not among them.
        limits = config.file.limits
        identity = [job.run, job.launch, group_zones, limits.max_hours, limits.max_cost_usd, template]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        described.append(
            Group(
                role=role,
                name=f"{config.stack}-{role}-{digest}",
                zones=group_zones,
                count=machines.count,
                current=zones.current in ("", *group_zones),
                required=config.file.training_input.min_workers if role == "worker" else machines.count,
                flex_start=machines.flex_start,
                template=template,
            )
        )
    return described


def template_arguments(config: StackConfig, job: JobSpec, machines: RoleMachines, hours: float) -> Template:
    """Return the machines of a role, as far as the stack file decides them."""
    role, number = machines.role, machines.accelerators
    settings = config.file.machines
    image_family, project = settings.image_family, image_project(settings.image_family)
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
    if project == CONTAINER_OPTIMIZED:
        metadata["cos-update-strategy"] = "update_disabled"  # a machine lives for days, and boots what was tested
    if docker.needs_archive(config):
        metadata |= {"gpt2-docker": f"{config.data_bucket}/{docker.PATH}", "gpt2-docker-sha256": docker.SHA256}
    if project == DEEP_LEARNING and number:
        metadata["install-nvidia-driver"] = "True"  # has no effect on images that have the driver
    if role == "master":
        metadata["gpt2-controller"] = job_path(config, job)
    boot_disk: compute.RegionInstanceTemplateDiskArgsDict = {
        "source_image": f"projects/{project}/global/images/family/{image_family}",
        "boot": True,
        "auto_delete": True,
        "disk_size_gb": settings.boot_disk_gb,
        "disk_type": machines.machine.disk,
    }
    if machines.machine.disk == "hyperdisk-balanced":  # Google's default is more, and what is more costs
        boot_disk |= {"provisioned_iops": HYPERDISK_IOPS, "provisioned_throughput": HYPERDISK_THROUGHPUT}
    arguments: Template = {
        "region": config.region,
        "machine_type": machines.machine.name,
        "description": f"{role} of run {job.run}",
        "disks": [boot_disk],
        "scheduling": scheduling(machines, hours),
        # Container-Optimized OS signs NVIDIA's driver modules. On other images they are unsigned, and secure boot
        # would refuse them.
        "shielded_instance_config": {
            "enable_secure_boot": project == CONTAINER_OPTIMIZED or not number,
            "enable_vtpm": True,
            "enable_integrity_monitoring": True,
        },
        "metadata": metadata,
        "labels": {"role": role, "run": job.run, "launch": str(job.launch)},
    }
    if settings.compact_placement:
        arguments["resource_policies"] = placement_policy(config)
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


def placement_policy(config: StackConfig) -> str:
    """Return the full name of the policy by which Google places machines close together."""
    return f"projects/{config.project}/regions/{config.region}/resourcePolicies/gpt2-{config.stack}"


def scheduling(machines: RoleMachines, hours: float) -> compute.RegionInstanceTemplateSchedulingArgsDict:
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
        # Google gives it no date, as nobody knows when it comes; it runs for as long from then.
        return {
            **common,
            "provisioning_model": "FLEX_START",
            "preemptible": False,
            "max_run_duration": {"seconds": int(hours * HOUR)},
        }
    return {**common, "provisioning_model": "STANDARD", "preemptible": False}
