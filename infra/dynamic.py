"""What our dynamic resources share. Pulumi pickles a provider by the name of its class: renaming one strands stacks."""

from typing import Any

from pulumi.dynamic import ResourceProvider

Properties = dict[str, Any]


class Provider(ResourceProvider):
    """What all providers here share. They have no fields: a change of code must not be a change of the stack."""

    serialize_as_secret_always = False  # nothing here is secret, and diffs stay readable


def plain(value: Any) -> Any:
    """Pulumi hands over all numbers as floats: whole ones as ints again, at any depth."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def changed(olds: Properties, news: Properties) -> set[str]:
    """Names of the inputs that differ."""
    return {key for key in news if not key.startswith("__") and plain(olds.get(key)) != plain(news[key])}
