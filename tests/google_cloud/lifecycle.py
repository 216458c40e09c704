"""Tell which bytes of a bucket are billed at a time, by its lifecycle rules and its soft-delete policy.

Nothing is deleted: the storage server of the tests keeps all versions. Google looks at the rules about once a day; here
they act at once.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tests.google_cloud.clock import epoch_of

Json = dict[str, Any]
DAY = 86400.0
SOFT_DELETE = 7 * DAY  # seconds of a bucket that sets none
NEVER = float("inf")


def billed(versions: Iterable[Json], bucket: Json, now: float, days: float) -> dict[str, int]:
    """Return the bytes that are billed `days` after `now`, if nobody writes any more: live, noncurrent, softDeleted.

    versions: of all objects, as the JSON API lists them; bucket: the state of a gcp:storage/bucket:Bucket.
    """
    policy = bucket.get("softDeletePolicy")
    retention = SOFT_DELETE if policy is None else float(policy.get("retentionDurationSeconds", 0))
    bytes_by_state = {"live": 0, "noncurrent": 0, "softDeleted": 0}
    named: dict[str, list[Json]] = defaultdict(list)
    for version in versions:
        named[version["name"]].append(version)
    for of_one in named.values():
        of_one.sort(key=lambda version: -int(version["generation"]))
        for newer, version in enumerate(of_one):
            gone = deletion(version, newer, bucket)
            state = "noncurrent" if version.get("timeDeleted") else "live"
            at = now + days * DAY
            if at < gone:
                bytes_by_state[state] += int(version["size"])
            elif at < gone + retention:
                bytes_by_state["softDeleted"] += int(version["size"])
    return bytes_by_state


def deletion(version: Json, newer: int, bucket: Json) -> float:
    """Return when the rules delete a version for good; NEVER for a live one. newer: the number of newer versions."""
    if not version.get("timeDeleted"):
        return NEVER
    since = epoch_of(version["timeDeleted"])
    rules = [rule for rule in bucket.get("lifecycleRules") or [] if rule["action"]["type"] == "Delete"]
    return min((_matches_at(rule["condition"], version["name"], since, newer) for rule in rules), default=NEVER)


def _matches_at(condition: Json, name: str, since: float, newer: int) -> float:
    """Return when a condition matches a version that is noncurrent since then; NEVER where it does not."""
    suffixes, prefixes = condition.get("matchesSuffixes"), condition.get("matchesPrefixes")
    if (suffixes and not name.endswith(tuple(suffixes))) or (prefixes and not name.startswith(tuple(prefixes))):
        return NEVER
    if condition.get("withState", "ANY") == "LIVE" or newer < int(condition.get("numNewerVersions") or 0):
        return NEVER
    unknown = set(condition) - {
        "matchesSuffixes", "matchesPrefixes", "withState", "numNewerVersions", "daysSinceNoncurrentTime",
    }  # fmt: skip
    if unknown:
        raise NotImplementedError(f"the stand-in cloud does not play the lifecycle conditions {sorted(unknown)}")
    return since + DAY * float(condition.get("daysSinceNoncurrentTime") or 0)
