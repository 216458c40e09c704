"""tools.workflows: the emulator's environment is made in the cache, as a whole or not at all."""

import subprocess
from pathlib import Path

import pytest

from tools import workflows
from tools.go_tools import ToolError


def test_environment_executes_a_workflow() -> None:
    python = workflows.environment() / "bin" / "python"
    code = "from workflows_emulator.main import execute_workflow as run; print(run([{'a': {'return': 7}}], {}))"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"


def test_environment_that_cannot_be_installed_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_TRAINING_CACHE", str(tmp_path))
    monkeypatch.setattr(workflows, "REQUIREMENTS", tmp_path / "none.txt")
    (tmp_path / "none.txt").write_text("not a requirement\n")
    with pytest.raises(ToolError, match=r"^requirements none\.txt cannot be installed: [^\n]+$"):
        workflows.environment()
    assert not list(tmp_path.glob("*workflows*/bin"))
