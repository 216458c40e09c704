"""Buckets and registry: what outlives a stack. Names and settings, pure, as scripts make some before the first `up`.

The stack then adopts what it finds, and changes it to what stands here.
"""

from typing import Any

from pydantic.alias_generators import to_camel

from infra.stack.config import StackConfig

DAY = 86400  # seconds
SOFT_DELETE = 7 * DAY  # what is deleted can be had back for so long, and is billed for so long
KEEP_OLD_VERSIONS = 7  # days
KEEP_IMAGES = 10  # newest; all others go when they are a month old
MONTH = f"{30 * DAY}s"


def bucket_settings(region: str) -> dict[str, Any]:
    """What both buckets have in common, as arguments of the resource."""
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


def repository_settings(stack: str) -> dict[str, Any]:
    """The registry's, as arguments of the resource."""
    return {
        "format": "DOCKER",
        "description": f"The trainer's images of the stack {stack}",
        "cleanup_policies": [
            {"id": "keep-newest", "action": "KEEP", "most_recent_versions": {"keep_count": KEEP_IMAGES}},
            {"id": "delete-old", "action": "DELETE", "condition": {"tag_state": "ANY", "older_than": MONTH}},
        ],
    }


def as_json(value: Any) -> Any:
    """Settings with the names that Google's REST APIs have for them."""
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return {to_camel(key): as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


def repository(config: StackConfig) -> str:
    """The full name of the stack's repository in Artifact Registry."""
    return f"projects/{config.project}/locations/{config.region}/repositories/gpt2-{config.stack}"


def image_name(config: StackConfig) -> str:
    """Of the trainer's image, without tag and digest."""
    return f"{config.region}-docker.pkg.dev/{config.project}/gpt2-{config.stack}/trainer"
