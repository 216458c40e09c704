"""Membership with real Lighthouses and gloo groups. Each member is a thread with a Cluster of its own."""

import json
import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from trainer.cluster import delegate as delegate_module
from trainer.cluster import lighthouse
from trainer.cluster.announcement import NOTHING, Announcement, Position, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.lease import Lease, NoProgress
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.membership import Membership
from trainer.cluster.processes import Processes
from trainer.cluster.quorum import Quorum
from trainer.contract.spec import Cluster, JobSpec
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

T = TypeVar("T")
PATIENCE = 60.0  # seconds that anything may take on a busy machine


class Member:
    """A member of the cluster in a thread of its own: its Cluster, and the lines that it logged."""

    def __init__(self, storage: Storage, name: str, declared: Cluster, processes: Processes | None = None) -> None:
        self.name, self.stop = name, threading.Event()
        self.said: list[str] = []
        self.thread = ThreadPoolExecutor(1)
        self.address, self.log, self.waiting, self.stopping = (
            "127.0.0.1",
            self.said.append,
            self.said.append,
            self.stop.is_set,
        )
        spec = JobSpec.model_construct(run="a-run", cluster=declared)
        processes = processes or Processes(1, (), print)
        self.membership = Membership(storage, spec, self, torch.device("cpu"), processes)

    def report(self, message: str | None = None, step: int | None = None, patience: float | None = None) -> None:
        self.said += [message] if message else []

    def start(self, call: Callable[..., T], *arguments: Any) -> "Future[T]":
        return self.thread.submit(call, *arguments)

    def join(self) -> "Future[None]":
        return self.start(self.membership.join, 0.0)

    def quorum(self, step: int = 0, announcement: Announcement = NOTHING) -> "Future[Quorum]":
        return self.start(self.membership.quorum, Position(step, 0, 0), announcement)


def declare(trainers: int, servers: int = 0, least: int = 1) -> Cluster:
    return Cluster(workers=trainers - 1, parameter_servers=servers, min_workers=least - 1)


class Machines:
    """The members of a test."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.all: list[Member] = []

    def add(self, name: str, trainers: int = 1, servers: int = 0, least: int = 1) -> Member:
        self.all.append(Member(self.storage, name, declare(trainers, servers, least)))
        return self.all[-1]

    def end(self) -> None:
        for member in self.all:
            member.stop.set()
        for member in self.all:
            member.membership.close()
            member.thread.shutdown()

    def lease(self) -> dict[str, Any]:
        lease: dict[str, Any] = json.loads(self.storage.read("runs/a-run/cluster.json"))
        return lease


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Shorten the cluster's periods: what takes 15 seconds in a run takes two here."""
    monkeypatch.setattr(lighthouse, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lighthouse, "HEARTBEAT_LOST", 1.5)
    monkeypatch.setattr("trainer.cluster.lease.RENEWED", 0.3)
    monkeypatch.setattr("trainer.cluster.lease.LOST", 2.0)
    found = Machines(open_storage(str(tmp_path)))
    yield found
    found.end()


def each(futures: "list[Future[T]]") -> list[T]:
    return [future.result(PATIENCE) for future in futures]


def together(machines: Machines, names: list[str]) -> list[Member]:
    """Return members that have joined a cluster which declares exactly them."""
    servers = sum(name.startswith("ps-") for name in names)
    members = [machines.add(name, len(names) - servers, servers) for name in names]
    each([member.join() for member in members])
    return members


