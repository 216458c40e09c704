"""A vote that one server never heard: the step counts on all servers or on none. Members are threads here.

test_served_lanes.py loses votes of `synchronization: local`, and of one lane of two.
"""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.trainer.together import server, small, together
from trainer.cluster.group import GroupFailed
from trainer.parallel.ps_server import PsServer
from trainer.parallel.served_lanes import ServedLane
from trainer.training.member_context import MemberContext
from trainer.training.progress import Decision

pytestmark = pytest.mark.slow
STEPS = 30


# For each server: the steps whose vote it loses before and after it was held.
Lost = dict[str, tuple[set[int], set[int]]]


class Forgetful(PsServer):
    """A server that loses the vote of some steps.

    A vote lost before it is held reaches no member; one lost after it reaches all others.
    """

    before: set[int]
    after: set[int]

    def vote(self, lane: ServedLane, block_squares: Tensor) -> Tensor:
        step = self.progress.step
        if step in self.before:
            self.before.remove(step)
            raise GroupFailed("lost before the vote")
        votes = super().vote(lane, block_squares)
        if step in self.after:
            self.after.remove(step)
            raise GroupFailed("lost after the vote")
        return votes


def lives(folder: Path, lost: Lost, **overrides: Any) -> tuple[list[float | None], dict[str, list[str]]]:
    """Return the losses and the log lines of a run of one trainer and three servers, some of which lose votes."""
    overrides["cluster"] = {"parameterServers": 3, **overrides.get("cluster", {})}
    run = small(folder, STEPS, **overrides)

    def forgetful(context: MemberContext) -> PsServer:
        made = server(context, Forgetful)
        assert isinstance(made, Forgetful)
        before, after = lost[context.host.name]
        made.before, made.after = set(before), set(after)
        return made

    said = together(run, dict.fromkeys(lost, forgetful))
    return run.losses(), said


def rolls(said: list[str]) -> list[str]:
    return [line for line in said if "rolls forward" in line]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[float | None]:
    losses, _ = lives(tmp_path_factory.mktemp("calm"), {})
    assert len(losses) == STEPS
    return losses


@pytest.mark.parametrize("forgetful", ["ps-0", "ps-2"])
def test_commit_when_one_server_missed_the_vote_rolls_it_forward(
    tmp_path: Path, calm: list[float | None], forgetful: str
) -> None:
    """ps-0 writes the records, also of the step that it had missed."""
    lost = {1, 5, 6, STEPS - 1}
    losses, said = lives(tmp_path, {forgetful: (set(), lost)})
    assert losses == calm
    other = "ps-1" if forgetful == "ps-0" else "ps-0"
    assert rolls(said[forgetful]) == [
        f"rolls forward to step {step + 1}, which {other} has committed" for step in sorted(lost)
    ]


def test_step_whose_vote_was_lost_before_it_was_held_is_taken_again(tmp_path: Path, calm: list[float | None]) -> None:
    losses, said = lives(tmp_path, {"ps-1": ({0, 4, 5}, {4})})
    assert losses == calm
    assert len(rolls(said["ps-1"])) == 1
    assert sum("lost before the vote" in line for line in said["ps-1"]) == 3


def test_commit_when_two_servers_missed_the_vote_rolls_both_forward(tmp_path: Path, calm: list[float | None]) -> None:
    losses, said = lives(tmp_path, {"ps-0": ({9}, {2, 7}), "ps-2": (set(), {2, 12})})
    assert losses == calm
    assert [len(rolls(said[name])) for name in ("ps-0", "ps-1", "ps-2")] == [2, 0, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"parallel": {"plan": "hierarchical"}, "cluster": {"workers": 1}},
        {"hyperparameters": {"gradientClip": 0.0}},  # parameters come back while gradients are sent
    ],
    ids=["hierarchical", "interleaved"],
)
def test_commit_when_servers_missed_votes_rolls_them_forward_in_every_exchange(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    undisturbed, _ = lives(tmp_path / "calm", {}, **settings)
    losses, said = lives(tmp_path / "lost", {"ps-0": ({10}, {5}), "ps-2": (set(), {0, 10})}, **settings)
    assert losses == undisturbed
    assert [len(rolls(said[name])) for name in ("ps-0", "ps-1", "ps-2")] == [1, 0, 2]


def test_vote_of_the_previous_group_is_recognized_by_its_lineage() -> None:
    """A sum that was prepared in another try differs from the one that was committed."""
    from trainer.training.progress import Progress

    here, there = Progress(step=3, lineage=9), Progress(step=3, lineage=9)
    decision = Decision(loss=1.0, tokens=8, gradient_norm=1.0, finite=True, rate=0.1, factor=1.0)
    there.commit(decision, "a try", scaled=False)
    assert here.next_lineage("a try") == there.lineage
    assert here.next_lineage("another try") != there.lineage
