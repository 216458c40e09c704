"""Write docs/stack.schema.json, by which editors complete stack files, and docs/reference.md, which explains every key.

Both are made from the descriptions in infra/stack/keys.py and trainer/contract/options.py. --check only reports whether
they are as the descriptions say; the exit code is 1 if not.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.checks.google import PROJECT_ID
from infra.stack.config import DEFAULT_REGION, PROJECT
from infra.stack.explain import allowed
from infra.stack.keys import DIGITS, StackFile, TrainingInput
from scripts.support.common import CHECKOUT, run_main

Schema = dict[str, Any]
SCHEMA, REFERENCE = Path("docs/stack.schema.json"), Path("docs/reference.md")
QUOTED_COUNTS = ("workerCount", "minWorkers", "parameterServerCount")  # they may be quoted, as in AI Platform's files
# A top-level value that Pulumi keeps as a text: `pulumi config set` writes launch: "1", and objects as JSON.
TEXTS = {"integer": f"^{DIGITS}$", "boolean": "^(true|false)$", "object": r"^\s*\{"}
GCP = {
    "gcp:project": {
        "type": "string",
        "pattern": f"^{PROJECT_ID.pattern}$",
        "description": "Google Cloud only, and required there: the id of the project, neither its number nor its name.",
    },
    "gcp:region": {
        "type": "string",
        "pattern": "^[a-z]+-[a-z]+[0-9]+$",
        "default": DEFAULT_REGION,
        "description": "Google Cloud only: the region of the machines, the buckets and the registry.",
    },
}
PULUMI = {
    "encryptionsalt": "The salt of the passphrase that encrypts this stack's secrets. Pulumi writes it.",
    "secretsprovider": "The key that encrypts this stack's secrets. Pulumi writes it.",
    "encryptedkey": "The encrypted data key of this stack's secrets. Pulumi writes it.",
}
HEAD = f"""# Every key of a stack file

Made by `make schema` from `infra/stack/keys.py` and `trainer/contract/options.py`: do not edit it here. The same
descriptions are in [{SCHEMA.name}]({SCHEMA.name}). The first line of a stack file names it, so that an editor
with a YAML language server completes keys and shows what they mean.

