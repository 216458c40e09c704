"""Describe the managed instance groups of a run as data; machines.py declares them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.fleet.deadline import HOUR
from infra.fleet.fleet import Fleet, RoleMachines
from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec, Role

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


def groups(config: StackConfig, fleet: Fleet, job: JobSpec) -> list[Group]:
    """Describe the groups of a run, master first."""
    return [_group(config, fleet, job, machines) for machines in fleet.roles]


def _group(config: StackConfig, fleet: Fleet, job: JobSpec, machines: RoleMachines) -> Group:
    role, count, flex, zone = machines.role, machines.count, machines.flex_start, fleet.launch_zone(job.launch)
    template = template_arguments(config, fleet, job, machines)
    # All that makes it another group; the number of its machines does not, nor what is known only when it is made.
    identity = [job.run, job.launch, zone, config.file.limits.max_hours, template]
    if flex:
        identity.append(count)  # a request for capacity adds machines: another number is another group
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    deadline = f"gpt2-{config.stack}-{role}-deadline"
    return Group(role, f"{config.stack}-{role}-{digest}", count, zone, flex, deadline, template)


def template_arguments(config: StackConfig, fleet: Fleet, job: JobSpec, machines: RoleMachines) -> dict[str, Any]:
    """Return what the stack file says of a role's machines, as arguments of their template."""
    role, number = machines.role, machines.accelerators
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
        metadata["gpt2-scale-down"] = ",".join(_jobs(config, fleet))
    arguments: dict[str, Any] = {
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
        # NVIDIA's driver modules are not signed, so no secure boot where there is a GPU.
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
        key = "compute.googleapis.com/reservation-name"
        specific = {"key": key, "values": [settings.reservation]}
        arguments["reservation_affinity"] = {"type": "SPECIFIC_RESERVATION", "specific_reservation": specific}
    elif machines.flex_start:
        arguments["reservation_affinity"] = {"type": "NO_RESERVATION"}
    return arguments


def scheduling(config: StackConfig, machines: RoleMachines) -> dict[str, Any]:
    """Return how Google may treat a machine, only with keys that it accepts; termination_time is added later."""
    common = {
        "automatic_restart": False,  # the group makes it anew
        "instance_termination_action": "DELETE",
        "on_host_maintenance": "TERMINATE" if machines.accelerators or machines.spot else "MIGRATE",
    }
    if machines.spot:
        notice = {"seconds": NOTICE}
        return {**common, "provisioning_model": "SPOT", "preemptible": True, "preemption_notice_duration": notice}
    if machines.flex_start:
        limit = {"seconds": int(config.file.limits.max_hours * HOUR)}
        return {**common, "provisioning_model": "FLEX_START", "preemptible": False, "max_run_duration": limit}
    return {**common, "provisioning_model": "STANDARD", "preemptible": False}


def _jobs(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return the full names of the scheduler's jobs in the order in which the master runs them: its own last."""
    roles = [machines.role for machines in (*fleet.roles[1:], fleet.master)]
    start = f"projects/{config.project}/locations/{config.region}/jobs"
    return [f"{start}/gpt2-{config.stack}-{role}-deadline" for role in roles]
