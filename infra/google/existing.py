"""Ask Google, before anything is declared, what an earlier `up` left."""

import time
from dataclasses import dataclass, field
from typing import TypeVar

import pulumi
import pulumi_gcp as gcp
from pulumi_gcp import artifactregistry, projects, serviceaccount, storage
from pydantic import ValidationError

from infra.fleet.deadline import HOUR, kept_hours, launch_hours
from infra.fleet.fleet import Fleet
from infra.google.identity import account_email
from infra.lifecycle import is_finished, status_line
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.contract.spec import JobSpec
from trainer.contract.wording import few
from trainer.gcloud.api import API_OFF
from trainer.runs.placement import DEADLINE, End, Launched, Placement
from trainer.runs.records import Status

NOT_FOUND = ("Error 404", "not found")  # the provider's words for a resource that does not exist
Record = TypeVar("Record", bound=Strict)


@dataclass
class Existing:
    """The resources that an earlier `up` of this stack left on Google Cloud."""

    buckets: set[str] = field(default_factory=set)  # their names
    repository: bool = False  # whether the image repository exists
    roles: set[str] = field(default_factory=set)  # ids of custom roles
    launched: Launched | None = None  # the record of the declared launch, if it has begun
    placement: Placement | None = None  # the record of where it has moved
    left: str = ""  # the zone in which the launch before it ended
    finished: bool = False  # the run has nothing left to do in this launch
    expired: bool = False  # the run is not finished, but this launch is over
    asked: bool = True  # False if Google could not be asked: without a login a preview continues without knowing


def custom_roles(project: str, options: pulumi.InvokeOptions) -> set[str]:
    """Return the ids of a project's custom roles."""
    try:
        answer = projects.get_iam_custom_roles(project=project, opts=options)
    except Exception as error:
        if any(sign in str(error) for sign in API_OFF):  # the first `up` in a project enables it
            return set()
        raise
    return {role["role_id"] for role in answer.roles}


def find_existing(
    config: StackConfig, fleet: Fleet, job: JobSpec, provider: gcp.Provider, parent: pulumi.Resource
) -> Existing:
    """Return what an earlier `up` left.

    Without a login a preview continues, and warns that it does not know. `up` does not: it raises RunError.
    """
    existing = Existing()
    try:
        _Search(config, fleet, job, provider, parent).fill(existing)
    except pulumi.RunError:
        raise
    except Exception as error:
        line = _reason(error)
        if not pulumi.runtime.is_dry_run():
            raise pulumi.RunError(f"gcp:project {config.project} cannot be looked at ({line})") from None
        pulumi.log.warn(f"what is there already is not known, so all is shown as new ({line})", parent)
        existing.asked = False
    return existing


