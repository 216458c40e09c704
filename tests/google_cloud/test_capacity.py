"""Machines that Google does not have: the reports to a person, and machines that wait for capacity."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from .life import GROUP, Life, no_violations

pytestmark = pytest.mark.slow


def watched(run: Life, words: str) -> str:
    """Return the first line of `scripts.watch` with these words."""
    command = [sys.executable, "-u", "-m", "scripts.watch", "--stack", "dev"]
    watch = subprocess.Popen(
        command, cwd=run.root, env=run.cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    try:
        assert watch.stdout is not None
        for line in watch.stdout:
            print(line, end="")
            said.append(line)
            if words in line:
                return line
    finally:
        watch.kill()
        watch.wait()
    return pytest.fail(f"watch ended without {words!r}: {''.join(said)}")


def test_stock_out_is_reported_and_the_next_launch_takes_the_next_zone(life: Callable[..., Life]) -> None:
    run = life(workers=0)
    run.fault("capacity", zone="us-central1-a")
    run.cloud.up()  # `up` does not fail, as Google continues to try
    said = watched(run, "us-central1-a has no n1-standard-2")
    assert "launch" in said
    run.cloud.edit("dev", "gpt2-training:platform", "gpt2-training:launch: 2\n  gpt2-training:platform")
    run.cloud.up()
    assert {vm["zone"] for vm in run.vms()} == {"us-central1-b"}
    run.finished()
    no_violations(run.cloud)


def test_machine_with_flex_start_waits_for_capacity_and_trains(life: Callable[..., Life]) -> None:
    run = life(workers=0)
    run.cloud.edit("dev", "masterType: n1-standard-2", "masterType: a2-highgpu-1g")
    run.cloud.edit("dev", "machines: {spot: false}", "machines: {flexStart: true}")
    run.cloud.up()
    assert len(run.vms()) == 1
    assert len(run.cloud.resources()["gcp:compute/regionResizeRequest:RegionResizeRequest"]) == 1
    run.finished()
    assert "nothing is left to do" in run.cloud.up()
    assert run.sizes() == {"master": 0}
    run.cloud.destroy()
    assert GROUP not in run.cloud.resources()
