"""The changes between two sets of inputs, and whether they replace the resource."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.google_cloud import names
from tests.google_cloud.answers import WITHOUT_ZEROS, without_zeros
from tests.google_cloud.schema import ASSETS, SIGNATURE

Json = dict[str, Any]
# A change of these planned outputs is a change of the resource.
COMPUTED = ("pulumiLabels", "effectiveLabels", "contextHash")
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
# The schema has `replaces` for inputs only; a template's effective labels cannot change either.
REPLACES = {TEMPLATE: ("labels", "effectiveLabels")}


def changes(token: str, olds: Json, news: Json, ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {path: ADD | DELETE | UPDATE, with _REPLACE where it replaces}, in the order of the paths."""
    found = {}
    known = names.inputs_of(token)
    for key in sorted({*olds, *news}):
        if key.startswith("__"):
            continue
        default = names.VIRTUAL.get(key)
        old, new = olds.get(key, default), news.get(key, default)
        if token.startswith(WITHOUT_ZEROS):
            old, new = _without_nothing(old), _without_nothing(new)
        if key == "location" and isinstance(old, str) and isinstance(new, str) and old.upper() == new.upper():
            continue  # Google writes EU where people write eu
        replaces = key in REPLACES.get(token, ())
        if key == "dashboardJson" and _same_dashboard(old, new):
            continue
        for path, kind, replace in _changes(known.get(key, {}), old, new, key, replaces):
            if not any(path == i or path.startswith((f"{i}.", f"{i}[")) for i in ignored):
                found[path] = f"{kind}_REPLACE" if replace else kind
    return found


def _changes(shape: Json, old: Any, new: Any, path: str, replaces: bool) -> Iterator[tuple[str, str, bool]]:
    replaces = replaces or bool(shape.get("replaces"))
    if same(old, new):
        return
    if isinstance(old, dict) and isinstance(new, dict) and not is_asset(old) and not is_asset(new):
        properties = names.table()["types"].get(shape.get("ref"), {}).get("properties", {})
        for key in sorted({*old, *new}):
            below = properties.get(key) or shape.get("map") or {}
            yield from _changes(below, old.get(key), new.get(key), f"{path}.{key}", replaces)
    elif isinstance(old, list) and isinstance(new, list):
        for i in range(max(len(old), len(new))):
            was, will = (side[i] if i < len(side) else None for side in (old, new))
            yield from _changes(shape.get("array") or {}, was, will, f"{path}[{i}]", replaces)
    else:
        whole = (old is None or new is None) and _replaces_below(shape)
        yield path, "ADD" if old is None else "DELETE" if new is None else "UPDATE", replaces or whole


def _replaces_below(shape: Json) -> bool:
    """Return whether a whole object that is added or removed has a part that replaces."""
    inner = shape.get("array") or shape
    properties = names.table()["types"].get(inner.get("ref"), {}).get("properties", {})
    return any(p.get("replaces") for p in properties.values())


def same(old: Any, new: Any) -> bool:
    """Return whether two values mean the same. Lists of strings are sets for Google; assets count by their content."""
    if names.UNKNOWN in (_text(old), _text(new)):
        return False
    if is_asset(old) and is_asset(new):
        return bool(old.get("hash")) and old.get("hash") == new.get("hash")
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(i, str) for i in (*old, *new)):
        return sorted(old) == sorted(new) and names.UNKNOWN not in new
    return bool(old == new) and names.UNKNOWN not in json.dumps(new)


def _same_dashboard(old: Any, new: Any) -> bool:
    """Return whether Google has all that the program says; the provider forgives what Google adds.

    google-beta/services/monitoring/resource_monitoring_dashboard.go, removeComputedKeys and DeepEqual.
    """
    if not isinstance(old, str) or not isinstance(new, str) or new == names.UNKNOWN:
        return False
    google, program = json.loads(old), json.loads(new)
    return bool(_without_additions(google, program) == program)


def _without_additions(google: Any, program: Any) -> Any:
    if isinstance(google, dict) and isinstance(program, dict):
        return {key: _without_additions(google[key], program[key]) for key in google if key in program}
    if isinstance(google, list) and isinstance(program, list) and len(google) == len(program):
        return [_without_additions(*pair) for pair in zip(google, program, strict=True)]
    return google


def _without_nothing(value: Any) -> Any:
    """Return a value without its zeros: the provider sees no difference between a zero and nothing."""
    cleaned = without_zeros(value)
    return cleaned if isinstance(value, dict) and value else cleaned or None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def is_asset(value: Any) -> bool:
    return isinstance(value, dict) and value.get(SIGNATURE) in ASSETS


def computed_changes(token: str, state: Json, planned: Json, ignored: tuple[str, ...] = ()) -> dict[str, str]:
    """Return changes that no input shows: default labels of the provider, files of an image's context."""
    found = {}
    for key in COMPUTED:
        if key in state and key in planned and not same(state[key], planned[key]):
            if key != "contextHash" and "labels" in ignored:
                continue
            found[key] = "UPDATE_REPLACE" if key in REPLACES.get(token, ()) else "UPDATE"
    return found


def same_fixed_name(token: str, name: str, olds: Json, news: Json) -> bool:
    """Return whether the program gave both the same name.

    Then the old one must be deleted before the new one is made.
    """
    key = names.KINDS[token].name
    given = news.get(key) if key else None
    return bool(given) and olds.get(key) == given and not re.fullmatch(re.escape(name) + "-[0-9a-f]{7}", str(given))


def unknown_after_update(token: str) -> tuple[str, ...]:
    """Return the outputs that an update may change."""
    if token == names.IMAGE:
        return ("digest", "ref")
    if token == "gcp:storage/bucketObject:BucketObject":
        return ("md5hash", "md5hexhash", "crc32c", "generation")
    return ()


def default_labels(configuration: dict[str, str]) -> dict[str, str]:
    """Return the labels that the provider gives to everything, from its (JSON-encoded) configuration."""
    labels: dict[str, str] = json.loads(configuration.get("defaultLabels") or "{}")
    if configuration.get("addPulumiAttributionLabel", "true") != "false":
        labels["goog-pulumi-provisioned"] = "true"
    return labels
