"""A short version of benchmarks/faults.py, which documents the faults and how each run must end."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.disturbed import DisturbedMachines, Fault, Setup, storages
from benchmarks.faults import Benchmark, back
from tools.go_tools import ToolError

pytestmark = pytest.mark.slow
LONG = "frozen 32 to 45 s"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benchmark]:
    folder = tmp_path_factory.mktemp("faults")
    try:
        with storages(folder) as storage:
            yield Benchmark(folder, 1, storage, Console(), but=[LONG], hurry=0.8, forked=True)
    except ToolError as error:
        pytest.skip(f"no fake-gcs-server: {error}")


# Each row names a run, its machines and its number of faults. The rows are the seed's runs that restart few processes.
RUNS = [
    (46, Setup(trainers=2, servers=2, least=2), 8),
    (906, Setup(trainers=2, servers=0, least=1), 8),
    (85, Setup(trainers=1, servers=1, least=1, google=True), 4),
]


@pytest.mark.parametrize(("number", "setup", "faults"), RUNS, ids=str)
def test_run_with_random_faults_ends_as_the_undisturbed_run(
    benchmark: Benchmark, number: int, setup: Setup, faults: int
) -> None:
    outcome = benchmark.once(number, setup, faults, steps=800)
    assert outcome.wrong == []
    assert len(outcome.faults) >= faults // 2, "the run was over too soon to be disturbed"


# Both machines must be there, so that each fault meets a run that has steps left.
ENGINES = [Setup(2, servers, least=2, processes=2, fsdp=fsdp) for fsdp in (False, True) for servers in (0, 1)]


@pytest.mark.parametrize("setup", ENGINES, ids=str)
def test_run_that_loses_a_process_and_the_leader_ends_as_the_undisturbed_run(
    benchmark: Benchmark, setup: Setup
) -> None:
    lost = [("process", "worker-0"), ("machine", "master-0")]
    planned = [Fault(f"kill -9, {what}", [name]) for what, name in lost]
    outcome = replace(benchmark, hurry=0.0).once(7, setup, len(planned), steps=150, planned=planned)
    assert outcome.wrong == []
    assert outcome.faults == planned


def test_machine_whose_disk_was_full_continues_and_sends_heartbeats_again(tmp_path: Path) -> None:
    """A full disk also takes the log, which once silenced the supervisor for good."""
    machines = DisturbedMachines(tmp_path, Setup(trainers=1, servers=0, least=1), steps=100_000, forked=True)
    try:
        machines.start("master-0")
        machines.run.until(machines.steps, "the first step")
        machines.disk_full(machines.names, random.Random(1))
        before = machines.steps()
        machines.run.until(lambda: back(machines, before), "a heartbeat")
        assert (machines.run.machine("master-0").restarts, machines.over()) == (0, False)
    finally:
        machines.close()
