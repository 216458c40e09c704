"""Check whether the inputs of a resource are legal, by resources.json, the SDK's own classes and Google's own values.

Both sources use the same form, a shape: {"type": ...}, {"array": shape}, {"map": shape}, {"ref": name}, {"asset":
true}, {} for anything; "enum" lists the legal values. The cloud can still refuse inputs that pass here (rules.py). The
SDK's classes cost more than a second to import, so their shapes are kept in a file of the cache.
"""

import collections.abc
import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.google_cloud import names
from tests.google_cloud.words import ENUMS, PATTERNS
from tools.go_tools import cache_root

Json = dict[str, Any]
Problem = tuple[str, str]  # the path of a property, and its mistake
SIGNATURE = "4dabf18193072939515e22adb298388d"  # it marks secrets, assets and the like on the wire
SECRET = "1b47061264138c4ac30d75fd1eb44270"
ASSETS = ("c44067f5952c0a294b673a41bacd8c17", "0def7320c3a5731c473e5ecbe6d01bc7")
PACKAGES = ("pulumi_gcp", "pulumi_docker_build")
PROVIDER = "pulumi:providers:gcp"


def problems(token: str, inputs: Json) -> list[Problem]:
    """Return all mistakes in the inputs of a resource, by property."""
    if token not in names.KINDS:
        return [("", f"the stand-in cloud does not know {token}")]
    found: dict[str, str] = {}
    for source, types in _sources(token):
        shape = {"ref": token}
        for path, why in _check(types, shape, inputs, "", token):
            found.setdefault(path, f"{why} ({source})")
    return sorted(found.items())


def _sources(token: str) -> Iterator[tuple[str, Json]]:
    """Yield (its name, {name: {properties, required}}) of each source that knows the type."""
    table = names.table()
    if token in table["resources"]:
        own = table["resources"][token]
        yield (
            "provider schema",
            {**table["types"], token: {"properties": own["inputs"], "required": own["requiredInputs"]}},
        )
    yield "SDK", sdk()


def _check(types: Json, shape: Json, value: Any, path: str, where: str) -> Iterator[Problem]:
    if isinstance(value, dict) and value.get(SIGNATURE) == SECRET:
        value = value.get("value")
    if value is None or value == names.UNKNOWN:
        return
    if "ref" in shape and not shape["ref"].startswith("pulumi.json"):
        yield from _check_object(types, shape["ref"], value, path)
    elif "ref" in shape or "asset" in shape:
        if not (isinstance(value, dict) and value.get(SIGNATURE) in ASSETS):
            yield path, f"must be an asset, not {_said(value)}"
    elif "array" in shape:
        if not isinstance(value, list):
            yield path, f"must be a list, not {_said(value)}"
        else:
            for i, item in enumerate(value):
                yield from _check(types, shape["array"], item, f"{path}[{i}]", where)
    elif "map" in shape:
        if not isinstance(value, dict):
            yield path, f"must be a map, not {_said(value)}"
        else:
            for key, item in value.items():
                yield from _check(types, shape["map"], item, f"{path}.{key}", where)
                if where.endswith((".labels", ".userLabels")) and where != "NotificationChannel.labels":
                    yield from _label(f"{path}.{key}", key, item)
    elif not _is(shape.get("type"), value):
        yield path, f"must be {shape['type']}, not {_said(value)}"
    else:
        legal = shape.get("enum") or ENUMS.get(where) or ENUMS.get("*." + where.rpartition(".")[2])
        if legal and value not in legal:
            yield path, f"{value!r} is none of {', '.join(legal)}"
        pattern = PATTERNS.get(where)
        if pattern and not re.fullmatch(pattern, value):
            yield path, f"{value!r} does not match {pattern}"


