"""What `platform: google` stands up for a run."""

import json
import time

import pulumi
import pulumi_gcp as gcp
from pulumi_gcp import artifactregistry, storage

from infra.config import StackConfig
from infra.google.guard import HOUR, Guard, Launch, hours_left, record, termination_time
from infra.google.identity import Identity
from infra.google.image import Image
from infra.google.machines import Machines, groups
from infra.google.monitoring import Monitoring
from infra.google.network import Network
from infra.google.services import Services
from infra.google.storage import Storage
from infra.lifecycle import CURRENT, is_finished, standing
from trainer.spec import JobSpec, Status


def stand_up(config: StackConfig, job: JobSpec, parent: pulumi.Resource) -> pulumi.Output[str]:
    """Declares everything that a run needs on Google Cloud; returns the bucket's address."""
    provider = gcp.Provider(
        "google",
        project=config.project,  # never that of whoever is logged in
        region=config.region,
        default_labels={"gpt2-stack": config.stack},
        # Budgets are asked for in the name of a project when a person, not an account, is logged in.
        billing_project=config.project if config.file.limits.billing_account else None,
        user_project_override=True if config.file.limits.billing_account else None,
        opts=pulumi.ResourceOptions(parent=parent),
    )
    found = Found(config, job, provider, parent)
    services = Services(config, pulumi.ResourceOptions(parent=parent, provider=provider))
    ready = pulumi.ResourceOptions(parent=parent, provider=provider, depends_on=[services])
    identity = Identity(config, ready)
    network = Network(config, identity, ready)
    buckets = Storage(config, job, identity, found.buckets, ready)
    image = Image(config, job, identity, found.repository, ready)

    declared = buckets.put(
        "job", buckets.artifacts, f"runs/{job.run}/job.json", _asset(job.to_json()), "application/json"
    )
    current = {"run": job.run, "launch": job.launch}
    pointer = buckets.put("current", buckets.artifacts, CURRENT, _asset(current), "application/json")
    launch = Launch(config.bucket, job, pulumi.ResourceOptions(parent=parent, depends_on=[declared]))
    planned = groups(config, job)
    # The master of a run that is replaced looks there before it runs the jobs, which are the next run's by then.
    guarded = pulumi.ResourceOptions(parent=parent, provider=provider, depends_on=[services, pointer])
    guard = Guard(config, launch, planned, identity, guarded)
    hours = config.file.limits.max_hours
    ends = launch.started.apply(lambda started: termination_time(started, hours))
    # A machine reads its image, its job and its bucket as soon as it boots, and must find a guard.
    waiting = pulumi.ResourceOptions(
        parent=parent, provider=provider, depends_on=[identity, network, buckets, image, launch, guard]
    )
    for group in planned:
        Machines(group, identity, network.subnetwork, image.reference, ends, found.finished, waiting)
    Monitoring(config, ready)
    return buckets.artifacts.name.apply(lambda name: f"gs://{name}")


API_OFF = ("SERVICE_DISABLED", "has not been used in project")


class Found:
    """What an earlier `up` left. Without credentials a preview goes on and says that it does not know."""

    def __init__(self, config: StackConfig, job: JobSpec, provider: gcp.Provider, parent: pulumi.Resource):
        self._options = pulumi.InvokeOptions(provider=provider, parent=parent)
        self.buckets: set[str] = set()
        self.repository = self.finished = False
        try:
            self._look(config, job, parent)
        except Exception as error:
            line = str(error).strip().splitlines()[0]
            if not pulumi.runtime.is_dry_run():
                raise pulumi.RunError(f"gcp:project {config.project} cannot be looked at ({line})") from None
            pulumi.log.warn(f"what is there already is not known, so all is shown as new ({line})", parent)

    def _look(self, config: StackConfig, job: JobSpec, parent: pulumi.Resource) -> None:
        name = config.bucket.removeprefix("gs://")
        there = storage.get_buckets(prefix=name, project=config.project, opts=self._options).buckets
        self.buckets = {bucket["name"] for bucket in there}
        self.repository = self._has_repository(config)
        if name not in self.buckets:
            return
        found = self._read(name, f"runs/{job.run}/status.json")
        status = Status.model_validate_json(found) if found else None
        self.finished = is_finished(status, job)
        said = standing(status, config.bucket, job)
        started = self._read(name, record(job.run, job.launch))
        if started and not self.finished and time.time() > json.loads(started)["started"] + hours_left(config) * HOUR:
            self.finished = True
            said = (
                True,
                (
                    f"run {job.run}: the time of launch {job.launch} is over (limits: {hours_left(config):.1f} h); set"
                    f" gpt2-training:launch to {job.launch + 1} to go on from its newest checkpoint"
                ),
            )
        if said is not None:
            attention, line = said
            (pulumi.log.warn if attention else pulumi.log.info)(line, parent)

    def _has_repository(self, config: StackConfig) -> bool:
        try:
            answer = artifactregistry.get_repositories(
                location=config.region, project=config.project, opts=self._options
            )
        except Exception as error:
            if any(sign in str(error) for sign in API_OFF):  # the first `up` in a project enables it
                return False
            raise
        return f"gpt2-{config.stack}" in {found["repository_id"] for found in answer.repositories}

    def _read(self, bucket: str, path: str) -> str:
        """An object's content; empty if it is not there."""
        objects = storage.get_bucket_objects(bucket=bucket, prefix=path, opts=self._options).bucket_objects
        if path not in {found["name"] for found in objects}:
            return ""
        return storage.get_bucket_object_content(bucket=bucket, name=path, opts=self._options).content


def _asset(content: object) -> pulumi.StringAsset:
    return pulumi.StringAsset(json.dumps(content, indent=2) + "\n")
