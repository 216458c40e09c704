"""Explain a pydantic error in one line for a person: the key, what was found, which values are allowed."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

# Keys of AI Platform's trainingInput for its code, its region and its images, which the stack decides here.
AI_PLATFORM_ONLY = {
    *("packageUris", "pythonModule", "args", "region", "jobDir"),
    *("runtimeVersion", "pythonVersion", "masterConfig", "workerConfig", "parameterServerConfig"),
    *("evaluatorType", "evaluatorCount", "evaluatorConfig", "useChiefInTfConfig", "scheduling"),
    *("network", "serviceAccount", "encryptionConfig", "enableWebAccess"),
}


def explain(error: ValidationError, model: type[BaseModel], namespace: str, examples: Mapping[str, str]) -> list[str]:
    """Return one line for each error, starting with the full key as a stack file has it: `namespace:key.key`.

    Args:
        error: pydantic's error.
        model: the model that it is about, by whose schema keys and bounds are told.
        namespace: the name before the colon of each key.
        examples: by key without namespace, an example to show if the key's type alone does not help.
    """
    schema = model.model_json_schema(by_alias=True)
    return [_line(dict(e), schema, namespace, examples) for e in error.errors(include_url=False)]


def key(namespace: str, path: Sequence[int | str]) -> str:
    """Return a key as a stack file has it."""
    return f"{namespace}:" + ".".join(map(str, path))


def unknown(name: str, allowed: Sequence[str]) -> str:
    """Return a hint for a name that is not allowed: the closest one, or all of them."""
    close = difflib.get_close_matches(to_camel(name), allowed, n=1)
    close = close or [a for a in allowed if a.lower() == name.replace("_", "").lower()]
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(allowed))}"


def shown(value: Any) -> str:
    """Return a found value in at most 60 characters."""
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: dict[str, Any], schema: dict[str, Any], namespace: str, examples: Mapping[str, str]) -> str:
    """Return one of pydantic's errors as a line."""
    path, kind, value = error["loc"], error["type"], error["input"]
    start = key(namespace, path)
    if kind == "extra_forbidden":
        name = str(path[-1])
        if path[:-1] == ("trainingInput",) and name in AI_PLATFORM_ONLY:
            return f"{start}: this key of AI Platform has no meaning here; remove it"
        return f"{start}: unknown key; {unknown(name, list(_resolve(schema, path[:-1]).get('properties', {})))}"
    if kind == "value_error":
        return f"{start}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    example = examples.get(".".join(map(str, path)))
    if kind == "missing":
        return f"{start}: missing; give {example or _allowed(_resolve(schema, path))}"
    hint = f"; for example {example}" if example else ""
    if isinstance(value, str) and kind in ("int_type", "float_type") and _is_number(value):
        hint = f"; write {value} without quotes (pulumi config set: add --type {kind.removesuffix('_type')})"
    elif isinstance(value, str) and kind == "bool_type" and value.lower() in ("true", "false"):
        hint = f"; write {value.lower()} without quotes (pulumi config set: add --type bool)"
    elif isinstance(value, str) and kind == "literal_error":
        close = difflib.get_close_matches(value, _resolve(schema, path).get("enum", []), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
    return f"{start}: found {shown(value)}, must be {_allowed(_resolve(schema, path))}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _follow(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema behind a node's reference, without the null of an optional field."""
    if "anyOf" in node:
        rest = [option for option in node["anyOf"] if option.get("type") != "null"]
        node = {**node, **rest[0]}
    if "$ref" in node:
        node = {**schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _resolve(schema: dict[str, Any], path: Sequence[int | str]) -> dict[str, Any]:
    """Return the schema of the value at a path; empty if there is none."""
    node = schema
    for part in path:
        inner = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        node = _follow(inner, schema)
    return node


def allowed(node: dict[str, Any]) -> str:
    """Return in words which values a schema allows."""
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    kind = node.get("type")
    if kind == "object":
        return "keys and values"
    type_names = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
    type_names["array"] = "a list"
    bounds = []
    for name, phrase in (("exclusiveMinimum", "above"), ("minimum", "at least")):
        bounds += [f"{phrase} {node[name]:g}"] if name in node else []
    for name, phrase in (("exclusiveMaximum", "below"), ("maximum", "at most")):
        bounds += [f"{phrase} {node[name]:.12g}"] if name in node else []
    return ", ".join([type_names.get(str(kind), "something else"), *([" and ".join(bounds)] if bounds else [])])


def _allowed(node: dict[str, Any]) -> str:
    """Return which values a schema allows, with the default if there is one."""
    default = node.get("default")
    if default in (None, []) or "enum" in node or node.get("type") == "object":
        return allowed(node)
    return f"{allowed(node)} (default {json.dumps(default)})"
