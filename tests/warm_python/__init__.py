"""A virtual environment whose `python` starts at once: server.py forks it, with the large libraries imported.

Each `pulumi` command starts Python up to eight times: our language host one to three times, its search for packages,
the program, the provider of our dynamic resources, and in tests/google_cloud the two stand-in plugins. Their time goes
into importing pulumi, grpc and pulumi_gcp. A fork has these imports behind it, and otherwise is a process of its own:
descriptors, environment, current folder, modules of the project, signals, exit status; it is killed when the process
that the CLI started is killed. A fork has no hash seed of its own and no descriptors other than 0, 1 and 2.

Tests marked `cold` get the real python, as a person does: those of starting, of a killed `up`, and a whole life each of
the local stack and of the one on Google Cloud.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm

HERE = Path(__file__).parent
# The slow imports, and nothing of the project, which tests edit. Google's modules are those that infra/google uses.
PULUMI = [
    "pulumi", "pulumi.dynamic", "pulumi.policy", "dill", "grpc", "yaml", "pydantic", "psutil", "requests",
    "pulumi_docker_build", "google.cloud.storage", "googleapiclient.discovery",
    *(f"pulumi_gcp.{name}" for name in (
        "artifactregistry", "billing", "cloudscheduler", "compute", "iam", "logging", "monitoring", "projects",
        "serviceaccount", "storage",
    )),
]  # fmt: skip
# The variables that libraries read when they are imported must be nobody's.
PERSONAL = ("PULUMI_", "GOOGLE_", "CLOUDSDK_", "GCLOUD_", "GCE_METADATA_", "STORAGE_EMULATOR_", "PYTHON")


@pytest.fixture(scope="session")
def forked_pulumi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a virtual environment for the processes of the CLI."""
    with _environment(tmp_path_factory.mktemp("pulumi"), PULUMI, nested=False) as home:
        yield home


@pytest.fixture(scope="session")
def forked_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a virtual environment for the trainer, which starts others of its kind."""
    with _environment(tmp_path_factory.mktemp("trainer"), warm.LIBRARIES, nested=True) as home:
        yield home


@pytest.fixture
def virtual_environment(request: pytest.FixtureRequest) -> Path:
    """Return the virtual environment of a test's project, which is active when its commands run."""
    if request.node.get_closest_marker("cold"):
        return Path(sys.prefix)
    found: Path = request.getfixturevalue("forked_pulumi")
    return found


@pytest.fixture
def cli_environment(request: pytest.FixtureRequest, virtual_environment: Path) -> dict[str, str]:
    """Return the CLI's environment.

    Without `cold` the CLI saves a stack's state only at its end, as nobody ends it before.
    """
    found = {"VIRTUAL_ENV": str(virtual_environment)}
    if not request.node.get_closest_marker("cold"):
        found["PULUMI_SKIP_CHECKPOINTS"] = "true"
    return found


@contextlib.contextmanager
def _environment(home: Path, libraries: list[str], *, nested: bool) -> Iterator[Path]:
    for path in Path(sys.prefix).iterdir():
        if path.name != "bin":
            (home / path.name).symlink_to(path)
    (home / "bin").mkdir()
    for path in Path(sys.prefix, "bin").iterdir():
        if not path.name.startswith("python"):
            (home / "bin" / path.name).symlink_to(path)
    python, socket = home / "bin" / "python", home / "socket"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{HERE / "client.py"}" "{socket}" "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, "-I", HERE / "server.py", socket, python if nested else sys.executable, *libraries]
    nobody = {name: value for name, value in os.environ.items() if not name.startswith(PERSONAL)}
    nobody |= {**warm.SETTINGS, "ROOM": "x" * 100_000}
    with subprocess.Popen(command, env=nobody, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == b"listening\n"
        yield home
