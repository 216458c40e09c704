"""The whole life of a local stack through the real CLI, with a trainer that only sleeps."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.local import processes
from tests.infra.conftest import CHECKOUT, Project

pytestmark = pytest.mark.slow
ALL = {"master-0", "worker-0", "ps-0"}


def marked(project: Project) -> list[psutil.Process]:
    return processes.marked(f"{project.bucket}::")


def all_are_there(project: Project) -> None:
    """Wait until every machine and its child have started, and assert that there is no other process."""
    end = time.monotonic() + 60
    while len(marked(project)) < 2 * len(ALL) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(marked(project)) == 2 * len(ALL)


def until_written(project: Project, machine: str) -> None:
    """Wait until Pulumi's state is complete and has the machine as the only resource in creation: it writes no more."""
    state = Path(project.environment["PULUMI_BACKEND_URL"].removeprefix("file://")) / ".pulumi" / "stacks"
    found: dict[str, Any] = {}
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in state.rglob("local.json"):
            try:
                found = json.loads(path.read_text())["checkpoint"]["latest"] or {}
            except (ValueError, OSError):  # the file is being written
                continue
            pending = {one["resource"]["urn"].rpartition("::")[2] for one in found.get("pending_operations", [])}
            made = {one["urn"].rpartition("::")[2] for one in found.get("resources", [])}
            if pending == {machine} and made >= ALL - {machine}:
                return
        time.sleep(0.05)
    raise AssertionError(f"Pulumi has not come to wait for {machine} alone: {found}")


def leave(project: Project) -> None:
    """End all processes, as they end by themselves when the run is over."""
    processes.sweep(project.bucket, grace=0)


@pytest.mark.cold
def test_stack_survives_up_again_destroy_and_up_again(project: Project) -> None:
    project.up()
    assert (project.root / "Pulumi.local.yaml").read_text() == (CHECKOUT / "Pulumi.local.yaml").read_text()
    assert project.living() == ALL
    assert project.status().state == "PROVISIONING"
    pids = {name: project.pid(name) for name in ALL}
    environment = psutil.Process(pids["worker-0"]).environ()
    assert not [name for name in environment if name.startswith("PULUMI_")]

    project.up("--expect-no-changes")
    assert {name: project.pid(name) for name in ALL} == pids

    project.set_status(state="RUNNING", step=7)
    project.destroy()
    assert marked(project) == []
    assert project.status().state == "STOPPED"
    assert project.status().reason.startswith("destroyed; `pulumi up`")
    assert (project.bucket / project.job().data.path).exists()
    project.destroy()

    project.up()
    assert project.living() == ALL
    assert (project.status().state, project.status().step) == ("PROVISIONING", 7)


def test_dead_machine_is_detected_and_started_again(project: Project) -> None:
    project.up()
    os.kill(project.pid("worker-0"), signal.SIGKILL)  # its child is still alive
    assert project.steps() == {"worker-0": "update"}
    assert '"1" => "2, because the process was gone"' in project.run("preview", "--diff")
    assert "1 to delete" in project.run("refresh", "--preview-only", "--diff")
    master = project.pid("master-0")

    project.up()
    assert project.living() == ALL
    assert project.pid("master-0") == master
    assert project.steps() == {}
    all_are_there(project)  # no orphan of the dead machine is left

    os.kill(project.pid("worker-0"), signal.SIGKILL)
    project.run("refresh", "--yes", "--skip-preview")
    assert project.steps() == {"worker-0": "create"}


def test_machine_that_left_a_finished_run_is_no_difference(project: Project) -> None:
    project.up()
    project.set_status(state="SUCCEEDED")
    leave(project)
    assert project.steps() == {}
    assert "nothing is left to do" in project.up("--refresh", "--expect-no-changes")

    project.destroy()
    assert project.status().state == "SUCCEEDED"
    project.up()
    assert project.status().state == "SUCCEEDED"
    assert project.living() == set()  # nothing is started


def test_error_hides_a_secret_value(project: Project) -> None:
    """Pulumi hides secrets in its own messages alone, and a review quotes the error."""
    for name, value in (("path", "data/me@home/and so on.txt"), ("tokenizer", f"word by {'w' * 80}")):
        project.run("config", "set", "--secret", "--path", f"gpt2-training:data.{name}", value)
    said = project.run("preview", "--json", ok=False)
    assert "data.tokenizer: found [secret], must be one of" in said, said
    assert "ww" not in said, said
    project.run("config", "set", "--path", "gpt2-training:data.tokenizer", "byte")
    said = project.run("preview", "--json", ok=False)
    assert "[secret]" in said, said
    assert "me@home" not in said, said


def changes(project: Project) -> list[str]:
    """Return the changed values that a preview shows, without those of the estimate, which depend on this machine."""
    lines = [" ".join(line.split()) for line in project.run("preview", "--diff").splitlines() if "=>" in line]
    return [line for line in lines if not line.startswith(("~ high", "~ low"))]


