"""Membership with real Lighthouses and gloo groups: the members are threads here, each with a Cluster of its own."""

import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from trainer import cluster as cluster_module
from trainer.cluster import Cluster, GroupFailed, Quorum, Stopping
from trainer.lease import Lease
from trainer.storage import Storage, open_storage

T = TypeVar("T")
START = (0, 0, 0)
PATIENCE = 60.0  # seconds for anything to happen on a busy machine


class Member:
    """A machine: its Cluster, what it said, and a thread of its own."""

    def __init__(self, storage: Storage, name: str, trainers: int, least: int = 1) -> None:
        self.name, self.stop = name, threading.Event()
        self.said: list[str] = []
        self.thread = ThreadPoolExecutor(1)
        self.cluster = Cluster(
            storage,
            "a-run",
            name,
            trainers=trainers,
            least=least,
            address="127.0.0.1",
            device=torch.device("cpu"),
            log=self.said.append,
            report=lambda *words: self.said.extend(words),
            stopping=self.stop.is_set,
        )

    def start(self, call: Callable[..., T], *arguments: Any) -> "Future[T]":
        return self.thread.submit(call, *arguments)

    def join(self) -> "Future[None]":
        return self.start(self.cluster.join, 0.0)

    def quorum(self, step: int = 0) -> "Future[Quorum]":
        return self.start(self.cluster.quorum, (step, 0, 0))


class Machines:
    """The members of a test."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.all: list[Member] = []

    def add(self, name: str, trainers: int, least: int = 1) -> Member:
        self.all.append(Member(self.storage, name, trainers, least))
        return self.all[-1]

    def end(self) -> None:
        for member in self.all:
            member.stop.set()
        for member in self.all:
            member.cluster.close()
            member.thread.shutdown()

    def lease(self) -> dict[str, Any]:
        lease: dict[str, Any] = json.loads(self.storage.read("runs/a-run/cluster.json"))
        return lease


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Time runs faster here: what takes 15 seconds takes two."""
    monkeypatch.setattr(cluster_module, "HEARTBEAT", 0.1)
    monkeypatch.setattr(cluster_module, "HEARTBEAT_LOST", 1.5)
    monkeypatch.setattr("trainer.lease.RENEWED", 0.3)
    monkeypatch.setattr("trainer.lease.LOST", 2.0)
    found = Machines(open_storage(str(tmp_path)))
    yield found
    found.end()


def each(futures: "list[Future[T]]") -> list[T]:
    return [future.result(PATIENCE) for future in futures]


def together(machines: Machines, names: list[str]) -> list[Member]:
    """Members that have joined."""
    members = [machines.add(name, len(names)) for name in names]
    each([member.join() for member in members])
    return members


def names(quorum: Quorum) -> list[str]:
    return [member.name for member in quorum.members]


def test_all_see_one_quorum(machines: Machines) -> None:
    members = together(machines, ["worker-1", "master-0", "worker-0"])
    quorums = each([member.quorum() for member in members])
    assert [names(q) for q in quorums] == [["master-0", "worker-0", "worker-1"]] * 3
    assert [q.rank for q in quorums] == [2, 0, 1]
    assert len({q.key for q in quorums}) == 1
    assert {q.declared for q in quorums} == {3}
    assert {m.cluster.attempt for m in members} == {1}
    again = each([member.quorum(1) for member in members])
    assert {q.key for q in again} == {quorums[0].key}  # nobody came or went: the same group
    assert machines.lease()["holder"] == "master-0"


def test_collectives(machines: Machines) -> None:
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    quorums = each([member.quorum() for member in members])
    tensors = [torch.full((1000,), float(10**i)) for i in range(3)]
    each([m.start(m.cluster.sum, t) for m, t in zip(members, tensors, strict=True)])
    assert all(bool((t == 111.0).all()) for t in tensors)

    values = [torch.full((10,), float(i)) for i in range(3)]
    each([m.start(m.cluster.broadcast, v, 1) for m, v in zip(members, values, strict=True)])
    assert all(bool((v == 1.0).all()) for v in values)

    told = [{"rank": rank, "words": "Größe" * rank} for rank in range(3)]
    calls = zip(members, told, quorums, strict=True)
    heard = each([m.start(m.cluster.broadcast_json, value, 2, q.rank) for m, value, q in calls])
    assert heard == [told[2]] * 3


