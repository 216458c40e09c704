"""The interface between the training loop and the way in which trainers share a step."""

from typing import Protocol

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.quorum import Quorum
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class Engine(Protocol):
    """One process's parameters and gradients, and their exchange. After GroupFailed no step was taken.

    All processes of a machine call the same methods in the same order. Of each call that raises GroupFailed in one of
    them, it raises it in all.
    """

    progress: Progress
    writes: bool  # whether the first trainer writes records and status

    @property
    def announcement(self) -> Announcement:
        """The announcement of this trainer to the other members."""

    def restore(self) -> None:
        """Take the newest checkpoint's state, before this member joins."""

    def prepare(self, quorum: Quorum) -> bool:
        """Bring all members to the same position. Return False if that takes another quorum."""

    def start(self, quorum: Quorum) -> None:
        """Begin to fetch the parameters of this position, where they are not here."""

    def ready(self) -> None:
        """Wait for the parameters."""

    def backward_begins(self) -> None:
        """Let gradients that become final travel: the step's last backward pass begins."""

    def backward_ends(self, passes: int) -> None:
        """Send the rest: all gradients of this process are final. passes: micro-batches of the busiest process."""

    def forward_ends(self, passes: int) -> None:
        """End an evaluation, in which the busiest process computed so many micro-batches."""

    def sum(self, vote: Vote) -> Tally:
        """Sum the gradients and the votes over all processes of all members, and return the tally."""

    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        """Take the step. key: of the group; scaled: whether the loss is scaled (fp16)."""

    def abandon(self) -> None:
        """Forget the step in which the group has failed."""

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """Write a checkpoint of this position, in the background unless `wait`.

        Return whether it is known to be whole.
        """

    def finish(self, quorum: Quorum) -> bool:
        """Write the last checkpoint, and give the leader the whole model. Return False if it must be called again."""
