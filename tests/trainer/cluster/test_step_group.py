"""All processes of a machine take a step, or none: one of two processes, and what the other one says."""

import pytest
import torch
from torch import Tensor

from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.processes import Processes
from trainer.cluster.step_group import StepGroup


class Two(Processes):
    """The first of two processes. The other one has failed or not, and its sums are those of this one."""

    def __init__(self, other_failed: bool = False) -> None:
        self.rank, self.size, self.other_failed, self.asked = 0, 2, other_failed, 0

    def any(self, flag: bool) -> bool:
        self.asked += 1
        return flag or self.other_failed

    def sum(self, tensor: Tensor) -> None:
        tensor[:-1] *= 2
        tensor[-1] += self.other_failed


def lane(failed: bool = False) -> MemberGroup:
    group = MemberGroup(None, 0, 1, torch.device("cpu"))
    if failed:
        group.close()
    return group


def test_sum_of_two_processes_adds_both_and_waits_for_no_lane_alone() -> None:
    sums = StepGroup(lane(), Two()).sum(torch.tensor([1.0, 2.0]), torch.tensor([3.0]))
    assert sums.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(("mine", "other"), [(True, False), (False, True)])
def test_sum_where_one_process_lost_its_lane_raises_in_both(mine: bool, other: bool) -> None:
    with pytest.raises(GroupFailed):
        StepGroup(lane(mine), Two(other)).sum(torch.tensor([1.0]))


@pytest.mark.parametrize("other", [False, True])
def test_agreed_raises_what_another_process_met(other: bool) -> None:
    done = []
    if not other:
        with StepGroup(lane(), Two()).agreed():
            done.append(1)
        assert done
        return
    with pytest.raises(GroupFailed, match="another process"), StepGroup(lane(), Two(other_failed=True)).agreed():
        done.append(1)
    assert done  # its own part was done


def test_check_of_a_slow_step_raises_when_another_process_lost_its_lane() -> None:
    with pytest.raises(GroupFailed):
        StepGroup(lane(), Two(other_failed=True), slow=True).check()


def test_check_of_a_quick_step_asks_nobody_and_leaves_the_failure_to_the_vote() -> None:
    processes = Two(other_failed=True)
    StepGroup(lane(failed=True), processes).check()
    assert processes.asked == 0
