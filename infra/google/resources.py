"""Declare everything that a run needs on Google Cloud."""

import json

import pulumi
import pulumi_gcp as gcp

from infra.fleet.deadline import kept_hours, launch_hours, termination_time
from infra.fleet.fleet import Fleet
from infra.google import availability
from infra.google.existing import find_existing
from infra.google.groups import groups, placement_policy
from infra.google.guard import Guard, Launch
from infra.google.identity import Identity
from infra.google.image import Image
from infra.google.machines import RoleGroups
from infra.google.monitoring import Alerts, MetricDescriptors
from infra.google.network import Network
from infra.google.services import Services
from infra.google.storage import Buckets
from infra.google.zones import zones_of_launch
from infra.inputs.resolve import Inputs
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.gcloud.api import GoogleApi


def declare_resources(
    config: StackConfig, fleet: Fleet, inputs: Inputs, job: JobSpec, parent: pulumi.Resource
) -> pulumi.Output[str]:
    """Declare everything that a run needs on Google Cloud, and return the bucket's address."""
    by_account = config.file.limits.billing_account is not None
    provider = gcp.Provider(
        "google",
        project=config.project,  # never the project of the login
        region=config.region,
        default_labels={"gpt2-stack": config.stack},
        # If a person is logged in, not a service account, Google wants a project that pays for questions about budgets.
        billing_project=config.project if by_account else None,
        user_project_override=True if by_account else None,
        opts=pulumi.ResourceOptions(parent=parent),
    )

    def after(*waits_for: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=parent, provider=provider, depends_on=list(waits_for))

    existing = find_existing(config, fleet, job, provider, parent)
    connect = GoogleApi if existing.asked and not existing.finished else None
    zones = zones_of_launch(config, fleet, parent, existing.launched, existing.placement, existing.left, connect)
    if not existing.asked:  # it would not answer now either
        availability.not_checked("Google could not be asked", parent)
    elif not (existing.finished or existing.expired):  # machines will be made
        availability.report(config, fleet, zones.candidates, parent)
    bootstrapped = config.file.pipeline is not None  # an owner has declared the rest in access.py
    services = Services(config, after(), enabled=bootstrapped)
    roles = [machines.role for machines in fleet.roles]
    identity = Identity(config, roles, existing.roles, after(services), by_name=bootstrapped)
    network = Network(config, identity, after(services))
    buckets = Buckets(config, inputs, job, identity, existing.buckets, after(services))
    image = Image(config, job, identity, existing.repository, after(services))
    metrics = MetricDescriptors(config, after(services))

    # A launch begins when everything else exists: its clock must not run during the upload of an image of 5 GB, and a
    # build that fails must not leave the machines of the run before without their guard.
    everything: list[pulumi.Resource] = [identity, network, image]
    declared = buckets.put(
        "job", buckets.artifacts, paths.job(job.run), _asset(job.to_json()), "application/json", everything
    )
    current = {"run": job.run, "launch": job.launch}
    # A master whose run was replaced reads this and leaves the rest to `up`; the controller no longer moves it.
    pointer = buckets.put("current", buckets.artifacts, paths.CURRENT, _asset(current), "application/json", [declared])
    hours = kept_hours(config.file.limits, fleet, existing.launched)
    written = pulumi.ResourceOptions(parent=parent, depends_on=[declared, pointer, buckets])
    launch = Launch(config, hours, zones, job, written)
    planned = groups(config, fleet, job, zones, hours)
    # More workers spend maxCostUsd earlier, which only the controller heeds: another date would be other machines.
    lasts = min(hours, launch_hours(config.file.limits, fleet))
    guard = Guard(config, job, launch, lasts, planned, identity, after(services, pointer))
    ends = launch.started.apply(lambda started: termination_time(started, hours))
    # A machine reads its image, its job and its bucket as soon as it boots, and must not run without a guard.
    ready = after(identity, network, buckets, image, launch, guard, *_placement(config, after(services)))
    machines = [
        RoleGroups(
            [group for group in planned if group.role == role.role],
            identity,
            network.subnetwork,
            image.reference,
            ends,
            existing.finished,
            existing.expired,
            ready,
        )
        for role in fleet.roles
    ]
    Alerts(config, after(metrics, *machines))
    return buckets.artifacts.name.apply(lambda name: f"gs://{name}")


def _placement(config: StackConfig, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """Declare the policy by which Google places machines close together, if the stack file asks for it."""
    if not config.file.machines.compact_placement:
        return []
    policy = gcp.compute.ResourcePolicy(
        "placement",
        name=placement_policy(config).rpartition("/")[2],
        region=config.region,
        group_placement_policy={"collocation": "COLLOCATED"},
        opts=opts,
    )
    return [policy]


def _asset(content: object) -> pulumi.StringAsset:
    """Return a file of JSON."""
    return pulumi.StringAsset(json.dumps(content, indent=2) + "\n")
