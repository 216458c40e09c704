"""What an earlier `up` left, asked of Google before anything is declared."""

import json
import time
from dataclasses import dataclass, field

import pulumi
import pulumi_gcp as gcp
from pulumi_gcp import artifactregistry, projects, storage
from pydantic import ValidationError

from infra.fleet.deadline import HOUR, launch_hours
from infra.fleet.fleet import Fleet
from infra.lifecycle import is_finished, status_line
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.errors import first_line
from trainer.contract.spec import JobSpec
from trainer.contract.wording import few
from trainer.gcloud.api import API_OFF
from trainer.runs.records import Status


@dataclass
class Found:
    buckets: set[str] = field(default_factory=set)  # names
    repository: bool = False
    roles: set[str] = field(default_factory=set)  # ids of custom roles
    finished: bool = False  # the run has nothing left to do in this launch
    expired: bool = False  # it has, but the launch's time is over
    asked: bool = True  # Google could be asked: without a login a preview goes on without knowing


def look(config: StackConfig, fleet: Fleet, job: JobSpec, provider: gcp.Provider, parent: pulumi.Resource) -> Found:
    """Without credentials a preview goes on and says that it does not know; `up` does not. Raises RunError."""
    found = Found()
    try:
        _Look(config, fleet, job, provider, parent).into(found)
    except pulumi.RunError:
        raise
    except Exception as error:
        line = first_line(error)
        if not pulumi.runtime.is_dry_run():
            raise pulumi.RunError(f"gcp:project {config.project} cannot be looked at ({line})") from None
        pulumi.log.warn(f"what is there already is not known, so all is shown as new ({line})", parent)
        found.asked = False
    return found


class _Look:
    def __init__(
        self, config: StackConfig, fleet: Fleet, job: JobSpec, provider: gcp.Provider, parent: pulumi.Resource
    ):
        self._config, self._fleet, self._job, self._parent = config, fleet, job, parent
        self._options = pulumi.InvokeOptions(provider=provider, parent=parent)

    def into(self, found: Found) -> None:
        name = self._config.bucket.removeprefix("gs://")
        there = storage.get_buckets(prefix=name, project=self._config.project, opts=self._options).buckets
        found.buckets = {bucket["name"] for bucket in there}
        found.repository = self._has_repository()
        found.roles = self._roles()
        if name in found.buckets:
            self._run(name, found)

    def _has_repository(self) -> bool:
        try:
            answer = artifactregistry.get_repositories(
                location=self._config.region, project=self._config.project, opts=self._options
            )
        except Exception as error:
            if any(sign in str(error) for sign in API_OFF):  # the first `up` in a project enables it
                return False
            raise
        return f"gpt2-{self._config.stack}" in {repository["repository_id"] for repository in answer.repositories}

    def _roles(self) -> set[str]:
        try:
            answer = projects.get_iam_custom_roles(project=self._config.project, opts=self._options)
        except Exception as error:
            if any(sign in str(error) for sign in API_OFF):
                return set()
            raise
        return {role["role_id"] for role in answer.roles}

    def _run(self, bucket: str, found: Found) -> None:
        """Where the declared run stands, and one line about it."""
        config, job = self._config, self._job
        status = self._status(bucket)
        found.finished = is_finished(status, job)
        if not found.finished:
            self._start(bucket)
        said = status_line(status, config.bucket, job)
        if status is None or status.taken_back or found.finished:
            started = ""  # of a launch that was destroyed and starts anew
        else:
            started = self._read(bucket, paths.launch(job.run, job.launch))
        hours = launch_hours(config.file.limits, self._fleet)
        if started and time.time() > json.loads(started)["started"] + hours * HOUR:
            found.expired = True
            said = (
                True,
                (
                    f"run {job.run}: the time of launch {job.launch} is over (limits: {hours:.1f} h); set"
                    f" gpt2-training:launch to {job.launch + 1} to go on from its newest checkpoint"
                ),
            )
        if said is not None:
            attention, line = said
            (pulumi.log.warn if attention else pulumi.log.info)(line, self._parent)

    def _start(self, bucket: str) -> None:
        """Raises RunError if the run starts from another one of this bucket that has no model."""
        folder = (self._job.model.initialize or "").removeprefix(f"gs://{bucket}/")
        manifest = f"{folder}/{paths.MANIFEST}"
        if not folder.startswith(f"{paths.RUNS}/") or self._read(bucket, manifest):
            return
        objects = storage.get_bucket_objects(
            bucket=bucket, prefix=f"{paths.RUNS}/", match_glob=paths.model_manifest("**"), opts=self._options
        ).bucket_objects
        finished = [name for found in objects if (name := paths.run_of_model(found["name"]))]
        raise pulumi.RunError(
            f"gpt2-training:model.initialize: {paths.run_of_model(manifest) or folder} has no model in"
            f" gs://{bucket}; finished are: {few(finished)}"
        )

    def _status(self, bucket: str) -> Status | None:
        path = paths.status(self._job.run)
        content = self._read(bucket, path)
        try:
            return Status.model_validate_json(content) if content else None
        except ValidationError:
            raise pulumi.RunError(
                f"gs://{bucket}/{path} cannot be read: was it written by another version of this project? Move it away"
            ) from None

    def _read(self, bucket: str, path: str) -> str:
        """An object's content; empty if it is not there."""
        objects = storage.get_bucket_objects(bucket=bucket, prefix=path, opts=self._options).bucket_objects
        if path not in {found["name"] for found in objects}:
            return ""
        return storage.get_bucket_object_content(bucket=bucket, name=path, opts=self._options).content