def test_one_trainer_needs_nobody(machines: Machines) -> None:
    for attempt in (1, 2):
        (alone,) = together(machines, ["master-0"])
        quorum = alone.cluster.quorum((5, 0, 0))
        assert (names(quorum), quorum.rank, quorum.declared) == (["master-0"], 0, 1)
        tensor = torch.ones(3)
        alone.cluster.sum(tensor)
        assert tensor.tolist() == [1.0] * 3
        assert alone.cluster.broadcast_json({"a": 1}, 0, 0) == {"a": 1}
        assert machines.lease()["attempt"] == alone.cluster.attempt == attempt


def test_a_member_that_leaves_fails_the_group_and_the_others_go_on(machines: Machines) -> None:
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    first = each([member.quorum() for member in members])[0]
    for member in members:
        member.cluster.stepped(0.1)
    stays = members[:2]
    sums = [m.start(m.cluster.sum, torch.ones(1000)) for m in stays]
    members[2].cluster.close()
    for future in sums:
        with pytest.raises(GroupFailed):
            future.result(PATIENCE)
    quorums = each([member.quorum(1) for member in stays])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2
    assert quorums[0].key == quorums[1].key != first.key
    tensors = [torch.ones(2), torch.ones(2)]
    each([m.start(m.cluster.sum, t) for m, t in zip(stays, tensors, strict=True)])
    assert [t.tolist() for t in tensors] == [[2.0, 2.0]] * 2


def test_the_first_step_waits_for_all_that_are_declared(machines: Machines) -> None:
    early = machines.add("master-0", trainers=2)
    early.join().result(PATIENCE)
    waiting = early.quorum()
    while "waiting for 1 more of 2 trainers; here: master-0" not in early.said:
        assert not waiting.done()
    late = machines.add("worker-0", trainers=2)
    late.join().result(PATIENCE)
    quorums = each([late.quorum(), waiting])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2


def test_it_does_not_wait_for_ever(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "GATHER", 1.0)
    members = [machines.add(name, trainers=3) for name in ("master-0", "worker-0")]
    each([member.join() for member in members])
    quorums = each([member.quorum() for member in members])
    assert [names(q) for q in quorums] == [["master-0", "worker-0"]] * 2


def test_a_newcomer_does_not_make_the_others_wait_for_those_that_are_missing(machines: Machines) -> None:
    """Of three trainers one is lost for good, and then another is restarted."""
    members = together(machines, ["master-0", "worker-0", "worker-1"])
    each([member.quorum() for member in members])
    for member in members:
        member.cluster.stepped(0.1)
    for member in members[1:]:
        member.cluster.close()
    again = machines.add("worker-0", trainers=3)
    again.join().result(PATIENCE)
    newcomer = again.quorum()
    quorum = members[0].quorum(1).result(PATIENCE)
    while names(quorum) != ["master-0", "worker-0"]:  # it may have taken a step alone before
        quorum = members[0].quorum(1).result(PATIENCE)
    assert newcomer.result(PATIENCE).key == quorum.key


def test_with_fewer_than_the_least_nothing_is_done(machines: Machines) -> None:
    members = [machines.add(name, trainers=2, least=2) for name in ("master-0", "worker-0")]
    each([member.join() for member in members])
    each([member.quorum() for member in members])
    for member in members:
        member.cluster.stepped(0.1)
    members[1].cluster.close()
    waiting = members[0].quorum(1)
    back = machines.add("worker-0", trainers=2, least=2)
    back.join().result(PATIENCE)
    assert names(back.quorum().result(PATIENCE)) == ["master-0", "worker-0"]
    assert names(waiting.result(PATIENCE)) == ["master-0", "worker-0"]


def _be_the_master(folder: str) -> None:
    """In a process of its own, which can be killed: a Lighthouse that is shut down still answers its own process."""
    master = Member(open_storage(folder), "master-0", trainers=2)
    master.cluster.join(0.0)
    master.cluster.quorum(START)
    threading.Event().wait()


