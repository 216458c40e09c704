"""Servers of machines with several processes: the same bits as with one, and votes that one lane of several loses.

Servers, and the processes of two trainer machines, are threads. Their meeting replaces the Lighthouse. The trainers
keep nothing, and do what PsTrainer and DilocoTrainer do with the exchange.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torchft import ProcessGroupGloo

from tests.trainer.running import Run
from tests.trainer.together import Process, small
from trainer.cluster.announcement import NOTHING, Announcement, Position
from trainer.cluster.delegate import _local_store
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.processes import Processes
from trainer.model.layout import Layout, total
from trainer.parallel import ownership, protocol
from trainer.parallel.diloco_server import DilocoServer
from trainer.parallel.ownership import Lane, Ownership, lanes
from trainer.parallel.ps_server import PsServer
from trainer.parallel.served_lanes import ServedLane
from trainer.runs.metrics import Metrics
from trainer.runs.status import StatusWriter
from trainer.training.checkpoint import CheckpointStore
from trainer.training.journal import Journal
from trainer.training.member_context import MemberContext
from trainer.training.vote import Vote, loss_sums

LAYOUT: Layout = [("a.weight", 0, 1000, True), ("a.bias", 1024, 70, False), ("b.weight", 1152, 2500, True)]
TOTAL, BUCKET = total(LAYOUT), 640
STEPS, MACHINES, SERVERS = 6, 2, 2
PATIENCE = 60.0
Lost = set[tuple[str, int, int, str]]  # server, step, lane, and whether "before" or "after" the vote is held


@dataclass(frozen=True)
class Attendant:
    name: str
    progress: Position
    announced: Announcement


@dataclass(frozen=True)
class MeetingQuorum:
    """What trainers and servers read of a Quorum."""

    trainers: tuple[Attendant, ...]
    servers: tuple[Attendant, ...]
    rank: int
    key: str
    lanes: tuple[MemberGroup, ...]
    leaving: tuple[Attendant, ...] = ()
    enough: bool = True
    attempt: int = 1

    @property
    def members(self) -> tuple[Attendant, ...]:
        return (*self.trainers, *self.servers)


class Meeting:
    """All threads meet here before each step; their groups are new when one of them has lost its group."""

    def __init__(self, processes: int) -> None:
        self.store, self.tries, self.failures = _local_store("127.0.0.1"), 0, 1
        self.here: dict[str, Attendant] = {}
        self.barrier = threading.Barrier(MACHINES * processes + SERVERS, self._meet, PATIENCE)

    def _meet(self) -> None:
        self.tries, self.failures = self.tries + self.failures, 0
        self.members = tuple(self.here[name] for name in sorted(self.here))


@dataclass
class Seat:
    """One thread's membership."""

    meeting: Meeting
    name: str
    numbers: list[int]  # of its lanes
    missing: str = ""
    tries: int = 0
    groups: tuple[MemberGroup, ...] = ()

    def quorum(self, progress: Position, announcement: Announcement = NOTHING) -> MeetingQuorum:
        self.meeting.here[self.name] = Attendant(self.name, progress, announcement)
        self.meeting.barrier.wait()
        members = self.meeting.members
        rank = [member.name for member in members].index(self.name)
        if self.tries != self.meeting.tries:
            self.close()
            self.tries = self.meeting.tries
            self.groups = tuple(self._join(lane, rank, len(members)) for lane in self.numbers)
        return MeetingQuorum(members[:MACHINES], members[MACHINES:], rank, f"try {self.tries}", self.groups)

    def _join(self, lane: int, rank: int, size: int) -> MemberGroup:
        gloo = ProcessGroupGloo(timeout=timedelta(seconds=PATIENCE))
        gloo.configure(f"127.0.0.1:{self.meeting.store.port}/{self.tries}/{lane}", f"member-{rank}", rank, size, 0)
        return MemberGroup(gloo, rank, size, torch.device("cpu"))

    def failed(self) -> None:
        self.close()
        self.meeting.failures = 1

    def stepped(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        for group in self.groups:
            group.close()


class Forgetful(PsServer):
    """A server that loses the votes of some lanes.

    A vote lost before it is held reaches no member. One lost after it is lost only when all servers have all lanes'.
    """

    lost: Lost
    held: threading.Barrier  # of all lanes of all servers

    def vote(self, lane: ServedLane, block_squares: Tensor) -> Tensor:
        name, step, number = self._host.name, self.progress.step, 0 if lane.first else 1
        together = any((at, moment) == (step, "after") for _, at, _, moment in list(self.lost))
        if (name, step, number, "before") in self.lost:
            self.lost.remove((name, step, number, "before"))
            raise GroupFailed("lost before the vote")
        votes = super().vote(lane, block_squares)
        if together:
            self.held.wait(PATIENCE)
        if (name, step, number, "after") in self.lost:
            self.lost.remove((name, step, number, "after"))
            raise GroupFailed("lost after the vote")
        return votes


class ForgetfulOuter(Forgetful, DilocoServer):
    pass


def serve(run: Run, seat: Seat, lost: Lost, held: threading.Barrier) -> list[str]:
    """Run one server to the end. Return the lines that it logged."""
    process = Process(seat.name)
    storage, spec = run.storage, run.spec
    status = StatusWriter(storage, spec.run, spec.launch, process.log)
    metrics = Metrics(storage, spec.run, seat.name, process.log)
    host, membership = cast(Any, process), cast(Any, seat)
    journal = Journal(metrics, status, membership, host)
    checkpoints = CheckpointStore(storage, spec.run, spec.checkpoints, process.log, None, lambda: False)
    context = MemberContext(storage, spec, host, membership, checkpoints, journal, Processes(1, (), process.log))
    kind = ForgetfulOuter if spec.parallel.synchronization == "local" else Forgetful
    server = kind(context)
    server.lost, server.held = lost, held
    try:
        server.prepare()
        server.run()
    finally:
        checkpoints.wait()
        metrics.close()
        status.close()
    return process.said


def train(run: Run, seat: Seat, lane: Lane, machine: int, processes: int) -> Tensor:
    """Be one process of a trainer to the end. Return the lane of the final parameters."""
    spec, hyper, key = run.spec, run.spec.hyperparameters, ""
    shards = Ownership(TOTAL, SERVERS, processes=processes)
    vectors = [torch.zeros(lane.size) for _ in range(3)]
    local = spec.parallel.synchronization == "local"
    moving = vectors if local else vectors[:1]
    nowhere, announcement = Position(-1, -1, -1), Announcement(holds=-1)

    def part(seed: int) -> Tensor:
        flat = torch.randn(TOTAL, generator=torch.Generator().manual_seed(seed))
        for (_, start, size, _), (_, stop, _, _) in zip(LAYOUT, [*LAYOUT[1:], ("", TOTAL, 0, False)], strict=True):
            flat[start + size : stop] = 0.0
        padded = torch.nn.functional.pad(flat, (0, 64 * processes))
        return torch.cat([padded[start:stop] for start, stop in lane.ranges])

    def step(quorum: Any) -> bool:
        nonlocal key
        if not protocol.servers_agree(quorum):
            return False
        if quorum.key != key:
            told = protocol.tell_lanes(quorum, lane)
            exchanges[:] = protocol.make_exchanges(quorum, spec, shards, told, lambda line: None)
            key = quorum.key
        (group,), (exchange,) = quorum.lanes, exchanges
        if not protocol.servers_filled(quorum):
            group.broadcast_json({"layout": LAYOUT, "scale": 1.0}, 0)
            exchange.fill(part(1000))
        progress = group.broadcast_json(None, MACHINES)["progress"]
        due = progress["step"] > 0 and (progress["step"] % spec.evaluation.every == 0 or progress["step"] == STEPS)
        if not (due and progress["evaluations"] < progress["step"]) and progress["step"] == STEPS:
            if protocol.servers_done(quorum):
                exchange.pull(vectors[0], exact=True)
            return protocol.servers_done(quorum)
        for vector in moving:
            exchange.pull(vector)
        if due and progress["evaluations"] < progress["step"]:
            loss_sums(group, 0.25 * (seat.numbers[0] + machine), 3)
            return False
        gradient = part(10 * progress["step"] + machine).add_(vectors[0])
        if protocol.interleaved(spec) and not local:
            exchange.push_and_pull(gradient, vectors[0])
        else:
            for vector in (gradient, *moving[1:]):
                exchange.push(vector)
        tokens = hyper.batch_size * hyper.sequence_length / MACHINES / processes
        blocks = -(-TOTAL // ownership.norm_block(TOTAL))
        group.sum(Vote(tokens * 2.0, tokens, squares=torch.zeros(blocks, dtype=torch.float64)).to_tensor(group.device))
        return False

    exchanges: list[Any] = []
    while True:
        quorum = seat.quorum(nowhere, announcement)
        try:
            if step(quorum):
                return vectors[0]
        except GroupFailed:
            seat.failed()


def lives(folder: Path, made: list[Lane], lost: Lost, **overrides: Any) -> tuple[Tensor, Run, dict[str, list[str]]]:
    """Return the final parameters, the run, and each server's log."""
    processes = len(made)
    cluster = {"workers": MACHINES - 1, "parameterServers": SERVERS, "processes": processes}
    run, meeting = small(folder, STEPS, cluster=cluster, **overrides), Meeting(processes)
    seats, unheard, held = [], set(lost), threading.Barrier(SERVERS * processes)

    def ended(future: "Future[Any]") -> None:
        if future.exception() is not None:
            meeting.barrier.abort()  # the others need not wait

    with ThreadPoolExecutor(MACHINES * processes + SERVERS) as threads:
        pieces, said = [], {}
        for server in range(SERVERS):
            seats.append(Seat(meeting, f"ps-{server}", list(range(processes))))
            said[seats[-1].name] = threads.submit(serve, run, seats[-1], unheard, held)
        for k, lane in enumerate(made):
            for machine in range(MACHINES):
                seats.append(Seat(meeting, f"machine-{machine}", [k]))
                pieces.append(threads.submit(train, run, seats[-1], lane, machine, processes))
        for future in (*said.values(), *pieces):
            cast(Any, future).add_done_callback(ended)
        logs = {name: future.result(PATIENCE) for name, future in said.items()}
        flat = torch.zeros(TOTAL + 64 * processes)
        for k, lane in enumerate(made):
            ends = torch.split(pieces[k * MACHINES].result(PATIENCE), [stop - start for start, stop in lane.ranges])
            for (start, stop), end in zip(lane.ranges, ends, strict=True):
                flat[start:stop] = end
    for seat in seats:
        seat.close()
    assert not unheard
    return flat[:TOTAL], run, logs


SETTINGS: dict[str, dict[str, Any]] = {
    "clipped": {"parallel": {"plan": "hierarchical"}},
    "interleaved": {"hyperparameters": {"gradientClip": 0.0, "steps": STEPS}},
    "local": {"parallel": {"synchronization": "local", "every": 2, "plan": "star"}},
}


@pytest.fixture(scope="module", autouse=True)
def many_buckets() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ownership, "BUCKET_ELEMENTS", BUCKET)
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield


@pytest.fixture(scope="module")
def calm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tensor, Run]:
    """Return the settings, and the end of an undisturbed run whose machines have one process."""
    parameters, run, _ = lives(tmp_path_factory.mktemp("calm"), lanes(TOTAL, 1), set(), **SETTINGS[request.param])
    assert float(parameters.abs().sum()) > 0
    return request.param, parameters, run


