"""What a bucket's rules leave of old versions, on the stand-in cloud, and so what the project's settings keep."""

from typing import Any

import pytest

from infra.google.retained import as_json, bucket_settings
from tests.google_cloud.clock import stamp
from tests.google_cloud.lifecycle import billed

Json = dict[str, Any]
NOW = 2e9
OURS: Json = as_json(bucket_settings("us-central1"))
# As the buckets were: a version was kept for 7 days, and then for 7 days more by soft delete.
BEFORE: Json = {
    "softDeletePolicy": {"retentionDurationSeconds": 604800},
    "lifecycleRules": [{"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": 7}}],
}


def version(name: str, generation: int, old: bool = True) -> Json:
    return {"name": name, "generation": str(generation), "size": "1", **({"timeDeleted": stamp(NOW)} if old else {})}


def dead(versions: list[Json], bucket: Json, days: float) -> int:
    left = billed(versions, bucket, NOW, days)
    return left["noncurrent"] + left["softDeleted"]


def test_file_that_is_written_again_and_again_leaves_two_old_versions_for_a_week() -> None:
    beats = [
        *(version("runs/r/machines/master-0.json", n) for n in range(99)),
        version("runs/r/machines/master-0.json", 99, False),
    ]
    assert billed(beats, OURS, NOW, 30) == {"live": 1, "noncurrent": 0, "softDeleted": 0}
    assert [dead(beats, OURS, days) for days in (0, 6.9, 7.1)] == [2, 2, 0]
    assert [dead(beats, BEFORE, days) for days in (0, 13.9, 14.1)] == [99, 99, 0]


@pytest.mark.parametrize("name", ["runs/r/model/model.safetensors", "runs/r/model/manifest.json", "runs/r/job.json"])
def test_file_that_a_person_deletes_can_be_restored_for_a_week(name: str) -> None:
    deleted = [version(name, 1)]
    assert [dead(deleted, OURS, days) for days in (0, 6.9, 7.1)] == [1, 1, 0]


def test_bucket_without_a_soft_delete_policy_has_googles() -> None:
    rules = {"lifecycleRules": [{"action": {"type": "Delete"}, "condition": {"withState": "ARCHIVED"}}]}
    assert [dead([version("x", 1)], rules, days) for days in (0, 6.9, 7.1)] == [1, 1, 0]


def test_condition_matches_by_prefix_and_suffix_alone() -> None:
    condition = {"withState": "ARCHIVED", "matchesPrefixes": ["runs/"], "matchesSuffixes": [".jsonl"]}
    bucket: Json = {
        "softDeletePolicy": {"retentionDurationSeconds": 0},
        "lifecycleRules": [{"action": {"type": "Delete"}, "condition": condition}],
    }
    assert (
        dead([version("runs/r/m.jsonl", 1), version("runs/r/m.json", 1), version("data/m.jsonl", 1)], bucket, 30) == 2
    )
    condition["createdBefore"] = ["2030-01-01"]
    with pytest.raises(NotImplementedError, match="createdBefore"):
        dead([version("runs/r/m.jsonl", 1)], bucket, 1)
