"""`. tools/activate` in the shells that people use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ACTIVATE = Path(__file__).parents[2] / "tools" / "activate"
SHELLS = [
    pytest.param(s, marks=pytest.mark.skipif(not shutil.which(s), reason=f"no {s} here"))
    for s in ("bash", "dash", "zsh")
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout that is set up, in a folder with a blank in its name."""
    root = tmp_path / "my checkout"
    (root / "tools").mkdir(parents=True)
    shutil.copy(ACTIVATE, root / "tools")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    pulumi = tmp_path / "cli" / "pulumi"
    pulumi.parent.mkdir()
    pulumi.write_text("#!/bin/sh\n")
    pulumi.chmod(0o755)
    (root / ".venv" / "pulumi-path").write_text(f"{pulumi.parent}\n")
    return root


def shell(name: str, command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home)} | environment
    return subprocess.run([name, "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def variables(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert (result.returncode, result.stderr) == (0, "")
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


@pytest.mark.parametrize("name", SHELLS)
def test_activate_sets_up_python_pulumi_and_state(name: str, checkout: Path) -> None:
    found = variables(shell(name, "set -eu; . tools/activate; env; echo WHERE=$(command -v pulumi)", checkout))
    home = checkout.parent / "home"
    assert found["VIRTUAL_ENV"] == str(checkout / ".venv")
    assert found["WHERE"] == str(checkout.parent / "cli" / "pulumi")
    assert found["PULUMI_BACKEND_URL"] == f"file://{checkout}/.pulumi-state"
    assert (checkout / ".pulumi-state").is_dir()
    assert found["PULUMI_HOME"] == f"{home}/.cache/gpt2-training/pulumi-home"
    assert found["PULUMI_CONFIG_PASSPHRASE"] == ""
    assert found["PULUMI_SKIP_UPDATE_CHECK"] == found["PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL"] == "true"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", SHELLS)
def test_activate_keeps_variables_that_the_person_has_set(name: str, checkout: Path) -> None:
    own = {
        "PULUMI_HOME": "/own",
        "PULUMI_BACKEND_URL": "gs://team",
        "PULUMI_CONFIG_PASSPHRASE_FILE": "/secret",
        "PULUMI_SKIP_UPDATE_CHECK": "false",
        "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "false",
    }
    found = variables(shell(name, ". tools/activate; env", checkout, **own))
    assert {key: found[key] for key in own} == own
    assert "PULUMI_CONFIG_PASSPHRASE" not in found
    assert not (checkout / ".pulumi-state").exists()
    found = variables(shell(name, ". tools/activate; env", checkout, PULUMI_CONFIG_PASSPHRASE="x"))
    assert found["PULUMI_CONFIG_PASSPHRASE"] == "x"
    found = variables(shell(name, ". tools/activate; env", checkout, PULUMI_BACKEND_URL="gs://team"))
    assert "PULUMI_CONFIG_PASSPHRASE" not in found  # an empty passphrase would protect nothing


@pytest.mark.parametrize("name", SHELLS)
def test_activate_leaves_the_backend_of_the_project_file(name: str, checkout: Path) -> None:
    (checkout / "Pulumi.yaml").write_text("name: gpt2-training\nbackend: {url: gs://team}\n")
    found = variables(shell(name, ". tools/activate; env", checkout))
    assert not {"PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE"} & set(found)
    assert not (checkout / ".pulumi-state").exists()


@pytest.mark.parametrize("name", SHELLS)
def test_activate_of_another_checkout_sets_its_own_state(name: str, checkout: Path) -> None:
    found = variables(
        shell(name, ". tools/activate; env", checkout, PULUMI_BACKEND_URL="file:///elsewhere/.pulumi-state")
    )
    assert found["PULUMI_BACKEND_URL"] == f"file://{checkout}/.pulumi-state"


@pytest.mark.parametrize("name", ["bash", SHELLS[2]])
def test_activate_can_be_sourced_from_anywhere_and_twice(name: str, checkout: Path, tmp_path: Path) -> None:
    command = f"cd /; . '{checkout}/tools/activate'; . '{checkout}/tools/activate'; env"
    found = variables(shell(name, command, checkout))
    assert found["VIRTUAL_ENV"] == str(checkout / ".venv")
    assert found["PATH"].split(":").count(str(tmp_path / "cli")) == 1


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("missing", [".venv", ".venv/pulumi-path", "../cli"])
def test_activate_stops_with_one_line_when_a_file_is_missing(name: str, checkout: Path, missing: str) -> None:
    target = checkout / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    result = shell(name, ". tools/activate && echo went on", checkout)
    assert result.returncode != 0
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"run `make setup` in {checkout}" in result.stderr