def fsdp_rows() -> list[Lane]:
    """Return lanes of the rows of LAYOUT's tensors, of 10, 7 and 5 elements, on two processes."""
    ranges: list[list[tuple[int, int]]] = [[], []]
    for (_, start, size, _), row in zip(LAYOUT, (10, 7, 5), strict=True):
        most = -(-(size // row) // 2)
        ranges[0].append((start, start + most * row))
        ranges[1].append((start + most * row, start + size))
    return [Lane(tuple(own)) for own in ranges]


CASES: dict[str, tuple[Callable[[], list[Lane]], Lost, list[int]]] = {
    "second-lane-of-slices": (
        lambda: lanes(TOTAL, 2), {("ps-0", 0, 1, "before"), ("ps-1", 2, 1, "after"), ("ps-1", 4, 1, "after")}, [0, 2],
    ),
    "first-lane-of-rows": (fsdp_rows, {("ps-0", 2, 0, "after")}, [1, 0]),
    "each-server-another-lane": (
        lambda: lanes(TOTAL, 2), {("ps-0", 2, 0, "after"), ("ps-1", 2, 1, "after")}, [0, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("calm", "case"),
    [
        *(("clipped", case) for case in CASES),
        ("interleaved", "second-lane-of-slices"),
        ("local", "first-lane-of-rows"),
    ],
    indirect=["calm"],
)
def test_commit_when_a_server_missed_the_vote_of_one_of_two_lanes_has_the_bits_of_one_undisturbed_lane(
    tmp_path: Path, calm: tuple[str, Tensor, Run], case: str
) -> None:
    """A server that missed one lane's vote rolls forward; where no server has all lanes' votes, all take it again."""
    kind, parameters, undisturbed = calm
    make, lost, rolls = CASES[case]
    settings = {name: dict(values) for name, values in SETTINGS[kind].items()}
    made = make()
    if not all(lane.aligned for lane in made):
        settings["parallel"] = {**settings.get("parallel", {}), "parallelism": "fsdp"}
    result, run, said = lives(tmp_path, made, lost, **settings)
    assert torch.equal(result, parameters)
    assert run.losses() == undisturbed.losses()
    assert [record.gradient_norm for record in run.steps()] == [r.gradient_norm for r in undisturbed.steps()]
    assert [sum("rolls forward" in line for line in said[f"ps-{n}"]) for n in range(SERVERS)] == rolls
