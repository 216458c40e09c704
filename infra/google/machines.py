"""Machines: an instance template and a managed instance group for each role, all in one zone.

A group never changes but for its size: its name has a hash of run, launch and template, so another run has another
group, made when the old one is gone. That keeps a finished run at size zero and a running one untouched. Google
replaces a preempted or broken VM under the same name; there is no health check, as a GPU machine's start takes long.
"""

import pulumi
from pulumi_gcp import compute

from infra.google.groups import Group, Template
from infra.google.identity import Identity


class MachineGroup(pulumi.ComponentResource):
    """An instance template and a managed instance group for one role."""

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
        """Declare the machines of a role.

        Args:
            group: the role's machines, as the stack file decides them.
            identity: the accounts of all roles.
            subnetwork: the subnet that the machines are in.
            image: the container image that they run, by digest.
            ends: when Google ends each VM, in RFC 3339.
            finished: the run has nothing left to do in this launch.
            expired: the time of this launch is over.
            opts: the parent, and everything that a machine needs when it boots.
        """
        super().__init__("gpt2-training:google:Machines", group.role, {}, opts)
        settings = group.template
        arguments: Template = {**settings, "metadata": {**settings["metadata"], "gpt2-image": image}}
        if not group.flex_start:
            arguments["scheduling"] = {**settings["scheduling"], "termination_time": ends}
        # Newer machine types need gVNIC, and N1 is faster with it than with VirtIO.
        interface: compute.RegionInstanceTemplateNetworkInterfaceArgsDict = {
            "subnetwork": subnetwork,
            "nic_type": "GVNIC",
        }
        template = compute.RegionInstanceTemplate(
            f"{group.role}-template",
            **arguments,
            network_interfaces=[interface],
            service_account={"email": identity.machines[group.role].email, "scopes": ["cloud-platform"]},
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
            wait_for_instances=False,  # a stock-out is no failure of `up`: watch reports it
            opts=pulumi.ResourceOptions(
                parent=self,
                delete_before_replace=True,  # old machines go first, as the quota may not be enough for both
                # A finished run has resized its groups itself, without Pulumi.
                ignore_changes=["targetSize"] if finished or group.flex_start else None,
            ),
        )
        if group.flex_start and not over:
            compute.RegionResizeRequest(
                f"{group.role}-request",
                name=group.name,
                region=settings["region"],
                instance_group_manager=manager.name,
                resize_by=group.count,
                requested_run_duration={"seconds": str(group.run_seconds)},
                opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
            )
        self.register_outputs({})
