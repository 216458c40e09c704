"""A virtual environment whose `python` starts at once: server.py forks it, with the large libraries imported.

Each `pulumi` command starts Python up to eight times: our language host one to three times, what lists the packages,
the program, the provider of our dynamic resources, and in tests/google_cloud the stand-ins of two plugins. What they
spend is the time to import pulumi, grpc and pulumi_gcp. A fork has that behind it, and otherwise is a process of its
own: descriptors, environment, current folder, modules of the project, signals, exit status; killed when the one that
the CLI started is killed. What a fork does not have is a hash seed of its own and descriptors other than 0, 1 and 2.

It is the tests' choice who gets it: those of starting, of the language host and of a killed `up` use the real python.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What takes long, and nothing of the project: tests edit that. Google's modules are those that infra/google uses.
LIBRARIES = [
    "pulumi", "pulumi.dynamic", "pulumi.policy", "dill", "grpc", "yaml", "pydantic", "psutil", "requests",
    "pulumi_docker_build", "google.cloud.storage", "googleapiclient.discovery",
    *(f"pulumi_gcp.{name}" for name in (
        "artifactregistry", "billing", "cloudscheduler", "compute", "iam", "logging", "monitoring", "projects",
        "serviceaccount", "storage",
    )),
]  # fmt: skip


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The virtual environment."""
    home = tmp_path_factory.mktemp("warm_python")
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
    command = [sys.executable, "-I", HERE / "server.py", socket, *LIBRARIES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        assert server.stdout.readline() == b"listening\n"
        yield home


def warm(python: Path, root: Path, environment: dict[str, str]) -> None:
    """Let the CLI, run with this environment, start that Python for the project in `root` and for its own host."""
    (root / ".venv").unlink(missing_ok=True)
    (root / ".venv").symlink_to(python)
    environment["PULUMI_PYTHON_CMD"] = str(python / "bin" / "python")


def cold(root: Path, environment: dict[str, str]) -> None:
    """Let it start the real one, as it does for a person."""
    (root / ".venv").unlink(missing_ok=True)
    (root / ".venv").symlink_to(sys.prefix)
    environment.pop("PULUMI_PYTHON_CMD", None)
