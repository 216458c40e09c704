"""Compare and show the values that `pulumi preview --json` writes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # written for a value that is known only after the deployment
SIGNATURE = "4dabf18193072939515e22adb298388d"  # the key that marks assets and secrets
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105  (the mark's value, not a secret)
HIDDEN = "[secret]"  # written by the CLI for a secret
SHOWN_CHARACTERS = 160  # most characters of a value


@dataclass(frozen=True)
class ValueChange:
    """A leaf that differs. It is None on the side that lacks it."""

    path: str  # httpTarget.headers[0]
    old: Any
    new: Any


def plain(value: Any) -> Any:
    """Return a value without the engine's own keys and without the provider's defaults, such as a random name."""
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET:
            return HIDDEN
        defaults = value.get("__defaults") or ()
        return {key: plain(item) for key, item in value.items() if not key.startswith("__") and key not in defaults}
    return [plain(item) for item in value] if isinstance(value, list) else value


def differences(old: Any, new: Any, path: str = "") -> list[ValueChange]:
    """Return the differences between two plain() values, in order of their paths. Lists without objects are leaves."""
    return list(_differences(old, new, path))


def _differences(old: Any, new: Any, path: str) -> Iterator[ValueChange]:
    if is_asset(old) or is_asset(new):
        if _content(old) != _content(new):
            yield ValueChange(path, old, new)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in [*old, *new]):
        for i in range(max(len(old), len(new))):
            old_item, new_item = (side[i] if i < len(side) else None for side in (old, new))
            yield from _differences(old_item, new_item, f"{path}[{i}]")
    elif old != new:
        yield ValueChange(path, old, new)


def is_asset(value: Any) -> bool:
    """Return whether a value is an asset of Pulumi: a file, a text or an archive."""
    return isinstance(value, dict) and SIGNATURE in value


def _content(value: Any) -> Any:
    return value.get("hash") if is_asset(value) else value


def unknown_paths(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of the values that are known only after the deployment."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from unknown_paths(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from unknown_paths(item, f"{path}[{i}]")
    elif isinstance(value, str) and UNKNOWN in value:
        yield path


def shown(value: Any) -> str:
    """Return a value as one line for a person."""
    if value is None:
        return "not set"
    if value == UNKNOWN:
        return "(known after deployment)"
    if is_asset(value):
        return f"file, sha256 {str(value.get('hash', ''))[:12]}"
    if isinstance(value, str) and "\n" in value.strip():
        digest = hashlib.sha256(value.encode()).hexdigest()
        return f"text of {len(value.splitlines())} lines, sha256 {digest[:12]}"
    text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    text = text.replace(UNKNOWN, "(known after deployment)")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects by their paths. Lists are leaves."""
    if not isinstance(value, dict):
        return {path: value}
    by_path: dict[str, Any] = {}
    for key, item in value.items():
        by_path |= leaves(item, f"{path}.{key}" if path else key)
    return by_path
