"""Machines: an instance template for each role, and a managed instance group in each zone where the run may be.

A group never changes but for its size: its name has a hash of run, launch and template, so another run has another
group, made when the old one is gone. That keeps a finished run at size zero and a running one untouched. Google
replaces a preempted or broken VM under the same name; there is no health check, as a GPU machine's start takes long.
"""

import pulumi
from pulumi_gcp import compute

from infra.google.groups import Group, Template, group_resource
from infra.google.identity import Identity


class RoleGroups(pulumi.ComponentResource):
    """An instance template for one role, and its groups: those of one zone have machines."""

    def __init__(
        self,
        groups: list[Group],
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
            groups: the role's machines in each zone, as the stack file decides them.
            identity: the accounts of all roles.
            subnetwork: the subnet that the machines are in.
            image: the container image that they run, by digest.
            ends: when Google ends each VM, in RFC 3339.
            finished: the run has nothing left to do in this launch.
            expired: the time of this launch is over.
            opts: the parent, and everything that a machine needs when it boots.
        """
        role, settings = groups[0].role, groups[0].template
        super().__init__("gpt2-training:google:Machines", role, {}, opts)
        arguments: Template = {**settings, "metadata": {**settings["metadata"], "gpt2-image": image}}
        if not groups[0].flex_start:
            arguments["scheduling"] = {**settings["scheduling"], "termination_time": ends}
        # Newer machine types need gVNIC, and N1 is faster with it than with VirtIO.
        interface: compute.RegionInstanceTemplateNetworkInterfaceArgsDict = {
            "subnetwork": subnetwork,
            "nic_type": "GVNIC",
        }
        template = compute.RegionInstanceTemplate(
            f"{role}-template",
            **arguments,
            network_interfaces=[interface],
            service_account={"email": identity.machines[role].email, "scopes": ["cloud-platform"]},
            opts=pulumi.ResourceOptions(parent=self),
        )
        for group in groups:
            self._group(group, template, finished, expired)
        self.register_outputs({})

    def _group(self, group: Group, template: compute.RegionInstanceTemplate, finished: bool, expired: bool) -> None:
        one_zone = len(group.zones) == 1
        lifecycle: compute.RegionInstanceGroupManagerInstanceLifecyclePolicyArgsDict = {
            "default_action_on_failure": "DO_NOTHING" if group.flex_start else "REPAIR",
            "force_update_on_repair": "YES",
            "on_failed_health_check": "DO_NOTHING",
        }
        if not (one_zone or group.flex_start):  # a flex-start machine is not repaired at all
            lifecycle["on_repair"] = {"allow_changing_zone": "YES"}
        compute.RegionInstanceGroupManager(
            group_resource(group.role, group.zone),
            name=group.name,
            base_instance_name=group.name,
            target_size=0 if finished or expired else group.target,
            versions=[{"instance_template": template.self_link}],
            distribution_policy_zones=list(group.zones),
            distribution_policy_target_shape="ANY_SINGLE_ZONE" if one_zone else "ANY",
            update_policy={
                "type": "OPPORTUNISTIC",  # a changed template never ends a machine that trains
                "minimal_action": "REPLACE",
                "replacement_method": "RECREATE",
                "instance_redistribution_type": "NONE",
                "max_surge_fixed": 0,
                "max_unavailable_fixed": len(group.zones),  # Google takes no fewer, but 0
            },
            instance_lifecycle_policy=lifecycle,
            wait_for_instances=False,  # a stock-out is no failure of `up`: watch reports it
            opts=pulumi.ResourceOptions(
                parent=self,
                delete_before_replace=True,  # old machines go first, as the quota may not be enough for both
                # A finished run has resized its groups itself, without Pulumi.
                ignore_changes=["targetSize"] if finished else None,
            ),
        )