@pytest.fixture
def orphan(machines: Machines, tmp_path: Path) -> Member:
    """worker-0, whose master was killed after both had found each other."""
    process = multiprocessing.get_context("spawn").Process(target=_be_the_master, args=(str(tmp_path),), daemon=True)
    process.start()
    while not machines.storage.list("runs"):  # the lease
        assert process.is_alive()
        process.join(0.05)
    worker = machines.add("worker-0", trainers=2)
    worker.join().result(PATIENCE)
    assert names(worker.quorum().result(PATIENCE)) == ["master-0", "worker-0"]
    worker.cluster.stepped(0.1)
    process.kill()
    process.join()
    return worker


@pytest.mark.slow
def test_another_trainer_takes_the_lighthouse_over(machines: Machines, orphan: Member) -> None:
    before = machines.lease()
    assert names(orphan.quorum(1).result(PATIENCE)) == ["worker-0"]
    after = machines.lease()
    assert (after["holder"], after["attempt"]) == ("worker-0", before["attempt"] + 1)
    assert after["address"] != before["address"]
    back = machines.add("master-0", trainers=2)
    back.join().result(PATIENCE)
    assert machines.lease()["holder"] == "worker-0"  # it is not taken back from one that lives
    waiting = back.quorum()
    while names(orphan.quorum(1).result(PATIENCE)) != ["master-0", "worker-0"]:
        pass
    assert waiting.result(PATIENCE).rank == 0
    assert (back.cluster.attempt, orphan.cluster.attempt) == (2, 2)


def test_who_leaves_lets_go_of_the_lease(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.lease.LOST", 1000.0)
    master = machines.add("master-0", trainers=2)
    master.join().result(PATIENCE)
    master.cluster.close()
    lease = Lease(machines.storage, "a-run", "worker-0")
    lease.read()
    assert lease.holder == "master-0"
    assert lease.lost


@pytest.mark.slow
def test_a_master_that_comes_back_at_once_takes_its_lighthouse_again(
    machines: Machines, orphan: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.lease.LOST", 1000.0)
    waiting = orphan.quorum(1)
    back = machines.add("master-0", trainers=2)
    back.join().result(PATIENCE)
    assert (machines.lease()["holder"], machines.lease()["attempt"]) == ("master-0", 2)
    quorums = each([back.quorum(), waiting])
    while names(quorums[1]) != ["master-0", "worker-0"]:
        quorums[1] = orphan.quorum(1).result(PATIENCE)
    assert quorums[0].key == quorums[1].key


def test_who_lost_the_lease_follows_the_new_holder(machines: Machines) -> None:
    """As a master does that was frozen for a while: its own Lighthouse would still answer it."""
    (master, worker) = together(machines, ["master-0", "worker-0"])
    each([master.quorum(), worker.quorum()])
    for member in (master, worker):
        member.cluster.stepped(0.1)
    usurper = machines.add("worker-1", trainers=2)
    usurper.cluster._lease.read()
    assert usurper.cluster._take(2)
    quorum = master.quorum(1).result(PATIENCE)
    while master.cluster.attempt == 1:
        quorum = master.quorum(1).result(PATIENCE)
    assert "another trainer took the Lighthouse over" in master.said
    assert names(quorum)[0] == "master-0"
    assert machines.lease()["holder"] == "worker-1"


def test_the_lease_is_renewed(machines: Machines) -> None:
    together(machines, ["master-0", "worker-0"])
    first = machines.lease()
    while machines.lease()["renewed"] == first["renewed"]:
        pass
    assert {**machines.lease(), "renewed": 0} == {**first, "renewed": 0}


def test_a_worker_waits_for_the_master_and_leaves_when_told(machines: Machines) -> None:
    worker = machines.add("worker-0", trainers=2)
    joining = worker.join()
    while not worker.said:
        pass
    assert "waiting for the Lighthouse" in worker.said[0]
    worker.stop.set()
    with pytest.raises(Stopping):
        joining.result(PATIENCE)
