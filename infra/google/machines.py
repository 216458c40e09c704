"""Machines: an instance template and a managed instance group for each role, all in one zone.

A group never changes but for its size: its name has a hash of run, launch and template, so another run is another
group, made when the old one is gone. That keeps a finished run at size zero and a running one untouched. Google makes a
preempted or broken VM anew under the same name; there is no health check, as a GPU machine's start takes long.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi_gcp import compute

from infra.config import StackConfig
from infra.google.deadline import HOUR
from infra.google.identity import Identity
from infra.google.rules import accelerator, counts, machine_type, zones
from infra.prices import is_spot
from trainer.spec import JobSpec, Role

BOOT = Path(__file__).with_name("boot.sh")
IMAGE_PROJECT = "deeplearning-platform-release"
NOTICE = 120  # seconds of warning before a Spot VM is taken


@dataclass(frozen=True)
class Group:
    """What is known of a role's machines before anything is made."""

    role: Role
    name: str
    count: int
    zone: str
    flex_start: bool
    deadline: str  # the scheduler job that resizes it to zero
    template: dict[str, Any]  # arguments of the template; those that others make are added to it

    def resize_url(self, config: StackConfig) -> str:
        return (
            f"https://compute.googleapis.com/compute/v1/projects/{config.project}/regions/{config.region}"
            f"/instanceGroupManagers/{self.name}/resize?size=0"
        )


def groups(config: StackConfig, job: JobSpec) -> list[Group]:
    """The groups of a run, master first."""
    return [_group(config, job, role, count) for role, count in counts(config).items()]


def _group(config: StackConfig, job: JobSpec, role: Role, count: int) -> Group:
    places = zones(config)
    zone = places[(job.launch - 1) % len(places)]
    flex = config.file.machines.flex_start and bool(accelerator(config, role)[1])
    template = template_arguments(config, job, role)
    # All that makes it another group; the number of its machines does not, nor what is known only when it is made.
    identity = [job.run, job.launch, zone, config.file.limits.max_hours, template]
    if flex:
        identity.append(count)  # a request for capacity adds machines: another number is another group
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    deadline = f"gpt2-{config.stack}-{role}-deadline"
    return Group(role, f"{config.stack}-{role}-{digest}", count, zone, flex, deadline, template)