def _reason(error: Exception) -> str:
    """Return the last line of what the provider said: its first one ends with "1 error occurred:"."""
    lines = [line.strip(" \t*") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


class _Search:
    """Questions about one stack, asked through its provider."""

    def __init__(
        self, config: StackConfig, fleet: Fleet, job: JobSpec, provider: gcp.Provider, parent: pulumi.Resource
    ):
        self._config, self._fleet, self._job, self._parent = config, fleet, job, parent
        self._options = pulumi.InvokeOptions(provider=provider, parent=parent)

    def fill(self, existing: Existing) -> None:
        """Write the answers into `existing`, and log where the run stands."""
        name = self._config.bucket.removeprefix("gs://")
        listed_buckets = storage.get_buckets(prefix=name, project=self._config.project, opts=self._options).buckets
        existing.buckets = {bucket["name"] for bucket in listed_buckets}
        existing.repository = self._has_repository()
        if self._config.file.pipeline is None:
            existing.roles = custom_roles(self._config.project, self._options)
        else:  # an owner has made the roles, and the pipeline's accounts may not look for them
            self._check_accounts()
        if name in existing.buckets:
            self._run(name, existing)

    def _has_repository(self) -> bool:
        """Return whether the stack's image repository exists."""
        try:
            answer = artifactregistry.get_repositories(
                location=self._config.region, project=self._config.project, opts=self._options
            )
        except Exception as error:
            if any(sign in str(error) for sign in API_OFF):  # the first `up` in a project enables it
                return False
            raise
        return f"gpt2-{self._config.stack}" in {repository["repository_id"] for repository in answer.repositories}

    def _check_accounts(self) -> None:
        """Raise RunError if no owner has bootstrapped this stack. Its pipeline's accounts come from nowhere else."""
        email = account_email(self._config, "deploy")
        try:
            serviceaccount.get_account(account_id=email, project=self._config.project, opts=self._options)
        except Exception as error:
            if not any(sign in str(error) for sign in (*API_OFF, *NOT_FOUND)):
                raise
            raise pulumi.RunError(
                f"gpt2-training:pipeline: the account {email} does not exist; let an owner of the project run"
                f" `python -m scripts.bootstrap --stack {self._config.stack}`"
            ) from None

    def _run(self, bucket: str, existing: Existing) -> None:
        """Find out where the declared run stands, and log one line about it."""
        config, job = self._config, self._job
        status = self._status(bucket)
        existing.finished = is_finished(status, job)
        if not existing.finished:
            self._check_checkpoint(bucket)
        notice = status_line(status, config.bucket, job)
        if status is not None and not status.taken_back:
            # A launch that was destroyed starts anew, whatever its records say.
            existing.launched, existing.placement = self._records(bucket, job.launch)
        if existing.launched is None and job.launch > 1:
            launched, placement = self._records(bucket, job.launch - 1)
            existing.left = (placement and placement.zone) or (launched.zone if launched else "")
        if not existing.finished and (over := self._over(bucket, existing.launched)):
            existing.expired = True
            then = f"set gpt2-training:launch to {job.launch + 1} to continue from its newest checkpoint"
            notice = (True, f"run {job.run}: {over}; {then}")
        if notice is not None:
            attention, line = notice
            (pulumi.log.warn if attention else pulumi.log.info)(line, self._parent)

    def _over(self, bucket: str, launched: Launched | None) -> str:
        """Return why the declared launch is over although its run is not; empty if it is not over."""
        job, limits = self._job, self._config.file.limits
        hours = min(launch_hours(limits, self._fleet), kept_hours(limits, self._fleet, launched))
        if launched is None:
            return ""
        if time.time() > launched.started + hours * HOUR:
            return f"the time of launch {job.launch} is over (limits: {hours:.1f} h)"
        # The controller's job is paused when all machines are gone, so it would not guard another try.
        end = self._parsed(End, bucket, paths.end(job.run, job.launch))
        if end is None:
            return ""
        if end.reason == DEADLINE:
            return f"the time of launch {job.launch} is over (it ended by the limits and machines that it had)"
        return f"its master gave up in launch {job.launch}, and {paths.machine(job.run, 'master-0')} says why"

    def _records(self, bucket: str, launch: int) -> tuple[Launched | None, Placement | None]:
        """Return the records of a launch, None for one that is not there. Raise RunError if one cannot be read."""
        run = self._job.run
        launched = self._parsed(Launched, bucket, paths.launch(run, launch))
        return launched, self._parsed(Placement, bucket, paths.placement(run, launch)) if launched else None

    def _check_checkpoint(self, bucket: str) -> None:
        """Raise RunError if the run starts from another run of this bucket that has no model."""
        folder = (self._job.model.initialize or "").removeprefix(f"gs://{bucket}/")
        manifest = f"{folder}/{paths.MANIFEST}"
        if not folder.startswith(f"{paths.RUNS}/") or self._read(bucket, manifest):
            return
        objects = storage.get_bucket_objects(
            bucket=bucket, prefix=f"{paths.RUNS}/", match_glob=paths.model_manifest("**"), opts=self._options
        ).bucket_objects
        finished = [name for entry in objects if (name := paths.run_of_model(entry["name"]))]
        raise pulumi.RunError(
            f"gpt2-training:model.initialize: {paths.run_of_model(manifest) or folder} has no model in"
            f" gs://{bucket}; finished are: {few(finished)}"
        )

    def _status(self, bucket: str) -> Status | None:
        """Return the run's status, None if it has none yet. Raise RunError if it cannot be read."""
        return self._parsed(Status, bucket, paths.status(self._job.run))

    def _parsed(self, model: type[Record], bucket: str, path: str) -> Record | None:
        """Return an object's content as a record, None if it is not there. Raise RunError if it cannot be read."""
        content = self._read(bucket, path)
        try:
            return model.model_validate_json(content) if content else None
        except ValidationError:
            raise pulumi.RunError(
                f"gs://{bucket}/{path} cannot be read: was it written by another version of this project? Move it away"
            ) from None

    def _read(self, bucket: str, path: str) -> str:
        """Return an object's content; empty if it is not there."""
        objects = storage.get_bucket_objects(bucket=bucket, prefix=path, opts=self._options).bucket_objects
        if path not in {entry["name"] for entry in objects}:
            return ""
        return storage.get_bucket_object_content(bucket=bucket, name=path, opts=self._options).content
