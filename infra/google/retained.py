"""Name and describe what outlives a stack: its buckets and its image registry.

Scripts make some of them before the first `up`. The stack then adopts what it finds, and changes it to these settings.
"""

from __future__ import annotations  # scripts do without pulumi_gcp, whose types only mypy needs

from typing import TYPE_CHECKING, Any, TypedDict

from pydantic.alias_generators import to_camel

from infra.stack.config import StackConfig

if TYPE_CHECKING:
    from pulumi_gcp import artifactregistry, storage

DAY = 86400  # seconds
SOFT_DELETE = 7 * DAY  # for this long a deleted object can be restored, and is billed
KEEP_OLD_VERSIONS = 7  # days
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
    """Return the settings that both buckets have in common."""
    return {
        "location": region.upper(),
        "uniform_bucket_level_access": True,
        "public_access_prevention": "enforced",
        "versioning": {"enabled": True},
        "soft_delete_policy": {"retention_duration_seconds": SOFT_DELETE},
        "lifecycle_rules": [
            {"action": {"type": "Delete"}, "condition": {"days_since_noncurrent_time": KEEP_OLD_VERSIONS}},
            {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 1}},
        ],
    }


def repository_settings(stack: str) -> RepositorySettings:
    """Return the settings of the image registry."""
    return {
        "format": "DOCKER",
        "description": f"The trainer's images of the stack {stack}",
        "cleanup_policies": [
            {"id": "keep-newest", "action": "KEEP", "most_recent_versions": {"keep_count": KEEP_IMAGES}},
            {"id": "delete-old", "action": "DELETE", "condition": {"tag_state": "ANY", "older_than": MONTH}},
        ],
    }


def stack_labels(stack: str) -> dict[str, str]:
    """Return the labels that the provider sets: the stack's default label and Pulumi's own."""
    return {"gpt2-stack": stack, "goog-pulumi-provisioned": "true"}


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
