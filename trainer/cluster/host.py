"""The process that a member runs in, as the member sees it."""

from typing import Protocol


class Host(Protocol):
    """A member's connection to its machine: it logs, reports to the supervisor, and learns that it must leave."""

    @property
    def name(self) -> str:
        """The machine's name in the run."""

    @property
    def address(self) -> str:
        """The machine, as the others see it."""

    def log(self, line: str) -> None:
        """Print a line."""

    def report(self, message: str | None = None, step: int | None = None, patience: float | None = None) -> None:
        """Tell the supervisor what this machine does; patience: seconds that it may be silent from now on."""

    def waiting(self, reason: str) -> None:
        """Say which members are missing, as long as there are not enough for a step."""

    def stopping(self) -> bool:
        """Return whether this member must leave."""
