"""Find the secret settings of the running program, and keep their values out of its messages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime.config import CONFIG, is_config_secret

from infra.stack import masking
from infra.stack.config import PROJECT, ROOT, ConfigError
from infra.stack.reading import all_settings, own_values, parsed


def without_secrets(text: str) -> str:
    """Return an error of the running program without the values of secret keys, as logs and reviews are public."""
    values = [parsed(value) for name, value in CONFIG.get().items() if is_config_secret(name)]
    hidden = {leaf: "[secret]" for value in values for leaf in masking.leaves(value)}
    return masking.masker(hidden)(text)


def secret_keys(root: Path = ROOT) -> list[str]:
    """Return the paths of secret settings; a whole key if the stack file does not show which part is secret."""
    names = sorted(
        name.removeprefix(f"{PROJECT}:") for name in CONFIG.get() if is_config_secret(name) and name.startswith(PROJECT)
    )
    try:
        values = own_values(all_settings(pulumi.get_stack(), root), pulumi.get_stack()) if names else {}
    except ConfigError:  # the CLI was given another stack file
        values = {}
    return [path for name in names for path in (list(_secure(values.get(name), name)) or [name])]


def _secure(value: Any, path: str) -> Iterator[str]:
    """Yield the paths of encrypted values; a list with one counts as a whole."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _secure(item, f"{path}.{key}")
    elif isinstance(value, list) and any(list(_secure(item, path)) for item in value):
        yield path
