"""A short version of benchmarks/faults.py, which says what happens to the runs and how each has to end."""

from collections.abc import Iterator

import pytest
from rich.console import Console

from benchmarks.disturbed import Setup, storages
from benchmarks.faults import Benchmark
from tools.go_tools import ToolError

pytestmark = pytest.mark.slow
LONG = "frozen 32 to 45 s"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benchmark]:
    folder = tmp_path_factory.mktemp("faults")
    try:
        with storages(folder) as storage:
            yield Benchmark(folder, 1, storage, Console(), but=[LONG])
    except ToolError as error:
        pytest.skip(f"no fake-gcs-server: {error}")


SETUPS = [
    (Setup(trainers=2, servers=2, least=2), 8),
    (Setup(trainers=2, servers=0, least=1), 8),
    (Setup(trainers=2, servers=1, least=1, google=True), 4),
]


@pytest.mark.parametrize(("setup", "faults"), SETUPS, ids=str)
def test_a_run_with_random_faults_ends_as_if_there_were_none(benchmark: Benchmark, setup: Setup, faults: int) -> None:
    outcome = benchmark.once(faults, setup, faults)
    assert outcome.wrong == []
    assert len(outcome.faults) >= 3, "the run was over too soon to be disturbed"
