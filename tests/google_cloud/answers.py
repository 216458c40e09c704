"""Google's answers, as the real provider hands them to Pulumi: without zeros, and with what Google fills in.

Its newer APIs write JSON by the rules of proto3: a zero, a false, an empty text or an empty list is left out. The
provider takes a block that comes back empty for none (flatten... in its resources: `len(original) == 0`).
"""

import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
WITHOUT_ZEROS = tuple(
    f"gcp:{service}/"
    for service in ("artifactregistry", "billing", "cloudscheduler", "iam", "logging", "monitoring", "workflows")
)
FILLED_IN: dict[str, Json] = {
    "gcp:artifactregistry/repository:Repository": {"mode": "STANDARD_REPOSITORY"},
    "gcp:compute/firewall:Firewall": {"priority": 1000},
    "gcp:compute/network:Network": {"routingMode": "REGIONAL", "mtu": 1460},
    "gcp:monitoring/alertPolicy:AlertPolicy": {"enabled": True},
    "gcp:storage/bucket:Bucket": {"storageClass": "STANDARD"},
}


DASHBOARD = "gcp:monitoring/dashboard:Dashboard"


def answered(token: str, state: Json) -> Json:
    """Return the state of a resource as the provider reads it from Google's answer."""
    shown = {**FILLED_IN.get(token, {}), **state}
    if token == DASHBOARD:
        shown["dashboardJson"] = _dashboard(shown["dashboardJson"])
    return without_zeros(shown, blocks=True) if token.startswith(WITHOUT_ZEROS) else shown


def without_zeros(value: Any, *, blocks: bool = False) -> Any:
    """Return a value without its zeros; with `blocks` also without the objects of which nothing is left."""
    if isinstance(value, list):
        return [without_zeros(item, blocks=blocks) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_zeros(item, blocks=blocks) for key, item in value.items()}
    gone = [key for key, item in kept.items() if not item and (not isinstance(item, dict) or (blocks and value[key]))]
    return {key: item for key, item in kept.items() if key not in gone}


def _dashboard(text: str) -> str:
    """Return a dashboard's JSON as Google has it: sorted, without zeros, with an etag and its own defaults."""
    dashboard = without_zeros(json.loads(text))
    for data_set in _data_sets(dashboard):
        data_set.setdefault("targetAxis", "Y1")
    return json.dumps({"etag": "a1b2c3", **dashboard}, sort_keys=True)


def _data_sets(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield from value.get("dataSets", [])
        for item in value.values():
            yield from _data_sets(item)
    elif isinstance(value, list):
        for item in value:
            yield from _data_sets(item)
