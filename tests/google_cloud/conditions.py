"""Evaluate IAM conditions and attribute mappings, which Google writes in CEL, by a CEL library.

Google adds functions of its own to the language. Those that this project uses are here.
"""

import re
from collections.abc import Mapping
from typing import Any

import cel

from tests.google_cloud.errors import CloudError

Attributes = Mapping[str, Any]
OPERATORS, BYTES = 12, 100  # Google's limits: the logical operators of an expression, the bytes of a title
TEXTS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


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


def check(condition: Mapping[str, Any]) -> None:
    """Raise CloudError 400 for a condition that Google refuses.

    Sources: cloud.google.com/iam/quotas (operators, title). Cloud Storage knows no regular expressions
    (projectnessie/nessie#12901, lanes-sh/link#95).
    """
    expression, title = str(condition.get("expression") or ""), str(condition.get("title") or "")
    if not title or len(title.encode()) > BYTES:
        raise CloudError(400, "invalid", f"A condition needs a title of at most {BYTES} bytes.")
    code = TEXTS.sub("''", expression)
    if (count := len(re.findall(r"&&|\|\||!(?!=)", code))) > OPERATORS:
        raise CloudError(400, "invalid", f"The condition has {count} logical operators, more than {OPERATORS}.")
    if ".matches(" in code:
        raise CloudError(400, "invalid", "Condition expression compilation failed: undeclared reference to 'matches'.")
    try:
        cel.compile(expression)
    except (ValueError, RuntimeError) as error:
        raise CloudError(400, "invalid", f"Condition expression compilation failed: {error}.") from error
