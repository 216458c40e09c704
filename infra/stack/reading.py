"""Read Pulumi.<stack>.yaml without the Pulumi CLI, as Pulumi itself would."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.stack import plain_yaml
from infra.stack.config import PROJECT, ROOT, ConfigError
from infra.stack.explain import shown, unknown

# Stand-ins for encrypted values whose key accepts only some texts.
SECRETS = {"notify": "secret@example.com", "limits.billingAccount": "000000-000000-000000"}


def stack_values(stack: str, root: Path = ROOT) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the project's own keys of Pulumi.<stack>.yaml, readable(), and the keys of gcp. Raise ConfigError."""
    every = all_settings(stack, root)
    own = {name: parsed(value) if isinstance(value, str) else value for name, value in own_values(every, stack).items()}
    return {name: readable(value, name) for name, value in own.items()}, gcp_values(every)


def readable(value: Any, path: str) -> Any:
    """Return a setting with a stand-in for each encrypted value, which only Pulumi can decrypt."""
    if isinstance(value, dict):
        if set(value) == {"secure"}:
            return SECRETS.get(path.removeprefix(f"{PROJECT}:"), "secret")
        return {key: readable(item, f"{path}.{key}") for key, item in value.items()}
    return [readable(item, path) for item in value] if isinstance(value, list) else value


def all_settings(stack: str, root: Path) -> dict[str, Any]:
    """Return everything below config: in Pulumi.<stack>.yaml. Raise ConfigError."""
    path = root / f"Pulumi.{stack}.yaml"
    stacks = {p.name.removeprefix("Pulumi.").removesuffix(".yaml"): p for p in root.glob("Pulumi.*.yaml")}
    if stack not in stacks:
        raise ConfigError([f"stack {stack}: there is no {path.name}; {unknown(stack, sorted(stacks))}"])
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{path.name} cannot be read: {line}{error.problem}"]) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path.name} cannot be read: {' '.join(str(error).split())}"]) from None
    return {str(name): value for name, value in _section(path.name, content).items()}


def _section(file: str, content: Any) -> dict[Any, Any]:
    """Return everything below config: in a stack file's content. Raise ConfigError if there is nothing."""
    fix = "write your keys below it, as Pulumi.local.yaml and Pulumi.single.yaml do"
    if content is None:
        raise ConfigError([f"{file} is empty; give it a config: and {fix}"])
    if not isinstance(content, dict) or "config" not in content:
        names = [str(name) for name in content] if isinstance(content, dict) else []
        close = difflib.get_close_matches("config", names, n=1)
        raise ConfigError([f"{file} has no config:; {f'is {close[0]}: meant for it? else ' if close else ''}{fix}"])
    section = content["config"]
    if not isinstance(section, dict):
        raise ConfigError([f"{file}: config: found {shown(section)}, must be keys and values; {fix}"])
    return section


def own_values(section: Mapping[str, Any], stack: str) -> dict[str, Any]:
    """Return the project's own keys. Raise ConfigError for a misspelled project name, which Pulumi would ignore."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        namespace, _, short = name.rpartition(":")
        if namespace in ("", PROJECT):  # Pulumi takes a key without a namespace for the project's own
            if short in values:
                raise ConfigError([f"{name}: is there twice, as {short} and {PROJECT}:{short}; remove one"])
            values[short] = value
        elif difflib.get_close_matches(namespace, [PROJECT], cutoff=0.8):
            raise ConfigError([f"{name}: unknown key; did you mean {PROJECT}:{short}?"])
    if not values:  # one line instead of one for each required key
        copied = "Pulumi.local.yaml and Pulumi.single.yaml are there to be copied"
        raise ConfigError([f"Pulumi.{stack}.yaml has no keys of {PROJECT} below config:; {copied}"])
    return values


def gcp_values(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of gcp:, without that prefix."""
    return {name.removeprefix("gcp:"): value for name, value in section.items() if name.startswith("gcp:")}


def parsed(text: str) -> Any:
    """Return the value of a text in a stack file: `pulumi config set` puts plain values in quotes, launch: "1"."""
    try:
        return json.loads(text)
    except ValueError:
        return text
