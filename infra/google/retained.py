"""Name and describe what outlives a stack: its buckets and its image registry.

Scripts make some of them before the first `up`. The stack then adopts what it finds, and changes it to these settings.
"""

from __future__ import annotations  # scripts do without pulumi_gcp, whose types only mypy needs

from typing import TYPE_CHECKING, Any, TypedDict

from pydantic.alias_generators import to_camel

from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec

if TYPE_CHECKING:
    from pulumi_gcp import artifactregistry, storage

DAY = 86400  # seconds
KEEP_OLD_VERSIONS = 7  # days in which a person can restore what was overwritten or deleted, and Google bills it
OLD_VERSIONS = 2  # of one object at most: machines write status, heartbeats and metrics again and again
KEEP_IMAGES = 10  # the newest; all others are deleted when they are a month old
MONTH = f"{30 * DAY}s"


class BucketSettings(TypedDict):
    """Arguments of storage.Bucket."""

    location: str
    uniform_bucket_level_access: bool
    public_access_prevention: str
    versioning: storage.BucketVersioningArgsDict
    soft_delete_policy: storage.BucketSoftDeletePolicyArgsDict
    lifecycle_rules: list[storage.BucketLifecycleRuleArgsDict]


class RepositorySettings(TypedDict):
    """Arguments of artifactregistry.Repository."""

    format: str
    description: str
    cleanup_policies: list[artifactregistry.RepositoryCleanupPolicyArgsDict]


def bucket_settings(region: str) -> BucketSettings:
    """Return the settings of both buckets: old versions are kept for some days, a few of each object, and no more.

    Soft delete is off, as it would keep, and bill, each old version for 7 days more after its last day. The trainer
    deletes an old checkpoint for good, by its generation (trainer/training/checkpoint.py), so no version of it is kept.
    """
    return {
        "location": region.upper(),
        "uniform_bucket_level_access": True,
        "public_access_prevention": "enforced",
        "versioning": {"enabled": True},
        "soft_delete_policy": {"retention_duration_seconds": 0},
        "lifecycle_rules": [
            {"action": {"type": "Delete"}, "condition": {"num_newer_versions": OLD_VERSIONS + 1}},
            {"action": {"type": "Delete"}, "condition": {"days_since_noncurrent_time": KEEP_OLD_VERSIONS}},
            {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 1}},
        ],
    }


def repository_settings(
    stack: str, run_image: artifactregistry.RepositoryCleanupPolicyConditionArgsDict | None = None
) -> RepositorySettings:
    """Return the settings of the image registry.

    Args:
        stack: The stack's name.
        run_image: Matches the image that the declared run names. It stays however old it is, because a machine that
            Google makes anew pulls it again. None before there is a run.
    """
    policies: list[artifactregistry.RepositoryCleanupPolicyArgsDict] = [
        {"id": "keep-newest", "action": "KEEP", "most_recent_versions": {"keep_count": KEEP_IMAGES}},
        {"id": "delete-old", "action": "DELETE", "condition": {"tag_state": "ANY", "older_than": MONTH}},
    ]
    if run_image is not None:  # an image that a KEEP policy matches is never deleted
        policies.insert(0, {"id": "keep-the-runs", "action": "KEEP", "condition": run_image})
    return {
        "format": "DOCKER",
        "description": f"The trainer's images of the stack {stack}",
        "cleanup_policies": policies,
    }


def stack_labels(stack: str) -> dict[str, str]:
    """Return the labels that the provider sets: the stack's default label and Pulumi's own."""
    return {"gpt2-stack": stack, "goog-pulumi-provisioned": "true"}


def run_image(config: StackConfig, job: JobSpec) -> artifactregistry.RepositoryCleanupPolicyConditionArgsDict:
    """Return what matches the run's image in the registry: its digest if it is pinned, its tag if the stack builds it.

    Both are known before the registry is made; the digest of an image that is built is not.
    """
    if config.file.image is not None:
        return {"tag_state": "ANY", "version_name_prefixes": [config.file.image.rpartition("@")[2]]}
    return {"tag_state": "TAGGED", "tag_prefixes": [job.code]}


def as_json(value: Any) -> Any:
    """Return settings under the names that Google's REST APIs have for them."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return {to_camel(key): as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def repository(config: StackConfig) -> str:
    """Return the full name of the stack's repository in Artifact Registry."""
    return f"projects/{config.project}/locations/{config.region}/repositories/gpt2-{config.stack}"


def image_name(config: StackConfig) -> str:
    """Return the name of the trainer's image, without tag and digest."""
    return f"{config.region}-docker.pkg.dev/{config.project}/gpt2-{config.stack}/trainer"
