"""tools/setup and tools/install_packages, with a python, a pip and a uv that only note their calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each call is a line of `calls`, for uv with its settings. A file `no-uv` or `uv-fails` causes that case.
PYTHON = """#!/bin/sh
echo "python $*" >> calls
case "$*" in
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip config list") cat pip-settings ;;
  "-m pip install "*setup.txt)
    if [ -e no-uv ]; then
      echo "ERROR: Could not find a version that satisfies the requirement uv" >&2
      echo "ERROR: No matching distribution found for uv" >&2
      exit 1
    fi
    cp fake-uv .venv/bin/uv ;;
esac
"""
UV = """#!/bin/sh
echo "uv $* $(env | grep -E '^(UV_|SSL_CERT_FILE|ALL_PROXY)' | sort | tr '\\n' ' ')" >> calls
[ ! -e uv-fails ]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout without an environment, in a folder with a blank in its name."""
    root = tmp_path / "my checkout"
    (root / "tools").mkdir(parents=True)
    for name in ("setup", "install_packages"):
        shutil.copy(ROOT / "tools" / name, root / "tools")
    shutil.copytree(ROOT / "requirements", root / "requirements")
    (root / "trainer").mkdir()
    shutil.copy(ROOT / "trainer" / "requirements.txt", root / "trainer")
    for name, text in [("fake-python", PYTHON), ("fake-uv", UV), ("pip-settings", "")]:
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root


def setup(checkout: Path, **variables: str) -> tuple[list[str], str]:
    """Run set-up; return the calls that installed packages, and its output."""
    (checkout / "calls").unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "PYTHON": "./fake-python", **variables}
    done = subprocess.run(
        ["tools/setup"], cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    calls = (checkout / "calls").read_text().splitlines()
    return [line for line in calls if "requirements/development.txt" in line or "-m venv" in line], done.stdout


def test_uv_installs_the_packages(checkout: Path) -> None:
    (venv, installed), _ = setup(checkout)
    assert venv == "python -m venv .venv"
    assert installed.startswith(
        "uv pip install --compile-bytecode --python .venv/bin/python --requirement requirements/development.txt UV_"
    )


def test_second_set_up_installs_nothing(checkout: Path) -> None:
    setup(checkout)
    assert setup(checkout) == ([], "")


def test_changed_requirement_is_installed_into_the_same_environment(checkout: Path) -> None:
    setup(checkout)
    with (checkout / "trainer" / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    (venv, installed), _ = setup(checkout)
    assert venv == "python -m venv .venv"
    assert installed.startswith("uv pip install")


def test_interrupted_installation_is_repeated(checkout: Path) -> None:
    interrupted = UV.replace("[ ! -e uv-fails ]", "kill -9 $PPID")
    (checkout / "fake-uv").write_text(interrupted)
    with pytest.raises(AssertionError):
        setup(checkout)
    (checkout / "fake-uv").write_text(UV)
    (venv, installed), _ = setup(checkout)
    assert venv == "python -m venv --clear .venv"
    assert installed.startswith("uv pip install")


def test_missing_uv_is_reported_and_pip_installs(checkout: Path) -> None:
    (checkout / "no-uv").touch()
    (_, installed), said = setup(checkout)
    assert installed.startswith("python -m pip install ")
    assert len(said.splitlines()) == 2
    assert "uv cannot be had: ERROR: No matching distribution found for uv" in said


def test_failing_uv_is_followed_by_pip(checkout: Path) -> None:
    (checkout / "uv-fails").touch()
    (_, by_uv, by_pip), said = setup(checkout)
    assert by_uv.startswith("uv pip install")
    assert by_pip.startswith("python -m pip install ")
    assert "pip tries it" in said


def test_uv_uses_the_indexes_and_settings_of_pip(checkout: Path) -> None:
    (checkout / "pip-settings").write_text(
        ":env:.cert='/ours.pem'\n:env:.index-url='https://first.invalid/simple'\n"
        "global.cert='/theirs.pem'\nglobal.extra-index-url='\\nhttps://second.invalid/simple\\nhttps://third.invalid'\n"
        "global.index-url='https://not.invalid'\ninstall.find-links='/wheels'\nglobal.proxy='http://proxy.invalid:1'\n"
    )
    (_, installed), _ = setup(checkout, UV_FIND_LINKS="/mine")
    given = installed.partition("development.txt ")[2]
    assert given.strip() == (
        "ALL_PROXY=http://proxy.invalid:1 SSL_CERT_FILE=/ours.pem UV_DEFAULT_INDEX=https://first.invalid/simple "
        "UV_FIND_LINKS=/mine UV_INDEX=https://second.invalid/simple https://third.invalid "
        "UV_INDEX_STRATEGY=unsafe-best-match"
    )
