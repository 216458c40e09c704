"""Share code between our dynamic resources.

Pulumi pickles a provider by the name of its class, so renaming one strands the stacks that exist.
"""

from typing import Any

from pulumi.dynamic import ResourceProvider

Properties = dict[str, Any]


class Provider(ResourceProvider):
    """The base of our providers. They have no fields: a change of code must not be a change of the stack."""

    serialize_as_secret_always = False  # nothing here is secret, and diffs stay readable


def plain(value: Any) -> Any:
    """Return inputs with whole numbers as ints, at any depth: Pulumi passes all numbers as floats."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def changed(olds: Properties, news: Properties) -> set[str]:
    """Return the names of the inputs that differ."""
    return {key for key in news if not key.startswith("__") and plain(olds.get(key)) != plain(news[key])}
