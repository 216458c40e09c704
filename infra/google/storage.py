"""Declare two private buckets: one for the text, which machines may only read, and one for the files of runs.

Both outlive the stack. Their names are fixed, so that after a destroy the next `up` finds and adopts them.
"""

import pulumi
from pulumi_gcp import storage

from infra.google.identity import Identity
from infra.google.object_rights import WRITE, controller_rights, grant, machine_rights
from infra.google.retained import bucket_settings
from infra.inputs import docker
from infra.inputs.google import VOCABULARY_FILES
from infra.inputs.resolve import Inputs
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec


class Buckets(pulumi.ComponentResource):
    """The two buckets, the machines' rights on them, and the objects that a run starts from."""

    artifacts: storage.Bucket
    data: storage.Bucket

    def __init__(
        self,
        config: StackConfig,
        inputs: Inputs,
        job: JobSpec,
        identity: Identity,
        existing_buckets: set[str],
        opts: pulumi.ResourceOptions,
    ):
        """Declare the buckets; `existing_buckets` has the names of those that an earlier stack of this name left."""
        super().__init__("gpt2-training:google:Storage", "storage", {}, opts)
        self._config, self._child = config, pulumi.ResourceOptions(parent=self)
        self.artifacts = self._bucket("artifacts", config.bucket, existing_buckets)
        self.data = self._bucket("data", config.data_bucket, existing_buckets)
        for role, account in identity.machines.items():
            for right in machine_rights(config, job, role):
                bucket, name = (
                    (self.data, "data") if right.bucket == config.data_bucket else (self.artifacts, "artifacts")
                )
                verb = "write" if right.role == WRITE else "read"
                grant(f"{role}-{name}-{verb}-grant", bucket, right, account.member, self._child)
        for right in controller_rights(config, job):
            verb = "write" if right.role == WRITE else "read"
            grant(f"controller-artifacts-{verb}-grant", self.artifacts, right, identity.controller.member, self._child)
        self._warn_of_other_buckets(job, identity)
        self._put_inputs(inputs)
        self.register_outputs({})

    def _bucket(self, name: str, url: str, existing: set[str]) -> storage.Bucket:
        full, keep = url.removeprefix("gs://"), self._config.file.keep_artifacts
        return storage.Bucket(
            name,
            name=full,
            **bucket_settings(self._config.region),
            force_destroy=not keep,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=keep, import_=full if full in existing else None),
        )

    def _warn_of_other_buckets(self, job: JobSpec, identity: Identity) -> None:
        """Warn of inputs in other buckets, on which only their owners can grant rights."""
        named = [job.data.path, job.model.initialize or ""]
        others = {url.split("/")[2] for url in named if url.startswith("gs://")} - {
            url.removeprefix("gs://") for url in (self._config.bucket, self._config.data_bucket)
        }
        for bucket in sorted(others):
            accounts = [f"gpt2-{self._config.stack}-{role}@{self._config.project}" for role in identity.machines]
            pulumi.log.warn(
                f"gs://{bucket} does not belong to this stack; grant roles/storage.objectViewer on it to"
                f" {', '.join(f'{account}.iam.gserviceaccount.com' for account in accounts)}, and again after a destroy"
                " and `up`, which makes new accounts of the same names",
                self,
            )

    def _put_inputs(self, inputs: Inputs) -> None:
        """Declare the text, unless it is in a bucket already, GPT-2's vocabulary, and Docker's archive."""
        if inputs.text is not None:
            path = inputs.data["path"].removeprefix(f"{self._config.data_bucket}/")
            self.put("text", self.data, path, pulumi.FileAsset(str(inputs.text)), "text/plain")
        if inputs.vocabulary is not None:
            for name in VOCABULARY_FILES:
                source = pulumi.FileAsset(str(inputs.vocabulary / name))
                self.put(f"vocabulary-{name}", self.data, f"{paths.VOCABULARY}/{name}", source, "text/plain")
        if inputs.docker is not None:
            self.put("docker", self.data, docker.PATH, pulumi.FileAsset(str(inputs.docker)), "application/gzip")

    def put(
        self,
        name: str,
        bucket: storage.Bucket,
        path: str,
        source: pulumi.Asset,
        content_type: str,
        after: list[pulumi.Resource] | None = None,
    ) -> storage.BucketObject:
        """Declare an object, to be made after the resources of `after`.

        It stays when it is no longer declared: a new run must not delete an old run's files.
        """
        return storage.BucketObject(
            name,
            bucket=bucket.name,
            name=path,
            source=source,
            content_type=content_type,
            opts=pulumi.ResourceOptions(
                parent=self, retain_on_delete=True, delete_before_replace=False, depends_on=after or []
            ),
        )
