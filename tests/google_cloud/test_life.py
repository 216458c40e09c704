"""The whole life of a run on Google Cloud, by the real Pulumi CLI and the real trainer, on the stand-in cloud."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.inputs import docker
from tests.google_cloud import vm_image
from trainer.contract import paths
from trainer.runs.metrics_reader import MetricsReader, read_metrics

from .bill import table
from .conftest import wait_for
from .life import BUCKET, FIREWALL, GROUP, PATIENCE, Life, no_violations

pytestmark = pytest.mark.slow


@pytest.mark.cold
def test_stack_goes_from_nothing_to_a_model_and_back_and_up_again(life: Callable[..., Life], tmp_path: Path) -> None:
    run = life()
    cloud, first = run.cloud, run.job().run
    assert run.changes()["worker-us-central1-a-group"] == "create"
    cloud.up()
    assert len(cloud.resources()["gcp:monitoring/alertPolicy:AlertPolicy"]) == 3  # their metrics are seconds old
    run.finished()
    assert "downloaded and verified" in cloud.script("scripts.download_model", "--stack", "dev")
    said = cloud.script("scripts.generate", "--stack", "dev", "one plus two is", "--tokens", "8")
    assert "one plus two is" in said
    no_violations(cloud)

    # The account of the run: machines to their end, operations, and nothing of an old checkpoint in the buckets.
    account = cloud.account()
    billed = {kind: [one for one in account["entries"] if one["kind"] == kind] for kind in ("VM", "disk")}
    assert sorted(vm["what"]["type"] for vm in billed["VM"]) == ["n1-standard-2"] * 2
    assert sorted(vm["what"]["spot"] for vm in billed["VM"]) == [False, True]
    assert {disk["what"]["gb"] for disk in billed["disk"]} == {200}
    for vm, disk in zip(billed["VM"], billed["disk"], strict=True):
        assert 0 < vm["until"] - vm["since"] == pytest.approx(disk["until"] - disk["since"], abs=5)
    assert {count["what"] for count in account["counts"]} == {"class A", "class B", "workflow steps"}
    left = account["stored"][f"{cloud.project}-dev-gpt2"]
    assert left["0"]["noncurrent"] < left["0"]["live"]
    assert left["8"] == {"live": left["0"]["live"], "noncurrent": 0, "softDeleted": 0}
    print(table(account))

    # A finished run stays finished, and is no drift.
    assert "nothing is left to do" in cloud.up("--refresh", "--expect-no-changes")

    # Another learning rate makes another run; the diff shows the change, and the old run's files stay.
    cloud.edit("dev", "learningRate: 0.01", "learningRate: 0.02")
    said = cloud.pulumi("preview", "--diff")
    assert re.search(r"~ learningRate\s*: 0.01 => 0.02", said)
    changed = run.changes()
    groups = {op for name, op in changed.items() if name.endswith("-group")}
    assert groups == {"replace"}
    assert "network" not in changed
    cloud.up()
    second = run.job().run
    run.finished()
    models = {entry.path.split("/")[1] for entry in run.storage.list("runs") if entry.path.endswith("config.json")}
    assert models == {first, second}

    # Only the kept resources are left; the next `up` adopts them.
    cloud.destroy()
    left = {token: names for token, names in cloud.resources().items() if not token.endswith("Service")}
    assert sorted(left.pop(BUCKET)) == sorted(f"{cloud.project}-dev-gpt2{part}" for part in ("", "-data"))
    left.pop("gcp:storage/bucketObject:BucketObject")
    left.pop("gcp:artifactregistry/repository:Repository")
    left.pop("docker-build:index:Image")
    left.pop("gcp:projects/iAMCustomRole:IAMCustomRole")  # the name of a deleted role is blocked for weeks
    left.pop("gcp:monitoring/metricDescriptor:MetricDescriptor")
    (agents,) = left.pop("gcp:projects/iAMMember:IAMMember")  # other workflows of the project have the same agent
    assert "roles/workflows.serviceAgent" in agents
    assert left == {}
    now = run.status()
    assert now is not None
    assert now.state == "SUCCEEDED"
    account = cloud.account()
    assert account["runs_on"] == []
    assert [one["name"] for one in account["entries"] if one["until"] is None] == []
    cloud.up()
    assert set(run.sizes().values()) == {0}
    cloud.edit("dev", "gpt2-training:platform", "gpt2-training:keepArtifacts: false\n  gpt2-training:platform")
    cloud.up()
    cloud.destroy("--run-program")
    assert BUCKET not in cloud.resources()


def test_machines_that_google_preempts_come_back_and_the_run_continues(life: Callable[..., Life]) -> None:
    run = life(steps=100_000, every=25)
    cloud = run.cloud
    cloud.up()
    run.training(5)

    # Another number of workers changes one number, and no machine is lost for it.
    before = {vm["name"] for vm in run.vms()}
    cloud.edit("dev", "workerCount: 1", "workerCount: 2")
    steps = cloud.preview()
    changed = {step["urn"].rsplit("::", 1)[1] for step in steps if step["op"] not in ("same", "update")}
    assert changed <= {"job"}, changed
    (step,) = [step for step in steps if step["urn"].endswith("::worker-us-central1-a-group")]
    assert (step["op"], list(step["detailedDiff"])) == ("update", ["targetSize"])
    cloud.up()
    assert before <= {vm["name"] for vm in run.vms()}
    cloud.edit("dev", "workerCount: 2", "workerCount: 1")
    cloud.up()
    run.until(lambda: len(run.vms("worker")) == 1, "one worker")

    # A worker is taken without notice, then the master: both come back under their names, and the steps continue.
    for role, notice in (("worker", False), ("master", True)):
        (name,) = [vm["name"] for vm in run.vms(role)]
        old = next(vm["id"] for vm in run.vms(role))
        run.fault("preempt", instance=name, notice=notice, after=4)
        run.until(lambda r=role, o=old: [vm for vm in run.vms(r) if vm["id"] not in ("", o)], f"the {role} again")
        assert [vm["name"] for vm in run.vms(role)] == [name]
        now = run.status()
        assert now is not None
        run.training(now.step + 5)
    cloud.pulumi("preview", "--refresh", "--expect-no-changes")

    # The stack is destroyed in the middle of it: no machine is left, and the status says how to continue.
    cloud.destroy()
    assert run.vms() == []
    now = run.status()
    assert now is not None
    assert now.state == "STOPPED"
    assert re.match(r"destroyed; `pulumi up` continues from step \d+", now.reason)


@pytest.mark.runs_on("the drift of a stack whose machines run is the subject")
def test_group_that_a_person_resized_is_drift(life: Callable[..., Life]) -> None:
    run = life(steps=100_000)
    cloud = run.cloud
    cloud.up()
    group = run.vms("worker")[0]["group"]
    (group,) = [name for name in cloud.resources()[GROUP] if name.endswith(group)]
    cloud.change(GROUP, group, targetSize=0)
    ssh = next(name for name in cloud.resources()[FIREWALL] if name.endswith("-ssh"))
    cloud.change(FIREWALL, ssh, sourceRanges=["0.0.0.0/0"])
    assert run.changes("--refresh") == {"worker-us-central1-a-group": "update", "ssh": "update"}


@pytest.mark.runs_on("the last `up` begins the run anew, to show that its clock does too")
def test_run_that_hangs_is_ended_by_its_deadline(life: Callable[..., Life]) -> None:
    run = life(workers=0, steps=100_000)
    run.cloud.up()
    run.training()
    (master,) = run.vms("master")
    run.fault("freeze", instance=master["name"])
    run.fault("grace", seconds=1)
    run.fault("clock", ahead=5 * 3600 + 120)
    run.until(lambda: not run.vms(), "no machine")
    assert run.sizes() == {"master": 0}
    no_violations(run.cloud)

    # After some days, an `up` reports that the time is over and boots nothing, whatever the state still contains.
    path, long_ago = paths.launch(run.job().run, 1), json.dumps({"started": int(time.time()) - 6 * 3600}).encode()
    run.storage.write(path, long_ago)
    assert "the time of launch 1 is over (limits: 5.0 h); set gpt2-training:launch to 2" in run.cloud.up()
    assert (run.sizes(), run.vms()) == ({"master": 0}, [])
    run.cloud.pulumi("preview", "--refresh", "--expect-no-changes")
    # A destroyed stack starts its clock anew.
    run.cloud.destroy()
    run.fault("clock", epoch=time.time())
    run.storage.write(path, long_ago)
    run.cloud.up()
    assert run.sizes() == {"master": 1}
    # A launch that its master gave up needs a new one, as nothing would end its machines.
    run.storage.write(paths.end(run.job().run, 1), b'{"reason": "the master gave up", "time": 1}')
    assert "its master gave up in launch 1" in run.cloud.pulumi("preview")
    # The same if the controller ended it at a deadline that was earlier than today's, with more machines for instance.
    run.storage.write(paths.end(run.job().run, 1), b'{"reason": "deadline", "time": 1}')
    assert "the time of launch 1 is over (it ended by the limits and machines" in run.cloud.pulumi("preview")


def test_failed_run_continues_from_its_checkpoint_in_the_next_launch(life: Callable[..., Life]) -> None:
    run = life(workers=0, steps=4000, every=20)
    cloud = run.cloud
    cloud.up()
    run.training(25)
    path = f"runs/{run.job().run}/status.json"
    now = run.status()
    assert now is not None
    failed = {"state": "FAILED", "reason": "master-0: the disk was eaten", "finished": now.updated}
    run.storage.write(path, json.dumps(now.model_copy(update=failed).to_json()).encode())
    wait_for(lambda: set(run.sizes().values()) == {0} and not run.vms(), "the groups at zero", PATIENCE)
    said = cloud.up("--expect-no-changes")
    assert "the disk was eaten" in said
    assert "set gpt2-training:launch to 2" in said

    cloud.edit("dev", "gpt2-training:platform", "gpt2-training:launch: 2\n  gpt2-training:platform")
    assert run.changes()["master-group"] == "replace"
    cloud.up()
    run.until(lambda: (now := run.status()) and now.state == "RUNNING" and now.launch == 2, "launch 2")
    run.training(now.step + 5)

    def written() -> MetricsReader | None:  # later than the status
        status, metrics = run.status(), read_metrics(run.storage, run.job().run)
        return metrics if status and metrics.attempts[-1].number == status.attempt else None

    metrics = run.until(written, "metrics of the new attempt")
    steps = [one.step for one in metrics.steps if one.attempt == metrics.attempts[-1].number]
    assert min(steps) > 20  # the run resumes from the checkpoint, not from the start
    cloud.destroy()


def test_data_bucket_has_the_text_uploaded_before_the_first_up_and_the_docker_that_an_image_lacks(
    life: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = life(workers=0)
    cloud = run.cloud
    cloud.edit("dev", "spot: false", "spot: false, imageFamily: common-cu129-ubuntu-2204-nvidia-580")
    hashed = vm_image.docker_archive(run.root / "data" / docker.ARCHIVE)
    pinned = run.root / "infra" / "inputs" / "docker.py"  # the stack pins the archive of the stand-in's Docker
    pinned.write_text(pinned.read_text().replace(docker.SHA256, hashed))
    monkeypatch.setattr(docker, "SHA256", hashed)
    cloud.script("scripts.upload_data", "data/text.txt", "--stack", "dev")
    (run.root / "data" / "text.txt").unlink()
    assert (run.root / "data" / "text.txt.lock.json").exists()
    changed = run.changes()
    assert changed["data"] == "import"  # upload_data made this bucket
    assert changed["artifacts"] == "create"
    assert "text" not in changed
    cloud.up()
    run.finished()
    [serial] = cloud.folder.glob("vms/*/serial.log")
    assert "this image has no Docker: bringing it" in serial.read_text()
    assert run.job().data.path.startswith(f"gs://{cloud.project}-dev-gpt2-data/data/")


def test_missing_credentials_stop_up_and_not_a_preview(life: Callable[..., Life]) -> None:
    run = life()
    unknown = {"status": 401, "reason": "authError", "message": "Request had invalid authentication credentials."}
    run.cloud.fault(operation="invoke", times=-1, **unknown)
    said = run.cloud.pulumi("preview")
    assert "what is there already is not known, so all is shown as new" in said
    assert "not checked: quotas and machine types (Google could not be asked)" in said
    said = run.cloud.up(ok=False)
    reason = "googleapi: Error 401: Request had invalid authentication credentials., authError"
    assert f"gcp:project {run.cloud.project} cannot be looked at ({reason})" in said
    assert "Traceback" not in said
    assert BUCKET not in run.cloud.resources()


def test_mistake_in_the_stack_file_is_reported_before_anything_is_made(life: Callable[..., Life]) -> None:
    run = life()
    run.cloud.edit("dev", "workerType: n1-standard-2", "workerType: n1-standrd-2")
    said = run.cloud.up(ok=False)
    assert "error: gpt2-training:trainingInput.workerType: unknown machine type 'n1-standrd-2'; did you mean" in said
    assert "Traceback" not in said
    assert run.cloud.resources() == {}
