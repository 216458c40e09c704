"""Evaluate IAM conditions and attribute mappings, which Google writes in CEL, by a CEL library.

Google adds functions of its own to the language. Those that this project uses are here.
"""

from collections.abc import Mapping
from typing import Any

import cel

Attributes = Mapping[str, Any]


def evaluate(expression: str, variables: Attributes, attributes: Attributes | None = None) -> Any:
    """Return the value of an expression.

    Args:
        expression: in CEL.
        variables: the values of its variables, such as `resource`, `request` or `assertion`.
        attributes: the API attributes that `api.getAttribute(name, default)` returns.

    Raises:
        ValueError: the expression does not compile, or a value that it needs is missing.
    """
    context = cel.Context()
    for name, value in variables.items():
        context.add_variable(name, value)
    context.add_variable("api", {})
    context.add_function("getAttribute", lambda _api, name, default: (attributes or {}).get(name, default))
    context.add_function("hasOnly", lambda values, allowed: set(values) <= set(allowed))
    try:
        return cel.evaluate(expression, context)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{expression}: {error}") from error


def holds(condition: str, resource: str = "", attributes: Attributes | None = None) -> bool:
    """Return whether an IAM condition holds for a resource name. A condition that cannot be evaluated does not hold."""
    try:
        return evaluate(condition, {"resource": {"name": resource}}, attributes) is True
    except ValueError:
        return False
