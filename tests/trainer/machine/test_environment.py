"""trainer.machine.environment: what a machine says of itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.machine.environment import environment, memory_mb

LISTED = """0, GPU-aa1, NVIDIA H100 80GB HBM3, 580.1
1, GPU-bb2, NVIDIA H100 80GB HBM3, 580.1
2, GPU-cc3, NVIDIA T4, 580.1"""


@pytest.mark.parametrize(
    ("devices", "gpu"),
    [
        ("", "2 × NVIDIA H100 80GB HBM3, 1 × NVIDIA T4"),
        ("0,1", "2 × NVIDIA H100 80GB HBM3"),
        ("GPU-bb,2", "1 × NVIDIA H100 80GB HBM3, 1 × NVIDIA T4"),
        ("7", None),
    ],
)
def test_environment_counts_the_gpus_of_this_machine(
    devices: str, gpu: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{LISTED}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = environment(devices)
    assert found.get("gpu") == gpu
    assert found.get("driver") == (gpu and "580.1")


def test_memory_of_a_machine_is_that_of_all_its_processes() -> None:
    alone = memory_mb(os.getpid())
    large = "held = b'x' * 90_000_000; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", large], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = memory_mb(os.getpid())
        child.communicate(b"\n")
    assert alone is not None
    assert together is not None
    assert together > alone + 80