def test_preview_shows_the_effect_of_a_change(project: Project) -> None:
    outputs = project.run("preview").partition("Outputs:")[2]
    assert re.search(r"estimatedHours +: \{\s+high: 0\.\d+\s+low : 0\.\d+\s+\}", outputs), outputs
    assert re.search(r"estimatedCostUsd: \{\s+high: 0\s+low : 0\s+\}\s", outputs), outputs
    assert re.search(r"hourlyCostUsd +: 0\s", outputs), outputs
    project.up()
    project.edit("workerCount: 1", "workerCount: 2")
    assert project.steps() == {"training": "update", "job": "update", "worker-1": "create"}
    assert changes(project) == ["~ workerCount : 1 => 2", "~ workers : 1 => 2"]
    pids = {name: project.pid(name) for name in ALL}
    project.up()
    assert project.living() == {*ALL, "worker-1"}
    assert {name: project.pid(name) for name in ALL} == pids

    project.edit("workerCount: 2", "workerCount: 1")
    project.up()
    assert project.living() == ALL
    old = project.job().run

    project.edit("learningRate: 0.003", "learningRate: 0.004")
    new = project.job().run
    steps = project.steps()
    assert steps["training"] == "update"
    assert {steps[name] for name in ("job", *ALL)} <= {"replace", "create-replacement", "delete-replaced"}
    told = changes(project)
    assert "~ learningRate : 0.003 => 0.004" in told
    assert {line.split(" ")[1] for line in told} == {"learningRate", "path", "run", "model"}
    project.up()
    assert project.living() == ALL
    all_are_there(project)
    assert f"replaced by {new}" in (project.bucket / "runs" / old / "status.json").read_text()


def test_failed_run_waits_for_a_raised_launch(project: Project) -> None:
    project.up()
    project.set_status(state="FAILED", reason="worker-0: out of memory", step=30)
    leave(project)
    said = project.up("--expect-no-changes")
    assert "FAILED at step 30 (worker-0: out of memory); set gpt2-training:launch to 2" in said

    project.edit("launch: 1", "launch: 2")
    project.up()
    assert (project.status().state, project.status().launch, project.status().step) == ("PROVISIONING", 2, 30)
    assert project.living() == ALL


def test_destroy_ends_processes_that_ignore_sigterm_or_are_in_no_state(project: Project) -> None:
    stray = project.machine("worker-7")  # an `up` that was killed right after the start would leave this process
    processes.start(stray, 1, [sys.executable, "-m", "trainer"], project.root)
    (project.root / "stubborn").touch()
    code = project.root / "infra" / "local" / "processes.py"
    code.write_text(code.read_text().replace("GRACE = 30.0", "GRACE = 3.0"))
    assert "GRACE = 3.0" in code.read_text()
    project.up()
    project.destroy()
    assert marked(project) == []


def test_destroy_after_everything_was_deleted_by_hand(project: Project) -> None:
    project.up()
    shutil.rmtree(project.bucket)
    project.destroy()
    assert marked(project) == []
    assert not project.bucket.exists()


def test_up_after_everything_was_deleted_by_hand(project: Project) -> None:
    project.up()
    shutil.rmtree(project.bucket)
    project.up()
    assert project.living() == ALL
    all_are_there(project)
    assert project.status().state == "PROVISIONING"


@pytest.mark.cold
def test_an_interrupted_up_can_be_repeated(project: Project) -> None:
    machine = project.machine("worker-0")
    machine.lock.parent.mkdir(parents=True)
    held = machine.lock.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)  # the lock keeps the start of worker-0 waiting
    command = ["pulumi", "up", "--yes", "--skip-preview", "--non-interactive", "--stack", "local"]
    up = subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL)
    # If Pulumi is killed while it writes its state, it may leave an empty file, which only Pulumi can mend.
    until_written(project, "worker-0")
    below = psutil.Process(up.pid).children(recursive=True)
    # These are plugins and no machines.
    plugins = [process for process in below if os.getsid(process.pid) == os.getsid(up.pid)]
    up.kill()
    up.wait()
    held.close()
    for plugin in plugins:  # they would wait for the lock for ever
        with suppress(psutil.NoSuchProcess):
            plugin.kill()
    project.run("cancel", "--yes")  # Pulumi's own lock stays when Pulumi is killed
    project.up()
    assert project.living() == ALL
    all_are_there(project)
    project.up("--expect-no-changes")


def test_mistake_in_the_stack_file_is_one_line_and_no_traceback(project: Project) -> None:
    project.edit("learningRate: 0.003", "learningRate: fast")
    project.edit("every: 250", "evry: 250")
    output = project.run("preview", ok=False)
    assert "learningRate: found 'fast', must be a number" in output
    assert "gpt2-training:checkpoints.evry: unknown key; did you mean every?" in output
    assert "Traceback" not in output
    Path(project.root / "data" / "default.txt").unlink()
    project.edit("learningRate: fast", "learningRate: 0.1")
    project.edit("evry: 250", "every: 250")
    output = project.run("preview", ok=False)
    assert "python -m scripts.default_corpus" in output
    assert "Traceback" not in output