Keys are below `config:` as `{PROJECT}:KEY`, or `KEY` alone. A mistake is one line at `pulumi preview`.
[README](../README.md#the-stack-file) has the most common changes, [google-cloud.md](google-cloud.md) what a change
does to machines that run.
"""


def stack_schema() -> Schema:
    """Return the JSON Schema of a whole Pulumi.<stack>.yaml."""
    model = StackFile.model_json_schema(by_alias=True)
    for name in ("$defs", "properties"):
        model[name] = {key: _plain(node) for key, node in model[name].items()}
    for name in QUOTED_COUNTS:
        node = model["$defs"][TrainingInput.__name__]["properties"][name]
        _also(node, {"type": "string", "pattern": f"^{DIGITS}$"})
    for definition in model["$defs"].values():
        for node in definition["properties"].values():
            _let_secrets_in(node)
    keys: Schema = {}
    for name, node in model["properties"].items():
        also = [{"type": "string", "pattern": TEXTS[kind]} for kind in _types(node, model) if kind in TEXTS]
        _also(node, *also, {"$ref": "#/$defs/secret"})
        keys[f"{PROJECT}:{name}"] = node
    short = {  # the same without the project's name; an editor offers the long one alone
        name: {"$ref": f"#/properties/config/properties/{PROJECT}:{name}", "doNotSuggest": True}
        for name in model["properties"]
    }
    gcp = {name: dict(node) for name, node in GCP.items()}
    for node in gcp.values():
        _also(node, {"$ref": "#/$defs/secret"})
    secret = {
        "type": "object",
        "description": "A secret as Pulumi encrypts it: `pulumi config set --secret` writes it.",
        "properties": {"secure": {"type": "string"}},
        "required": ["secure"],
        "additionalProperties": False,
    }
    config = {
        "type": "object",
        "description": f"The keys of {PROJECT}, and of Pulumi's providers.",
        "properties": {**keys, **gcp, **short},
        "patternProperties": {f"^(?!{PROJECT}:)[^:]+:.+$": {}},  # other namespaces
        "additionalProperties": False,
        "allOf": [{"anyOf": [{"required": [f"{PROJECT}:{name}"]}, {"required": [name]}]} for name in model["required"]],
    }
    environment = {"type": ["array", "object"], "description": "Environments of Pulumi ESC."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A stack file of {PROJECT}",
        "description": f"Made by `make schema`. {REFERENCE.name} beside it has the same descriptions.",
        "type": "object",
        "properties": {
            "config": config,
            **{name: {"type": "string", "description": description} for name, description in PULUMI.items()},
            "environment": environment,
        },
        "required": ["config"],
        "additionalProperties": False,
        "$defs": {**model["$defs"], "secret": secret},
    }


def _plain(node: Schema) -> Schema:
    """Return a schema without titles, with defaults of plain values alone and one paragraph a description."""
    plain = {name: value for name, value in node.items() if name != "title"}
    if plain.get("default") is None or isinstance(plain["default"], dict):
        plain.pop("default", None)
    if "description" in plain:
        plain["description"] = " ".join(plain["description"].split("\n\n")[0].split())
    if "properties" in plain:
        plain["properties"] = {name: _plain(value) for name, value in plain["properties"].items()}
    return plain


def _types(node: Schema, model: Schema) -> Iterator[str]:
    """Yield the types that a schema allows; one behind a reference is an object."""
    for option in node.get("anyOf", [node]):
        yield "object" if "$ref" in option else option["type"]


def _type(node: Schema) -> Schema:
    """Return the part of a schema that says what is allowed, without description and default."""
    return {name: value for name, value in node.items() if name not in ("description", "default")}


def _also(node: Schema, *more: Schema) -> None:
    """Let a schema allow something else too."""
    options = node.pop("anyOf", None) or [_type(node)]
    for name in _type(node):
        node.pop(name)
    node["anyOf"] = [*options, *more]


def _let_secrets_in(node: Schema) -> None:
    """Allow an encrypted value where any text may stand, in lists too; numbers and choices are no secrets."""
    options = node.get("anyOf", [node])
    for option in options:
        if option.get("type") == "array" and option["items"].get("type") == "string":
            _also(option["items"], {"$ref": "#/$defs/secret"})
    if any(option.get("type") == "string" and "enum" not in option and "pattern" not in option for option in options):
        _also(node, {"$ref": "#/$defs/secret"})


def reference() -> str:
    """Return docs/reference.md: a table of the top-level keys, then a section for each object."""
    model = StackFile.model_json_schema(by_alias=True)
    lines = [HEAD, *_table("", model, model), *(_row("", name, node, False, model) for name, node in GCP.items())]
    for name, node in model["properties"].items():
        lines += _sections(name, node, model)
    return "\n".join(lines) + "\n"


def _sections(path: str, node: Schema, model: Schema) -> Iterator[str]:
    """Yield the section of an object and those of the objects inside it; nothing for another value."""
    name, suffix = _object_of(node)
    if not name:
        return
    definition, path = model["$defs"][name], f"{path}{suffix}"
    yield f"\n## {path}\n\n{_plain(definition)['description']}\n"
    yield from _table(f"{path}.", definition, model)
    for key, inner in definition["properties"].items():
        yield from _sections(f"{path}.{key}", inner, model)


def _object_of(node: Schema) -> tuple[str, str]:
    """Return the name of the definition that a schema refers to, empty if to none, and [] if it is in a list."""
    for option in node.get("anyOf", [node]):
        inner, suffix = (option["items"], "[]") if option.get("type") == "array" else (option, "")
        if "$ref" in inner:
            return inner["$ref"].rpartition("/")[2], suffix
    return "", ""


def _table(path: str, definition: Schema, model: Schema) -> Iterator[str]:
    """Yield a table of an object's keys; `path` is the object's own, with a dot at its end."""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    required = definition.get("required", [])
    for name, node in definition["properties"].items():
        yield _row(path, name, node, name in required, model)


def _row(path: str, name: str, node: Schema, required: bool, model: Schema) -> str:
    """Return a key as a row of a table: its value in words, its default and its meaning."""
    definition, suffix = _object_of(node)
    if definition:
        anchor = f"{path}{name}".lower().replace(".", "").replace("[]", "")
        value = f"[{'a list' if suffix else 'keys'}](#{anchor})"
        meaning = node.get("description") or model["$defs"][definition]["description"]
        default = None
    else:
        value, default, meaning = allowed(_without_null(node)), node.get("default"), node["description"]
    shown = "" if default in (None, []) else f"`{default if isinstance(default, str) else json.dumps(default)}`"
    return f"| `{name}` | {value} | {'required' if required else shown} | {meaning} |"


def _without_null(node: Schema) -> Schema:
    """Return the schema of an optional key as that of a key that is given."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return {**node, **options[0]} if options else node


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not up to date")
    options = parser.parse_args(arguments)
    stale = 0
    for path, text in (
        (SCHEMA, json.dumps(stack_schema(), indent=2, ensure_ascii=False) + "\n"),
        (REFERENCE, reference()),
    ):
        file = CHECKOUT / path
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(f"{path} is not what the descriptions of the keys say; run `make schema` and commit it")
            stale = 1
        else:
            file.write_text(text, encoding="utf-8")
            print(f"{path} written")
    return stale


if __name__ == "__main__":
    run_main(main)
