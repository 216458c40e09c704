"""The position and the announcement that a member gives the others each time it asks for a quorum."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self


class Position(NamedTuple):
    """A point of a run: members whose positions are equal hold the same parameters."""

    step: int  # steps done; -1 where no whole copy of the parameters is held
    evaluations: int  # step of the newest evaluation
    lineage: int  # hash of the groups that took the steps


@dataclass(frozen=True)
class Tally:
    """The votes of a step, summed over all members: every member decides by it, and all decide alike."""

    loss: float  # sum over the tokens, nats
    tokens: float  # that count
    norm: float  # of the summed gradient, as it was scaled; nan if it is not finite
    waited: float = 0.0  # seconds, summed over trainers; stays with the member that counted it


@dataclass(frozen=True)
class Announcement:
    """Facts about a member, besides its position, that the others need. Trainers and servers fill fields of their own.

    As JSON, fields that hold their default are left out, and unknown ones are ignored.
    """

    # Trainers.
    peak: float | None = None  # tokens/s at the peak of its machine's devices; None where that is not known
    scaled: bool = False  # whether its loss is scaled (fp16)
    holds: int | None = None  # lineage of the parameters that it holds; -1 if it holds none
    # Parameter servers.
    place: int | None = None  # its index among the servers, once it knows it
    filled: bool = False  # whether it holds parameters
    reaches: int | None = None  # lineage after the step that it has prepared, if it has prepared one
    vote: Tally | None = None  # of the last step that it committed
    validation: float | None = None  # newest validation loss, nats
    bad: tuple[str, ...] = ()  # checkpoints that it could not restore
    done: bool = False  # whether it has written the last checkpoint
    unwritten: bool = False  # whether its last checkpoint is so old that the next meeting must write one

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.vote is not None:
            values["vote"] = [self.vote.loss, self.vote.tokens, self.vote.norm]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        arguments = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "vote" in arguments:
            arguments["vote"] = Tally(*arguments["vote"])
        if "bad" in arguments:
            arguments["bad"] = tuple(arguments["bad"])
        return cls(**arguments)


NOTHING = Announcement()
