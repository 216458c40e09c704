"""The members of a run's next step, as all of them see it."""

from dataclasses import dataclass
from typing import Any, Self

from trainer.cluster.announcement import NOTHING, Announcement, Position
from trainer.cluster.group import MemberGroup
from trainer.cluster.step_group import StepGroup


@dataclass(frozen=True)
class Member:
    """A member of the run, as it described itself when it asked for a quorum."""

    name: str
    progress: Position
    trainers: int  # declared ones, as this member read the job when it started
    leaving: bool = False  # it takes no further step
    announced: Announcement = NOTHING

    @property
    def serves(self) -> bool:
        """Return whether it is a parameter server, and no trainer."""
        return self.name.startswith("ps-")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "progress": list(self.progress),
            "trainers": self.trainers,
            "leaving": self.leaving,
            "told": self.announced.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read a member from JSON. Keys of others are ignored."""
        announced = Announcement.from_json(values["told"])
        return cls(values["name"], Position(*values["progress"]), values["trainers"], values["leaving"], announced)


@dataclass(frozen=True)
class Roster:
    """The members of the next step, as all of them see it."""

    members: tuple[Member, ...]  # by rank: trainers by name, then parameter servers by name
    leaving: tuple[Member, ...]  # members that take no further step and have no rank
    enough: bool  # whether the members can take a step; if not, a member is leaving
    rank: int  # -1 for one that is leaving
    key: str  # names this group: the same for all its members, different for any other group
    attempt: int


@dataclass(frozen=True)
class Agreement(Roster):
    """The roster on which the Lighthouse's answer lets all agree, and how to form the groups of its members."""

    store: str = ""  # address of the first member's TCPStore, over which the groups form; "" for a member alone
    timeout: float = 0.0  # seconds of a collective
    number: int = 0  # of the Lighthouse's quorum
    reconnected: int = 0  # how often this machine has lost the Lighthouse, and with it its groups

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        members = {key: [member.to_json() for member in values[key]] for key in ("members", "leaving")}
        return {**values, **members}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        members = {key: tuple(Member.from_json(one) for one in values[key]) for key in ("members", "leaving")}
        return cls(**{**values, **members})


@dataclass(frozen=True)
class Quorum(Roster):
    """The members of the next step, and their groups."""

    lanes: tuple[MemberGroup, ...]  # of a trainer its process's own lane; of a parameter server all
    group: StepGroup  # this process's lane, and the other processes of its machine

    @property
    def lane(self) -> MemberGroup:
        """The lane of this process. A parameter server's first."""
        return self.lanes[0]

    @property
    def trainers(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if not member.serves)

    @property
    def servers(self) -> tuple[Member, ...]:
        """The parameter servers by name, leaving ones too: the part of the parameters that they hold counts."""
        serving = [member for member in (*self.members, *self.leaving) if member.serves]
        return tuple(sorted(serving, key=lambda member: member.name))

    @property
    def declared(self) -> int:
        """Declared trainers, as the first member read them: so all cut a batch alike while workerCount changes."""
        return self.members[0].trainers