def template_arguments(config: StackConfig, job: JobSpec, role: Role) -> dict[str, Any]:
    """What a machine of a role is, as far as the stack file says."""
    machine, (model, number) = machine_type(config, role), accelerator(config, role)
    settings = config.file.machines
    metadata = {
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
        metadata["gpt2-scale-down"] = ",".join(_jobs(config))
    arguments: dict[str, Any] = {
        "region": config.region,
        "machine_type": machine.name,
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
        "scheduling": scheduling(config, role),
        # NVIDIA's driver modules are not signed, so no secure boot where there is a GPU.
        "shielded_instance_config": {
            "enable_secure_boot": not number,
            "enable_vtpm": True,
            "enable_integrity_monitoring": True,
        },
        "metadata": metadata,
        "labels": {"role": role, "run": job.run, "launch": str(job.launch)},
    }
    if number and not machine.accelerators:
        arguments["guest_accelerators"] = [{"type": model, "count": number}]
    if settings.reservation is not None and role != "ps":
        key = "compute.googleapis.com/reservation-name"
        specific = {"key": key, "values": [settings.reservation]}
        arguments["reservation_affinity"] = {"type": "SPECIFIC_RESERVATION", "specific_reservation": specific}
    elif config.file.machines.flex_start and number:
        arguments["reservation_affinity"] = {"type": "NO_RESERVATION"}
    return arguments


def scheduling(config: StackConfig, role: Role) -> dict[str, Any]:
    """How Google may treat a machine; exactly what it accepts (termination_time is added where it is known)."""
    gpus = accelerator(config, role)[1]
    common = {
        "automatic_restart": False,  # the group makes it anew
        "instance_termination_action": "DELETE",
        "on_host_maintenance": "TERMINATE" if gpus or is_spot(config, role) else "MIGRATE",
    }
    if is_spot(config, role):
        notice = {"seconds": NOTICE}
        return {**common, "provisioning_model": "SPOT", "preemptible": True, "preemption_notice_duration": notice}
    if config.file.machines.flex_start and gpus:
        limit = {"seconds": int(config.file.limits.max_hours * HOUR)}
        return {**common, "provisioning_model": "FLEX_START", "preemptible": False, "max_run_duration": limit}
    return {**common, "provisioning_model": "STANDARD", "preemptible": False}


def _jobs(config: StackConfig) -> list[str]:
    """Full names of the scheduler's jobs in the order in which the master runs them: its own last."""
    roles = [role for role in ("worker", "ps", "master") if role in counts(config)]
    start = f"projects/{config.project}/locations/{config.region}/jobs"
    return [f"{start}/gpt2-{config.stack}-{role}-deadline" for role in roles]


class Machines(pulumi.ComponentResource):
    """A template and a group for one role."""

    def __init__(
        self,
        group: Group,
        identity: Identity,
        subnetwork: pulumi.Input[str],
        image: pulumi.Input[str],
        ends: pulumi.Input[str],
        finished: bool,
        expired: bool,
        opts: pulumi.ResourceOptions,
    ):
        """ends: RFC 3339, when Google ends each VM; finished, expired: see infra.google.found.Found."""
        super().__init__("gpt2-training:google:Machines", group.role, {}, opts)
        known = group.template
        schedule = known["scheduling"] if group.flex_start else {**known["scheduling"], "termination_time": ends}
        built_in = "guest_accelerators" not in known and known["machine_type"][:2] != "n1"
        interface: dict[str, Any] = {"subnetwork": subnetwork}
        if built_in:
            interface["nic_type"] = "GVNIC"  # the newer machines want it
        template = compute.RegionInstanceTemplate(
            f"{group.role}-template",
            **{
                **known,
                "scheduling": schedule,
                "metadata": {**known["metadata"], "gpt2-image": image},
                "network_interfaces": [interface],
                "service_account": {"email": identity.machines[group.role].email, "scopes": ["cloud-platform"]},
            },
            opts=pulumi.ResourceOptions(parent=self),
        )
        over = finished or expired
        size = 0 if over or group.flex_start else group.count
        manager = compute.RegionInstanceGroupManager(
            f"{group.role}-group",
            name=group.name,
            base_instance_name=group.name,
            target_size=size,
            versions=[{"instance_template": template.self_link}],
            distribution_policy_zones=[group.zone],
            distribution_policy_target_shape="ANY_SINGLE_ZONE",
            update_policy={
                "type": "OPPORTUNISTIC",  # a changed template never ends a machine that trains
                "minimal_action": "REPLACE",
                "replacement_method": "RECREATE",
                "instance_redistribution_type": "NONE",
                "max_surge_fixed": 0,
                "max_unavailable_fixed": 1,
            },
            instance_lifecycle_policy={
                "default_action_on_failure": "DO_NOTHING" if group.flex_start else "REPAIR",
                "force_update_on_repair": "YES",
                "on_failed_health_check": "DO_NOTHING",
            },
            wait_for_instances=False,  # a stock-out is no failure of `up`: watch tells it
            opts=pulumi.ResourceOptions(
                parent=self,
                delete_before_replace=True,  # old machines go first, so that the quota is enough for both
                # A finished run has resized its groups itself, behind our back.
                ignore_changes=["targetSize"] if finished or group.flex_start else None,
            ),
        )
        if group.flex_start and not over:
            compute.RegionResizeRequest(
                f"{group.role}-request",
                name=group.name,
                region=known["region"],
                instance_group_manager=manager.name,
                resize_by=group.count,
                requested_run_duration={"seconds": str(schedule["max_run_duration"]["seconds"])},
                opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
            )
        self.register_outputs({})
