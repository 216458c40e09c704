"""What `platform: google` stands up for a run."""

import json

import pulumi
import pulumi_gcp as gcp

from infra.fleet.deadline import termination_time
from infra.fleet.fleet import Fleet
from infra.google import availability
from infra.google.existing import look
from infra.google.groups import groups
from infra.google.guard import Guard, Launch
from infra.google.identity import Identity
from infra.google.image import Image
from infra.google.machines import Machines
from infra.google.monitoring import Alerts, Metrics
from infra.google.network import Network
from infra.google.pipeline import Pipeline
from infra.google.services import Services
from infra.google.storage import Storage
from infra.inputs.resolve import Inputs
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec


def stand_up(
    config: StackConfig, fleet: Fleet, inputs: Inputs, job: JobSpec, parent: pulumi.Resource
) -> pulumi.Output[str]:
    """Declare everything that a run needs on Google Cloud. Returns the bucket's address."""
    by_account = config.file.limits.billing_account is not None
    provider = gcp.Provider(
        "google",
        project=config.project,  # never that of whoever is logged in
        region=config.region,
        default_labels={"gpt2-stack": config.stack},
        # Budgets are asked for in the name of a project when a person, not an account, is logged in.
        billing_project=config.project if by_account else None,
        user_project_override=True if by_account else None,
        opts=pulumi.ResourceOptions(parent=parent),
    )

    def after(*waits_for: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=parent, provider=provider, depends_on=list(waits_for))

    found = look(config, fleet, job, provider, parent)
    if not found.asked:  # nor would it answer now
        availability.not_checked("Google could not be asked", parent)
    elif not (found.finished or found.expired):  # machines will be wanted
        availability.tell(config, fleet, parent)
    services = Services(config, after())
    identity = Identity(config, fleet, found.roles, after(services))
    network = Network(config, identity, after(services))
    buckets = Storage(config, inputs, job, identity, found.buckets, after(services))
    image = Image(config, job, identity, found.repository, after(services))
    metrics = Metrics(config, after(services))

    # A launch begins when all else is there: its clock must not run while an image of 5 GB is on its way. Nor may a
    # build that fails leave the machines of the run before without their guard.
    everything: list[pulumi.Resource] = [identity, network, image]
    declared = buckets.put(
        "job", buckets.artifacts, paths.job(job.run), _asset(job.to_json()), "application/json", everything
    )
    current = {"run": job.run, "launch": job.launch}
    # The master of a run that is replaced looks here before it runs the jobs, which are the next run's by then.
    pointer = buckets.put("current", buckets.artifacts, paths.CURRENT, _asset(current), "application/json", [declared])
    launch = Launch(config.bucket, job, pulumi.ResourceOptions(parent=parent, depends_on=[declared, pointer, buckets]))
    planned = groups(config, fleet, job)
    guard = Guard(config, fleet, launch, planned, identity, after(services, pointer))
    hours = config.file.limits.max_hours
    ends = launch.started.apply(lambda started: termination_time(started, hours))
    # A machine reads its image, its job and its bucket as soon as it boots, and must find a guard.
    waiting = after(identity, network, buckets, image, launch, guard)
    machines = [
        Machines(group, identity, network.subnetwork, image.reference, ends, found.finished, found.expired, waiting)
        for group in planned
    ]
    Alerts(config, after(metrics, *machines))
    if config.file.pipeline is not None:
        both = (buckets.artifacts, buckets.data)
        pipeline = Pipeline(config, config.file.pipeline.repository, found.roles, both, after(services))
        pulumi.export("pipelineProvider", pipeline.provider)  # the workflows' variables
        pulumi.export("pipelineDeployer", pipeline.deployer)
        pulumi.export("pipelinePreviewer", pipeline.previewer)
    return buckets.artifacts.name.apply(lambda name: f"gs://{name}")


def _asset(content: object) -> pulumi.StringAsset:
    return pulumi.StringAsset(json.dumps(content, indent=2) + "\n")
