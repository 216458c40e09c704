"""Values as `pulumi preview --json` writes them: what differs between two, and how a person reads one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # stands for what is known only after the deployment
SIGNATURE = "4dabf18193072939515e22adb298388d"  # the key that marks assets and secrets
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105  (the mark's value, not a secret)
HIDDEN = "[secret]"  # as the CLI writes one
LONGEST = 160  # characters of a value that are shown


@dataclass(frozen=True)
class Change:
    """A leaf that differs. None: it is not there."""

    path: str  # httpTarget.headers[0]
    old: Any
    new: Any


def plain(value: Any) -> Any:
    """Without the engine's own keys, and without what the provider made up, such as a name with a random end."""
    if isinstance(value, dict):
        if value.get(SIGNATURE) == SECRET:
            return HIDDEN
        made_up = value.get("__defaults") or ()
        return {key: plain(item) for key, item in value.items() if not key.startswith("__") and key not in made_up}
    return [plain(item) for item in value] if isinstance(value, list) else value


def differences(old: Any, new: Any, path: str = "") -> list[Change]:
    """What differs between two plain() values, in the order of the paths. Lists of plain things are leaves."""
    return list(_differences(old, new, path))


def _differences(old: Any, new: Any, path: str) -> Iterator[Change]:
    if is_asset(old) or is_asset(new):
        if _content(old) != _content(new):
            yield Change(path, old, new)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(item, dict) for item in [*old, *new]):
        for i in range(max(len(old), len(new))):
            was, will = (side[i] if i < len(side) else None for side in (old, new))
            yield from _differences(was, will, f"{path}[{i}]")
    elif old != new:
        yield Change(path, old, new)


def is_asset(value: Any) -> bool:
    """Whether it is a file, a text or an archive that is handed over as a whole."""
    return isinstance(value, dict) and SIGNATURE in value


def _content(value: Any) -> Any:
    return value.get("hash") if is_asset(value) else value


def unknown_paths(value: Any, path: str) -> Iterator[str]:
    """Where something stands that is known only after the deployment."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from unknown_paths(item, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from unknown_paths(item, f"{path}[{i}]")
    elif isinstance(value, str) and UNKNOWN in value:
        yield path


def shown(value: Any) -> str:
    """One line for a person."""
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
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """{path: leaf} of nested objects; lists are leaves."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= leaves(item, f"{path}.{key}" if path else key)
    return found
