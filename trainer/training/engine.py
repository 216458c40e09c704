"""The interface between the training loop and the way in which trainers share a step."""

from typing import Protocol

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.membership import Quorum
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class Engine(Protocol):
    """One trainer's hold of the model. Any method may raise GroupFailed: then no step was taken."""

    progress: Progress
    writes: bool  # does the first trainer write records and status?

    @property
    def announcement(self) -> Announcement:
        """What this trainer announces to the other members now."""

    def restore(self) -> None:
        """The newest checkpoint's state, before this member joins."""

    def prepare(self, quorum: Quorum) -> bool:
        """All members are at the same point now; False: that takes another quorum."""

    def start(self, quorum: Quorum) -> None:
        """The parameters of this point are here, or on their way."""

    def ready(self) -> None:
        """They are here."""

    def backward_begins(self) -> None:
        """The step's last backward pass begins: gradients that are final may travel."""

    def backward_ends(self) -> None:
        """All gradients of this trainer are final."""

    def forward_ends(self, passes: int) -> None:
        """Evaluation is over, in which the trainer that had most computed so many micro-batches."""

    def sum(self, vote: Vote) -> Tally:
        """Sum the gradients and the votes over all members, and return the tally."""

    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        """The step is taken."""

    def abandon(self) -> None:
        """The group has failed in the middle of a step."""

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """A checkpoint of this point, in the background unless `wait`. Whether it is known to be whole."""

    def finish(self, quorum: Quorum) -> bool:
        """After the last step: the last checkpoint is written, the leader has the model; False: ask again."""
