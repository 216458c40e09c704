"""A vote that one server never heard: the step counts on all servers or on none. Members are threads here."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import Tensor

from tests.trainer.runs import PATIENCE, Run
from trainer import compute
from trainer.assembly import assemble
from trainer.cluster import Quorum
from trainer.data import prepare
from trainer.group import GroupFailed
from trainer.parallel.server import Server
from trainer.progress import Decision

pytestmark = pytest.mark.slow
STEPS = 30


class Process(compute.Process):
    """Without signals, which are the whole process's."""

    def __init__(self, name: str) -> None:
        self.name, self.said, self._reports = name, [], None
        self._over = threading.Event()

    def stopping(self) -> bool:
        return self._over.is_set()

    def stop(self) -> None:
        self._over.set()

    def log(self, line: str) -> None:
        self.said.append(line)


class Forgetful(Server):
    """Loses the vote of some steps: before it is held, so that nobody hears it, or after, so that all others do."""

    before: set[int]
    after: set[int]

    def vote(self, quorum: Quorum, vote: Tensor) -> None:
        step = self.progress.step
        if step in self.before:
            self.before.remove(step)
            raise GroupFailed("lost before the vote")
        super().vote(quorum, vote)
        if step in self.after:
            self.after.remove(step)
            raise GroupFailed("lost after the vote")


def take_part(run: Run, process: Process, make: Callable[[compute.Parts], compute.Member]) -> Quorum:
    parts = compute.make_parts(process, run.storage, run.spec, "127.0.0.1")
    try:
        member = make(parts)
        member.prepare()
        parts.cluster.join(0.1)
        return member.run()
    finally:
        parts.cluster.close()
        parts.checkpoints.wait()
        parts.journal.metrics.close()
        parts.journal.status.close()


def trainer(parts: compute.Parts) -> compute.Member:
    return assemble(parts, prepare(parts.storage, parts.spec.data, parts.spec.fingerprint, lambda *_: None))


def lives(
    folder: Path, before: set[int], after: set[int], forgetful: str = "ps-1"
) -> tuple[list[float | None], list[str]]:
    """Losses of a run of one trainer and three servers, of which one loses the votes of these steps; what it said."""
    run = Run(
        folder,
        hyperparameters={"steps": STEPS},
        evaluation={"every": 10},
        checkpoints={"every": 1000},  # nothing to fall back to: a step that is half done would show
        cluster={"parameterServers": 3},
    )
    processes = {name: Process(name) for name, _ in run.spec.cluster.machines()}

    def server(parts: compute.Parts) -> Server:
        name = parts.process.name
        kind = Forgetful if name == forgetful else Server
        made = kind(parts.spec, name, parts.cluster, parts.checkpoints, parts.journal, parts.stopping)
        if isinstance(made, Forgetful):
            made.before, made.after = set(before), set(after)
        return made

    with ThreadPoolExecutor(len(processes)) as threads:
        futures: list[Future[Quorum]] = [
            threads.submit(take_part, run, process, trainer if process.name == "master-0" else server)
            for process in processes.values()
        ]
        try:
            for future in futures:
                future.result(PATIENCE)
        finally:
            for process in processes.values():
                process.stop()
    return run.losses(), processes[forgetful].said


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> list[float | None]:
    losses, _ = lives(tmp_path_factory.mktemp("calm"), set(), set())
    assert len(losses) == STEPS
    return losses


@pytest.mark.parametrize("forgetful", ["ps-0", "ps-1"])
def test_a_server_that_missed_the_vote_rolls_forward(tmp_path: Path, calm: list[float | None], forgetful: str) -> None:
    """ps-0 writes the records: also of the step that it had missed."""
    lost = {1, 5, 6, STEPS - 1}
    losses, said = lives(tmp_path, set(), lost, forgetful)
    assert losses == calm
    other = "ps-0" if forgetful == "ps-1" else "ps-1"
    assert [line for line in said if "rolls forward" in line] == [
        f"rolls forward to step {step + 1}, which {other} has committed" for step in sorted(lost)
    ]


def test_a_step_without_a_vote_is_taken_again(tmp_path: Path, calm: list[float | None]) -> None:
    losses, said = lives(tmp_path, {0, 4, 5}, {4})
    assert losses == calm
    assert sum("rolls forward" in line for line in said) == 1
    assert sum("lost before the vote" in line for line in said) == 3


def test_the_next_group_knows_a_vote_by_its_lineage() -> None:
    """A sum that was prepared in another try is not the one that was committed."""
    from trainer.progress import Progress

    here, there = Progress(step=3, lineage=9), Progress(step=3, lineage=9)
    decision = Decision(loss=1.0, tokens=8, gradient_norm=1.0, finite=True, rate=0.1, factor=1.0)
    there.commit(decision, "a try", scaled=False)
    assert here.next_lineage("a try") == there.lineage
    assert here.next_lineage("another try") != there.lineage
