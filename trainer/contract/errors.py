"""Errors that a user can cause, and how they are shortened to a line."""


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class InputError(Exception):
    """What the user gave cannot be trained, and trying again is no use. One line: what was found, what to do."""
