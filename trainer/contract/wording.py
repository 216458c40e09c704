"""Word durations, lists and roles for the lines that people see."""

import re
from collections.abc import Sequence

from trainer.contract.spec import Role

FEW = 5  # names in a line
ROLE_NAMES: dict[Role, str] = {"master": "master", "worker": "worker", "ps": "parameter server"}
ROLE_PLURALS: dict[Role, str] = {"master": "master", "worker": "workers", "ps": "parameter servers"}  # one master
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # colours too; not tab and newline


def duration(seconds: float) -> str:
    """Return seconds as `0:07`, `12:05`, `3:04:05` or `2d 03:04`."""
    whole = max(round(seconds), 0)
    minutes, hours, days = whole // 60 % 60, whole // 3600 % 24, whole // 86400
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def few(names: Sequence[str], others: str = "more") -> str:
    """Return the first names as `a, b and 3 more`, and `none` if there are none. others: a word for the rest."""
    line = ", ".join(names[:FEW]) or "none"
    return line + (f" and {len(names) - FEW} {others}" if len(names) > FEW else "")


def printable(text: str) -> str:
    """Return text without the control characters that colours and progress bars leave in a log."""
    return CONTROL.sub("", text)
