"""The commands on a stack that runs on Google Cloud, by --stack alone."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from scripts import download_model, watch
from scripts.support import common
from scripts.support.common import UserError
from tests.scripts.google import FakeGoogle, project
from trainer.contract.options import Data, Hyperparameters, Model
from trainer.contract.spec import Cluster, JobSpec
from trainer.runs.records import Status
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

RUN = "gpt2-01234567"
GROUPS = "projects/test-project/regions/us-central1/instanceGroupManagers"


@pytest.fixture
def bucket(tmp_path: Path, gcs_address: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Return the stack's own bucket with a declared run."""
    monkeypatch.setattr(common, "CHECKOUT", project(tmp_path))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{gcs_address}")
    client = gcs.Client(project="test", credentials=AnonymousCredentials())
    if (old := client.lookup_bucket("test-project-dev-gpt2")) is not None:
        old.delete(force=True)
    client.create_bucket("test-project-dev-gpt2")
    job = JobSpec(
        run=RUN,
        model=Model(size="gpt2"),
        data=Data(path="gs://b/t.txt"),
        fingerprint="0" * 16,
        code="0" * 16,
        hyperparameters=Hyperparameters(steps=100),
        cluster=Cluster(workers=10),
    )
    found = open_storage("gs://test-project-dev-gpt2")
    found.write(f"runs/{RUN}/job.json", json.dumps(job.to_json()).encode())
    found.write("current.json", json.dumps({"run": RUN, "launch": 1}).encode())
    return found


def stock_out(google: FakeGoogle) -> None:
    message = "The zone 'projects/p/zones/us-central1-a' does not have enough resources available."
    error = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": message}
    attempt = {"errors": {"errors": [error]}}
    google.on("compute", "GET", GROUPS, {"items": [{"name": "dev-master-01234567", "targetSize": 1}]})
    instances = [{"name": "dev-master-01234567-abcd", "lastAttempt": attempt}]
    google.on("compute", "POST", f"{GROUPS}/.*/listManagedInstances", {"managedInstances": instances})
    google.on("compute", "GET", f"{GROUPS}/.*/listErrors", {})


def test_watch_finds_the_run_and_explains_missing_machines(
    bucket: Storage, google: FakeGoogle, capsys: pytest.CaptureFixture[str]
) -> None:
    stock_out(google)
    assert watch.main(["--stack", "dev", "--once"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{RUN} PROVISIONING 0 of 11 machines" in said
    assert "master: zone us-central1-a has no n1-highmem-16 with nvidia-tesla-t4 now;" in said
    assert "the run moves to another zone if this lasts" in said


def test_watch_works_without_the_right_to_read_groups(
    bucket: Storage, google: FakeGoogle, capsys: pytest.CaptureFixture[str]
) -> None:
    google.deny("compute")
    bucket.write(
        f"runs/{RUN}/status.json", json.dumps(Status(state="STARTING", updated=time.time()).to_json()).encode()
    )
    assert watch.main(["--stack", "dev", "--once"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{RUN} STARTING" in said
    assert "cannot say why machines are missing: compute GET" in said


def test_watch_of_a_run_without_machines_says_that_google_continues(
    bucket: Storage, google: FakeGoogle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_out(google)
    later = time.time() + 1000
    monkeypatch.setattr(watch.time, "time", lambda: later)
    assert (
        watch.watch(bucket, None, watch.Console(), once=True, ask=watch._google("dev", bucket), clock=lambda: later)
        == 4
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "no machine has been heard yet; Google keeps making machines until the deadline" in said
    assert "`pulumi up`" not in said


def test_watch_continues_with_a_stack_file_that_became_wrong(
    bucket: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, machines={"accelerator": {"type": "nvidia-tesla-x9"}})
    assert watch.main(["--stack", "dev", "--once"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cannot say why machines are missing: gpt2-training:machines.accelerator.type: unknown" in said


def test_model_of_the_stacks_run_is_downloaded(bucket: Storage, tmp_path: Path) -> None:
    data = b"weights"
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    bucket.write(f"runs/{RUN}/model/model.safetensors", data)
    bucket.write(f"runs/{RUN}/model/manifest.json", json.dumps({"files": {"model.safetensors": entry}}).encode())
    assert download_model.main(["--stack", "dev", "--to", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == data


@pytest.mark.parametrize("command", [watch.main, download_model.main])
def test_stack_without_a_project_is_one_line(command: object, bucket: Storage, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.dev.yaml").write_text("config:\n  gpt2-training:platform: google\n")
    with pytest.raises(
        UserError, match=r"^--stack dev: gcp:project: missing; run `pulumi config set gcp:project [^\n]*$"
    ):
        command(["--stack", "dev"])  # type: ignore[operator]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("command", [watch.main, download_model.main])
def test_missing_login_is_one_line(
    command: object, bucket: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(SystemExit) as left:
        common.run_main(lambda: command(["--stack", "dev"]))  # type: ignore[operator]
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot open gs://test-project-dev-gpt2: no valid Google credentials; run `gcloud")
    assert error.count("\n") == 1
