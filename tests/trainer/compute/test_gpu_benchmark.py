"""The half of benchmarks/gpu.py that can run without a GPU: losses in bf16, and those after a restart."""

import pytest

from benchmarks.gpu import main


def test_gpu_benchmark_on_the_cpu_finds_losses_in_bf16_and_after_a_restart_good(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["--cpu"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split("|")[1].strip() for row in rows] == ["losses in bf16", "process 0 of 1 is killed"]
    assert all(row.endswith("| good |") for row in rows), rows
    assert code == 0
