"""Tell which images the cleanup policies of a repository of Artifact Registry delete. Google looks about once a day."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """An image of one package. digest: its name in the registry, sha256:…"""

    digest: str
    tags: tuple[str, ...]
    age: float  # seconds


def deleted(policies: list[Json], versions: list[Version]) -> set[str]:
    """Return the digests that are deleted: some DELETE policy matches them, and no KEEP policy."""
    newest = sorted(versions, key=lambda version: version.age)
    matching: dict[str, set[str]] = {"KEEP": set(), "DELETE": set()}
    for policy in policies:
        if recent := policy.get("mostRecentVersions"):
            found = newest[: int(recent["keepCount"])]
        else:
            found = [version for version in versions if _matches(policy["condition"], version)]
        matching[policy["action"]] |= {version.digest for version in found}
    return matching["DELETE"] - matching["KEEP"]


def _matches(condition: Json, version: Version) -> bool:
    """Return whether a version meets all parts of a condition; of the prefixes of one part, one is enough."""
    state, older = condition.get("tagState", "ANY"), condition.get("olderThan")
    tags, names = condition.get("tagPrefixes"), condition.get("versionNamePrefixes")
    return (
        state in ("ANY", "TAGGED" if version.tags else "UNTAGGED")
        and (older is None or version.age > float(older.removesuffix("s")))
        and (not tags or any(tag.startswith(tuple(tags)) for tag in version.tags))
        and (not names or version.digest.startswith(tuple(names)))
    )