def until(condition: Callable[[], bool], *unless: "Future[Any]") -> None:
    """Poll until the condition holds; fail if one of the futures is done before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert not any(future.done() for future in unless)
        assert time.monotonic() < end
        time.sleep(0.01)


def all_said(members: list[Member], words: str) -> Callable[[], bool]:
    return lambda: all(words in member.said for member in members)


def names(quorum: Quorum) -> list[str]:
    return [member.name for member in quorum.members]


def test_members_that_joined_together_see_one_quorum(machines: Machines) -> None:
    members = together(machines, ["worker-1", "master-0", "worker-0"])
    quorums = each([member.quorum() for member in members])
    assert [names(q) for q in quorums] == [["master-0", "worker-0", "worker-1"]] * 3
    assert [q.rank for q in quorums] == [2, 0, 1]
    assert len({q.key for q in quorums}) == 1
    assert {q.declared for q in quorums} == {3}
    assert {m.membership.attempt for m in members} == {1}
    again = each([member.quorum(1) for member in members])
    assert {q.key for q in again} == {quorums[0].key}  # nobody came or went, so the group is the same
    assert machines.lease()["holder"] == "master-0"


def test_group_sums_broadcasts_and_exchanges_tensors(machines: Machines) -> None:
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    quorums = each([member.quorum() for member in members])
    tensors = [torch.full((1000,), float(10**i)) for i in range(3)]
    each([m.start(q.lane.sum, t) for m, q, t in zip(members, quorums, tensors, strict=True)])
    assert all(bool((t == 111.0).all()) for t in tensors)

    values = [torch.full((10,), float(i)) for i in range(3)]
    each([m.start(q.lane.broadcast, v, 1) for m, q, v in zip(members, quorums, values, strict=True)])
    assert all(bool((v == 1.0).all()) for v in values)

    told = [{"rank": rank, "words": "Größe" * rank} for rank in range(3)]
    calls = zip(members, told, quorums, strict=True)
    heard = each([m.start(q.lane.broadcast_json, value, 2) for m, value, q in calls])
    assert heard == [told[2]] * 3

    # Some receivers get nothing.
    sizes = [[(sender + 2 * receiver) % 3 for receiver in range(3)] for sender in range(3)]
    sources = [torch.cat([torch.full((sizes[i][j],), 10.0 * i + j) for j in range(3)]) for i in range(3)]
    wanted = [torch.cat([torch.full((sizes[i][j],), 10.0 * i + j) for i in range(3)]) for j in range(3)]
    outputs = [torch.zeros(len(tensor)) for tensor in wanted]

    def exchange(rank: int) -> None:
        received = [sizes[sender][rank] for sender in range(3)]
        parts = sources[rank].split(sizes[rank])
        quorums[rank].lane.all_to_all(outputs[rank].split(received), parts).wait()

    each([member.start(exchange, rank) for rank, member in enumerate(members)])
    assert all(torch.equal(output, tensor) for output, tensor in zip(outputs, wanted, strict=True))


def test_quorum_of_one_trainer_needs_no_other_member(machines: Machines) -> None:
    for attempt in (1, 2):
        (alone,) = together(machines, ["master-0"])
        quorum = alone.membership.quorum((5, 0, 0))
        assert (names(quorum), quorum.rank, quorum.declared) == (["master-0"], 0, 1)
        tensor = torch.ones(3)
        quorum.lane.sum(tensor)
        assert tensor.tolist() == [1.0] * 3
        assert quorum.lane.broadcast_json({"a": 1}, 0) == {"a": 1}
        output = torch.zeros(3)
        quorum.lane.all_to_all([output], [tensor]).wait()
        assert output.tolist() == [1.0] * 3
        assert machines.lease()["attempt"] == alone.membership.attempt == attempt


def test_member_that_leaves_fails_the_group_and_the_others_form_a_new_one(machines: Machines) -> None:
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    first = each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    stays = members[:2]
    sums = [m.start(q.lane.sum, torch.ones(1000)) for m, q in zip(stays, first, strict=False)]
    members[2].membership.close()
    for future in sums:
        with pytest.raises(GroupFailed):
            future.result(PATIENCE)
    for quorum in first[:2]:  # the group stays failed, whichever collective is called
        with pytest.raises(GroupFailed):
            quorum.lane.sum(torch.ones(1))
    each([member.start(member.membership.failed) for member in stays])
    quorums = each([member.quorum(1) for member in stays])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2
    assert quorums[0].key == quorums[1].key != first[0].key
    tensors = [torch.ones(2), torch.ones(2)]
    each([m.start(q.lane.sum, t) for m, q, t in zip(stays, quorums, tensors, strict=True)])
    assert [t.tolist() for t in tensors] == [[2.0, 2.0]] * 2


def test_first_quorum_waits_for_all_declared_trainers(machines: Machines) -> None:
    early = machines.add("master-0", trainers=2)
    early.join().result(PATIENCE)
    waiting = early.quorum()
    until(all_said([early], "waiting for 1 more of 2 trainers; here: master-0"), waiting)
    late = machines.add("worker-0", trainers=2)
    late.join().result(PATIENCE)
    quorums = each([late.quorum(), waiting])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2


def test_first_quorum_without_a_declared_trainer_starts_after_a_bounded_wait(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delegate_module, "GATHER", 1.0)
    members = [machines.add(name, trainers=3) for name in ("master-0", "worker-0")]
    each([member.join() for member in members])
    quorums = each([member.quorum() for member in members])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2


def test_newcomer_does_not_make_the_others_wait_for_missing_trainers(machines: Machines) -> None:
    """Lose one of three trainers for good and then restart another."""
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    for member in members[1:]:
        member.membership.close()
    again = machines.add("worker-0", trainers=3)
    again.join().result(PATIENCE)
    newcomer = again.quorum()
    quorum = members[0].quorum(1).result(PATIENCE)
    while names(quorum) != ["master-0", "worker-0"]:  # the remaining trainer may have taken a step alone before
        quorum = members[0].quorum(1).result(PATIENCE)
    assert newcomer.result(PATIENCE).key == quorum.key


def test_quorum_of_fewer_trainers_than_the_least_takes_no_step(machines: Machines) -> None:
    members = [machines.add(name, trainers=2, least=2) for name in ("master-0", "worker-0")]
    each([member.join() for member in members])
    each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    members[1].membership.close()
    waiting = members[0].quorum(1)
    back = machines.add("worker-0", trainers=2, least=2)
    back.join().result(PATIENCE)
    assert names(back.quorum().result(PATIENCE)) == ["master-0", "worker-0"]
    assert names(waiting.result(PATIENCE)) == ["master-0", "worker-0"]


def _be_the_master(folder: str) -> None:
    """Run a master in a process of its own, which can be killed.

    A Lighthouse that is shut down still answers its own process.
    """
    master = Member(open_storage(folder), "master-0", declare(trainers=2))
    master.membership.join(0.0)
    master.membership.quorum((0, 0, 0))
    threading.Event().wait()


@pytest.fixture
def orphan(machines: Machines, tmp_path: Path) -> Member:
    """Return worker-0, whose master was killed after both had found each other."""
    process = multiprocessing.get_context("spawn").Process(target=_be_the_master, args=(str(tmp_path),), daemon=True)
    process.start()
    while not machines.storage.list("runs"):  # wait for the lease
        assert process.is_alive()
        process.join(0.05)
    worker = machines.add("worker-0", trainers=2)
    worker.join().result(PATIENCE)
    assert names(worker.quorum().result(PATIENCE)) == ["master-0", "worker-0"]
    worker.membership.stepped(0.1)
    process.kill()
    process.join()
    return worker


@pytest.mark.slow
def test_lighthouse_of_a_killed_master_is_taken_over_by_another_trainer(machines: Machines, orphan: Member) -> None:
    before = machines.lease()
    assert names(orphan.quorum(1).result(PATIENCE)) == ["worker-0"]
    after = machines.lease()
    assert (after["holder"], after["attempt"]) == ("worker-0", before["attempt"] + 1)
    assert after["address"] != before["address"]
    back = machines.add("master-0", trainers=2)
    back.join().result(PATIENCE)
    assert machines.lease()["holder"] == "worker-0"  # the lease is not taken back from a holder that lives
    waiting = back.quorum()
    while names(orphan.quorum(1).result(PATIENCE)) != ["master-0", "worker-0"]:
        pass
    assert waiting.result(PATIENCE).rank == 0
    assert (back.membership.attempt, orphan.membership.attempt) == (2, 2)


def test_member_that_leaves_releases_the_lease(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.cluster.lease.LOST", 1000.0)
    master = machines.add("master-0", trainers=2)
    master.join().result(PATIENCE)
    master.membership.close()
    lease = Lease(machines.storage, "a-run", "worker-0")
    lease.read()
    assert lease.holder == "master-0"
    assert lease.lost


@pytest.mark.slow
def test_master_that_comes_back_at_once_takes_its_lighthouse_again(
    machines: Machines, orphan: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.cluster.lease.LOST", 1000.0)
    waiting = orphan.quorum(1)
    back = machines.add("master-0", trainers=2)
    back.join().result(PATIENCE)
    assert (machines.lease()["holder"], machines.lease()["attempt"]) == ("master-0", 2)
    quorums = each([back.quorum(), waiting])
    while names(quorums[1]) != ["master-0", "worker-0"]:
        quorums[1] = orphan.quorum(1).result(PATIENCE)
    assert quorums[0].key == quorums[1].key


def test_member_that_lost_the_lease_follows_the_new_holder(machines: Machines) -> None:
    """A master that was frozen for a while loses its lease like this; its own Lighthouse would still answer it."""
    (master, worker) = together(machines, ["master-0", "worker-0"])
    each([master.quorum(), worker.quorum()])
    for member in (master, worker):
        member.membership.stepped(0.1)
    usurper = machines.add("worker-1", trainers=2)
    lighthouse_of_usurper = usurper.membership._delegate._lighthouse

    def taken() -> bool:
        """Take the lease, unless its holder renews it between the two calls."""
        lighthouse_of_usurper._lease.read()
        return lighthouse_of_usurper._take(2)

    until(taken)
    quorum = master.quorum(1).result(PATIENCE)
    while master.membership.attempt == 1:
        quorum = master.quorum(1).result(PATIENCE)
    assert "another member took the Lighthouse over" in master.said
    assert names(quorum)[0] == "master-0"
    assert machines.lease()["holder"] == "worker-1"


def test_lease_is_renewed_while_its_holder_lives(machines: Machines) -> None:
    together(machines, ["master-0", "worker-0"])
    first = machines.lease()
    until(lambda: bool(machines.lease()["renewed"] != first["renewed"]))
    assert {**machines.lease(), "renewed": 0} == {**first, "renewed": 0}


def test_worker_waits_for_the_master_and_leaves_on_a_stop(machines: Machines) -> None:
    worker = machines.add("worker-0", trainers=2)
    joining = worker.join()
    until(lambda: bool(worker.said), joining)
    assert "waiting for the Lighthouse" in worker.said[0]
    worker.stop.set()
    with pytest.raises(Stopping):
        joining.result(PATIENCE)


# -- parameter servers -------------------------------------------------------------------------------------------------


class OneOfTwo(Processes):
    """One of a machine's two processes. The second one hears `values`, and the first one's are kept in `shared`."""

    def __init__(self, rank: int, *values: Any) -> None:
        self.rank, self.size, self.shared, self._values = rank, 2, [], list(values)

    def share(self, value: Any = None) -> Any:
        self.shared: list[Any] = [*self.shared, value]
        return self._values.pop(0) if self._values else value


def test_join_of_a_machine_that_must_leave_stops_all_its_processes(machines: Machines) -> None:
    first, second = OneOfTwo(0), OneOfTwo(1, None)
    for processes in (first, second):
        member = Member(machines.storage, "worker-0", declare(2), processes)
        machines.all.append(member)
        member.stop.set()  # the second process hears of no notice itself
        with pytest.raises(Stopping):
            member.join().result(PATIENCE)
    assert first.shared == [None]


def test_second_process_of_a_machine_that_was_believed_dead_is_fenced(machines: Machines) -> None:
    member = Member(machines.storage, "worker-0", declare(2), OneOfTwo(1, 1))
    machines.all.append(member)
    member.join().result(PATIENCE)
    lease = Lease(machines.storage, "a-run", "master-0")
    assert lease.write("", 1)
    assert not member.membership.fenced()
    assert lease.write("", 2)
    assert member.membership.fenced()


def test_ranks_put_trainers_before_servers(machines: Machines) -> None:
    order = ["master-0", "worker-0", "ps-0", "ps-1", "ps-2"]
    members = together(machines, sorted(order, reverse=True))
    quorums = each([member.quorum() for member in members])
    assert [names(q) for q in quorums] == [order] * 5
    assert [q.rank for q in quorums] == [order.index(member.name) for member in members]
    assert [m.name for m in quorums[0].trainers] == order[:2]
    assert [m.name for m in quorums[0].servers] == order[2:]
    assert {q.declared for q in quorums} == {2}


def test_quorum_gives_each_member_the_announcements_of_the_others(machines: Machines) -> None:
    members = together(machines, ["master-0", "ps-0"])
    trainer = Announcement(peak=2.5, scaled=True, holds=-1)
    vote = Tally(math.inf, 7.0, 0.1, waited=3.0)
    server = Announcement(
        place=0, filled=True, reaches=9, vote=vote, validation=2.0, bad=("a", "b"), done=True, unwritten=True
    )
    quorums = each([members[0].quorum(announcement=trainer), members[1].quorum(announcement=server)])
    heard = replace(server, vote=replace(vote, waited=0.0))  # the waiting time stays with the member that waited
    assert [m.announced for q in quorums for m in q.members] == [trainer, heard] * 2


def test_announcement_with_an_unknown_field_ignores_it() -> None:
    assert Announcement.from_json({"peak": None, "from the future": 1}) == Announcement()


def test_run_that_misses_a_server_waits_and_names_it(machines: Machines) -> None:
    members = together(machines, ["master-0", "ps-0", "ps-1"])
    each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    members[2].membership.close()
    waiting = [member.quorum(1) for member in members[:2]]
    until(
        all_said(members[:2], "waiting for 1 more of 2 parameter servers; here: master-0, ps-0; lost: ps-1"), *waiting
    )
    back = machines.add("ps-1", trainers=1, servers=2)
    back.join().result(PATIENCE)
    quorums = each([back.quorum(), *waiting])
    assert [names(q) for q in quorums] == [["master-0", "ps-0", "ps-1"]] * 3


def test_servers_wait_for_all_trainers_at_first_and_then_for_the_least_number(machines: Machines) -> None:
    members = [machines.add(name, trainers=3, servers=1, least=2) for name in ("master-0", "worker-0", "ps-0")]
    each([member.join() for member in members])
    waiting = [member.quorum() for member in members]
    until(all_said(members, "waiting for 1 more of 3 trainers; here: master-0, ps-0, worker-0"), *waiting)
    members.append(machines.add("worker-1", trainers=3, servers=1, least=2))
    members[-1].join().result(PATIENCE)
    each([*waiting, members[-1].quorum()])
    for member in members:
        member.membership.stepped(0.1)
    members.pop().membership.close()
    assert [names(q) for q in each([m.quorum(1) for m in members])] == [["master-0", "worker-0", "ps-0"]] * 3
    members.pop(1).membership.close()
    waiting = [member.quorum(2) for member in members]
    until(all_said(members, "waiting for 1 more of 2 trainers; here: master-0, ps-0; lost: worker-0"), *waiting)


@pytest.mark.parametrize("furthest", [0, 1])
def test_two_servers_of_one_name_the_one_that_is_further_counts(machines: Machines, furthest: int) -> None:
    """One of the two was frozen, and came back beside its successor."""
    members = together(machines, ["master-0", "ps-0"])
    members.append(machines.add("ps-0", trainers=1, servers=1))
    members[2].join().result(PATIENCE)
    servers, found = members[1:], [[], []]  # type: tuple[list[Member], list[list[Quorum]]]

    def serve(i: int) -> None:
        while True:
            found[i].append(servers[i].membership.quorum((7 if i == furthest else 6, 0, 0)))

    serving = [server.start(serve, i) for i, server in enumerate(servers)]
    quorum = members[0].quorum(7).result(PATIENCE)
    while quorum.servers[0].progress != (7, 0, 0):
        quorum = members[0].quorum(7).result(PATIENCE)
    before = len(found[1 - furthest])
    for _ in range(3):
        quorum = members[0].quorum(7).result(PATIENCE)
        assert [(m.name, m.progress) for m in quorum.members] == [("master-0", (7, 0, 0)), ("ps-0", (7, 0, 0))]
    until(lambda: bool(found[furthest]) and found[furthest][-1].key == quorum.key)
    assert len(found[1 - furthest]) == before  # the other one is a member of no group
    for server, future in zip(servers, serving, strict=True):
        server.stop.set()
        with pytest.raises(Stopping):
            future.result(PATIENCE)


def test_two_servers_of_one_name_at_the_same_point_count_as_one(machines: Machines) -> None:
    members = together(machines, ["master-0", "ps-0"])
    twin = machines.add("ps-0", trainers=1, servers=1)
    twin.join().result(PATIENCE)
    waiting = [members[1].quorum(), twin.quorum()]
    assert names(members[0].quorum().result(PATIENCE)) == ["master-0", "ps-0"]
    until(lambda: sum(future.done() for future in waiting) == 1)


def test_quorum_shows_which_server_leaves_and_the_step_it_holds(machines: Machines) -> None:
    members = together(machines, ["master-0", "ps-0", "ps-1"])
    first = each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    now = Position(1, 0, 5)
    leaving = members[2].start(members[2].membership.leave, now, Announcement(holds=7))
    staying = [member.start(member.membership.quorum, now) for member in members[:2]]
    seen, own = each(staying), leaving.result(PATIENCE)
    assert own is not None
    for quorum in (*seen, own):
        assert names(quorum) == ["master-0", "ps-0"]
        assert [(m.name, m.progress, m.announced) for m in quorum.leaving] == [("ps-1", now, Announcement(holds=7))]
        assert [m.name for m in quorum.servers] == ["ps-0", "ps-1"]  # the step that the leaving server holds counts
        assert not quorum.enough  # the members are not enough to take a step
    assert [q.rank for q in (*seen, own)] == [0, 1, -1]
    assert {q.lane for q in seen} == {q.lane for q in first[:2]}  # no group is made for a quorum that takes no step


def test_trainer_that_leaves_is_not_waited_for(machines: Machines) -> None:
    members = together(machines, ["master-0", "worker-0", "ps-0"])
    each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    leaving = members[1].start(members[1].membership.leave, (1, 0, 0))
    seen = each([members[0].quorum(1), members[2].quorum(1)])
    own = leaving.result(PATIENCE)
    assert own is not None
    for quorum in (*seen, own):
        assert names(quorum) == ["master-0", "ps-0"]
        assert [m.name for m in quorum.leaving] == ["worker-0"]
        assert quorum.enough
    tensors = [torch.ones(2), torch.ones(2)]
    stays = (members[0], members[2])
    # The others sum at once, in a new group.
    each([m.start(q.lane.sum, t) for m, q, t in zip(stays, seen, tensors, strict=True)])
    assert [t.tolist() for t in tensors] == [[2.0, 2.0]] * 2


def test_leave_waits_a_bounded_time_for_the_others_to_hear_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delegate_module, "LEAVING", 0.5)
    members = together(machines, ["master-0", "ps-0"])
    each([member.quorum() for member in members])  # ps-0 then computes, and asks for no quorum
    assert members[0].start(members[0].membership.leave, (1, 0, 0)).result(PATIENCE) is None


def test_leave_just_after_the_lighthouses_host_left_is_heard_at_another_lighthouse(machines: Machines) -> None:
    """All members leave like this when a run is taken down. The server needs the others for a checkpoint."""
    master, worker, server = together(machines, ["master-0", "worker-0", "ps-0"])
    each([member.quorum() for member in (master, worker, server)])
    master.membership.close()
    leaving = server.start(server.membership.leave, (0, 0, 0))
    worker.quorum()
    quorum = leaving.result(PATIENCE)
    assert quorum is not None
    assert [member.name for member in quorum.leaving] == ["ps-0"]


def test_members_that_never_reach_each_other_give_up_after_a_bounded_number_of_tries(machines: Machines) -> None:
    master, worker = together(machines, ["master-0", "worker-0"])
    each([master.quorum(), worker.quorum()])
    for _ in range(delegate_module.FAILURES - 1):
        master.membership.failed()
    master.membership.stepped(0.1)  # a step was taken, so the count of failures begins anew
    for _ in range(delegate_module.FAILURES - 1):
        master.membership.failed()
    with pytest.raises(NoProgress, match="10 groups in a row failed without a step; the last one: master-0, worker-0"):
        master.membership.failed()


def test_quorum_while_the_number_of_servers_changes_takes_no_step(machines: Machines) -> None:
    """Each machine starts anew when it reads the new number; until all have, shards are cut in two ways."""
    members = together(machines, ["master-0", "ps-0"])
    each([member.quorum() for member in members])
    for member in members:
        member.membership.stepped(0.1)
    newcomer = machines.add("ps-1", trainers=1, servers=2)
    newcomer.join().result(PATIENCE)
    waiting = newcomer.quorum()
    said = all_said(members, "waiting: the number of parameter servers is being changed")
    asked = [member.quorum(1) for member in members]

    def said_when_asked() -> bool:
        if all(future.done() for future in asked):  # the old members may take steps alone before
            asked[:] = [member.quorum(1) for member in members]
        return said()

    until(said_when_asked, waiting)
    assert not waiting.done()
    for member in members:
        member.stop.set()
        member.thread.shutdown()
        member.membership.close()
    again = [machines.add(name, trainers=1, servers=2) for name in ("master-0", "ps-0")]
    each([member.join() for member in again])
    quorums = each([waiting, *(member.quorum(1) for member in again)])
    assert [names(q) for q in quorums] == [["master-0", "ps-0", "ps-1"]] * 3


def test_server_that_is_no_longer_declared_blocks_steps_until_it_leaves(machines: Machines) -> None:
    members = [machines.add(name, trainers=1, servers=1) for name in ("master-0", "ps-0", "ps-1")]
    each([member.join() for member in members])
    waiting = [member.quorum() for member in members]
    until(all_said(members, "waiting: there are 2 parameter servers instead of 1"), *waiting)
    members[2].stop.set()
    with pytest.raises(Stopping):
        waiting[2].result(PATIENCE)
    members[2].membership.close()
    assert [names(q) for q in each(waiting[:2])] == [["master-0", "ps-0"]] * 2
