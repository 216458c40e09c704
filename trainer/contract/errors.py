"""Errors that a user can cause, and how any error is shortened to a line."""

import re

_SOURCE = re.compile(r"\[/[^]]*\] ")  # the place in torch's own sources


class InputError(Exception):
    """The user's input cannot be trained, and trying again is no use. The message is one line: finding and fix."""


class MissingGpus(Exception):
    """The machine has fewer GPUs than its job declares; another try may find them. The message is one line."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, to be put into a sentence: at most 200 characters, no full stop.

    The type's name stands for an error without words. Google's errors say it in `message`, without the HTTP status.
    """
    message = str(getattr(error, "message", None) or error).strip()
    first = message.splitlines()[0] if message else type(error).__name__
    return _SOURCE.sub("", first)[:200].rstrip(".: ")
