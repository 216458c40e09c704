from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.running import Run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: small tensors are slower with more, and other processes want the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return a function that makes runs, each in a folder of its own; end the processes that they leave behind."""
    made: list[Run] = []

    def make(**overrides: Any) -> Run:
        made.append(Run(tmp_path / f"bucket-{len(made)}", **overrides))
        return made[-1]

    yield make
    for run in made:
        run.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a finished run of one trainer without faults, the reference of other runs."""
    run = Run(tmp_path_factory.mktemp("undisturbed"))
    try:
        assert run.start().wait().state == "SUCCEEDED"
        yield run
    finally:
        run.end()
