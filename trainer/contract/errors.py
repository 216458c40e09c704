"""Errors that a user can cause, and what makes one line of them."""

from collections.abc import Sequence

FEW = 5  # names in a line


class InputError(Exception):
    """What the user gave cannot be trained, and trying again is no use. One line: what was found, what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has none; at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def few(names: Sequence[str], others: str = "more") -> str:
    """Return the first names as `a, b and 3 more`, and `none` if there are none. others: a word for the rest."""
    line = ", ".join(names[:FEW]) or "none"
    return line + (f" and {len(names) - FEW} {others}" if len(names) > FEW else "")
