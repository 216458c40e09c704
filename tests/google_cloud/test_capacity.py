"""Machines that Google does not have: the reports to a person, and machines that wait for capacity."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from trainer.compute.exit_codes import AWAY
from trainer.contract import paths
from trainer.runs.records import Exit, MachineStatus

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


def last_exit(run: Life, name: str) -> Exit | None:
    """Return how a machine's computing process last ended; None while it has not."""
    try:
        body = run.storage.read(paths.machine(run.job().run, name))
    except FileNotFoundError:
        return None
    return MachineStatus.model_validate_json(body).last_exit


def test_stock_out_in_two_zones_is_healed_without_anybody(life: Callable[..., Life]) -> None:
    run = life(steps=100_000)
    for zone in ("us-central1-a", "us-central1-b"):
        run.fault("capacity", zone=zone)
    run.cloud.up()  # `up` does not fail, as Google continues to try
    assert {vm["zone"] for vm in run.vms()} == {"us-central1-a"}
    watched(run, "us-central1-a has no n1-standard-2 now; Google keeps trying, and the run moves to another zone")
    # Each zone gets its time. Nobody but the scheduler's job does anything from here on; the clock runs faster.
    assert run.control() == "machines are missing from now on"
    watched(run, "waits for machines in us-central1-a since")
    assert run.control(600) == "machines are missing"
    assert run.control(700) == "moved to us-central1-b"
    assert run.control() == "machines are missing from now on"
    assert run.control(1300) == "moved to us-central1-c"
    assert watched(run, "moved from us-central1-b to us-central1-c at ").endswith(", 2 of 6 moves\n")
    run.training()
    assert {vm["zone"] for vm in run.vms()} == {"us-central1-c"}
    assert run.sizes() == {"master": 1, "worker": 1}
    assert run.control() == "enough machines"
    # The program follows: the next `up` knows where the run is, and makes nothing anew.
    run.cloud.pulumi("preview", "--refresh", "--expect-no-changes")
    assert set(run.changes().values()) == {"update"}
    run.cloud.destroy()
    no_violations(run.cloud)


def test_next_launch_begins_in_another_zone_where_google_has_machines(life: Callable[..., Life]) -> None:
    run = life(steps=100_000)
    run.cloud.up()
    run.training()
    run.fault("capacity", zone="us-central1-b")
    run.cloud.edit("dev", "gpt2-training:platform", "gpt2-training:launch: 2\n  gpt2-training:platform")
    said = run.cloud.up()
    assert "this launch begins in us-central1-c, by Google's advice on capacity (90% likely to be there)" in said
    assert {vm["zone"] for vm in run.vms()} == {"us-central1-c"}
    run.cloud.up("--expect-no-changes")
    run.cloud.destroy()


def test_machine_with_flex_start_waits_for_capacity_and_refuses_to_train_without_its_gpu(
    life: Callable[..., Life],
) -> None:
    """Google gives such machines with GPUs alone, and torch sees none here: the stand-in has none."""
    run = life(workers=0)
    run.cloud.edit("dev", "masterType: n1-standard-2", "masterType: a2-highgpu-1g")
    run.cloud.edit("dev", "machines: {spot: false}", "machines: {flexStart: true}")
    zones = [f"us-central1-{letter}" for letter in "abcf"]
    for zone in zones:
        run.fault("capacity", zone=zone)
    run.cloud.up()
    watched(run, "0 of 1 machines run, the rest waits for capacity")
    run.fault("capacity", zone="us-central1-f", available=True)
    run.until(lambda: run.vms()[0]["zone"] == "us-central1-f", "the machine")
    said = run.until(lambda: last_exit(run, "master-0"), "the end of the first try")
    assert (said.code, run.job().cluster.gpus) == (AWAY, 1)  # it tries again: a driver may come back
    assert said.reason.startswith("GPUs: this machine was declared with 1, torch sees 0 among CUDA_VISIBLE_DEVICES=0")
    run.cloud.destroy()
    assert GROUP not in run.cloud.resources()