def _check_object(types: Json, ref: str, value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, dict) or SIGNATURE in value:
        yield path, f"must be an object, not {_said(value)}"
        return
    owner = types.get(ref)
    if owner is None:  # there are no facts about this type here
        return
    prefix = f"{path}." if path else ""
    for key in owner["required"]:
        if value.get(key) is None:
            yield prefix + key, "missing required property"
    for key, item in value.items():
        if key.startswith("__"):  # this key is the engine's own
            continue
        if key not in owner["properties"]:
            yield prefix + key, "unknown property"
        else:
            where = f"{ref.rpartition(':')[2].removesuffix('Args')}.{key}"
            yield from _check(types, owner["properties"][key], item, prefix + key, where)


def _is(kind: str | None, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and value == int(value),
    }.get(kind or "", True)


def _said(value: Any) -> str:
    return f"{type(value).__name__} {json.dumps(value)[:60]}"


def _label(path: str, key: str, value: Any) -> Iterator[Problem]:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key):
        yield path, f"{key!r} is no label key: a lower-case letter, then up to 62 of a-z, 0-9, _, -"
    if isinstance(value, str) and value != names.UNKNOWN and not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
        yield path, f"{value!r} is no label value: up to 63 of a-z, 0-9, _, -"


# The SDK's classes. --------------------------------------------------------------------------------------------------


@functools.cache
def sdk() -> Json:
    """Return {token or class name: {properties: {name: shape}, required: [name]}} of the SDK's *Args classes."""
    versions = "-".join(importlib.metadata.version(package) for package in PACKAGES)
    code = Path(__file__).read_bytes() + "".join(names.KINDS).encode()
    path = cache_root() / "stand-in" / f"sdk-{versions}-{hashlib.sha256(code).hexdigest()[:12]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(_read_sdk()))
        part.replace(path)  # another process may do the same: the last one wins, with the same content
    found: Json = json.loads(path.read_text())
    return found


def _read_sdk() -> Json:
    found: Json = {}
    for token in names.KINDS:
        package, module, name = token.split(":")
        where = f"pulumi_{package.replace('-', '_')}" + ("" if module == "index" else f".{module.split('/')[0]}")
        _describe_class(getattr(importlib.import_module(where), f"{name}Args"), token, found)
    _describe_class(importlib.import_module("pulumi_gcp").ProviderArgs, PROVIDER, found)
    return found


def _describe_class(cls: Any, key: str, found: Json) -> None:
    import inspect

    from pulumi import _types  # the module is private, so the SDK's version is pinned

    if key in found:
        return
    python = _types.input_type_py_to_pulumi_names(cls)
    required = [
        python[p.name]
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.name in python and p.default is p.empty
    ]
    entry: Json = {"properties": {}, "required": required}
    found[key] = entry
    for name, kind in _types.input_type_types(cls).items():
        entry["properties"][name] = _describe(kind, found)


def _describe(kind: Any, found: Json) -> Json:
    import enum
    import typing

    import pulumi
    from pulumi import _types

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (collections.abc.Sequence, list):
        return {"array": _describe(arguments[0], found)}
    if origin in (collections.abc.Mapping, dict):
        return {"map": _describe(arguments[1], found)}
    if arguments:  # this is a union with types that may be added later
        mine = [a for a in arguments if typing.get_origin(a) not in (collections.abc.Awaitable, pulumi.Output)]
        mine = [a for a in mine if a is not type(None)]
        if any(isinstance(a, type) and issubclass(a, pulumi.Asset | pulumi.Archive) for a in mine):
            return {"asset": True}
        return _describe(mine[0], found) if len(mine) == 1 else {}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"type": "string", "enum": [member.value for member in kind]}
    if isinstance(kind, type) and issubclass(kind, pulumi.Asset | pulumi.Archive):
        return {"asset": True}
    if isinstance(kind, type) and _types.is_input_type(kind):
        key = f"{kind.__module__}:{kind.__name__}"
        _describe_class(kind, key, found)
        return {"ref": key}
    plain = {str: "string", bool: "boolean", int: "integer", float: "number"}.get(kind)
    return {"type": plain} if plain else {}
