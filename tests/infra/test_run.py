"""The program under Pulumi's mocks, and the statuses that the job's provider writes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra import load
from infra.dynamic import plain
from infra.fleet.fleet import resolve_fleet
from infra.fleet.host import HostGpu
from infra.inputs.resolve import Inputs
from infra.job import declare
from infra.lifecycle import newest_checkpoint, status_line
from infra.local.storage import JobProvider, TextProvider
from infra.run import TrainingRun
from infra.stack import config, secrets
from trainer.contract.spec import JobSpec
from trainer.runs.records import Status
from trainer.runs.status import read_status
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

CHECKOUT = Path(__file__).resolve().parents[2]


class Seen(pulumi.runtime.Mocks):
    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.seen[f"{args.typ.rsplit(':', 1)[1]} {args.name}"] = args.inputs
        return f"{args.name}-id", args.inputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], None]:
        return {}, None


@pytest.fixture
def stack(tmp_path: Path) -> config.StackConfig:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "default.txt").write_text("A rose is a rose is a rose.\n" * 500)
    (tmp_path / "trainer").mkdir()
    shutil.copy(CHECKOUT / "Pulumi.local.yaml", tmp_path)
    return load.from_file("local", tmp_path)


@pytest.fixture
def inputs(stack: config.StackConfig) -> Inputs:
    return declare(stack, resolve_fleet(stack))[0]


@pytest.fixture
def job(stack: config.StackConfig) -> JobSpec:
    return declare(stack, resolve_fleet(stack))[1]


def test_training_run_declares_which_settings_are_secret(
    stack: config.StackConfig, inputs: Inputs, job: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later review reads them from the state.

    Here they are whole keys, as the stack file has none of them encrypted.
    """
    mocks = Seen()
    pulumi.runtime.set_mocks(mocks, project="gpt2-training", stack="local", preview=True)
    settings = {"gpt2-training:notify": "a@example.com", "gpt2-training:launch": "1", "gcp:project": "p"}
    pulumi.runtime.set_all_config(settings, ["gpt2-training:notify", "gcp:project"])
    try:
        pulumi.runtime.test(lambda: TrainingRun(stack, resolve_fleet(stack), inputs, job).run)()
        assert mocks.seen["TrainingRun training"]["secretKeys"] == ["notify"]
        # Here it is a part of a key, as the stack file encrypts only that part.
        pulumi.runtime.set_all_config({"gpt2-training:limits": "{}"}, ["gpt2-training:limits"])
        text = "config: {gpt2-training:limits: {maxHours: 1, billingAccount: {secure: x}, few: [{secure: y}]}}"
        (stack.root / "Pulumi.local.yaml").write_text(text)
        assert secrets.secret_keys(stack.root) == ["limits.billingAccount", "limits.few"]
    finally:
        pulumi.runtime.set_all_config({}, [])


@pytest.mark.parametrize("preview", [False, True])
def test_training_run_declares_its_resources(
    stack: config.StackConfig, inputs: Inputs, job: JobSpec, preview: bool
) -> None:
    mocks = Seen()
    pulumi.runtime.set_mocks(mocks, project="gpt2-training", stack="local", preview=preview)

    models: list[str] = []
    pulumi.runtime.test(
        lambda: TrainingRun(stack, resolve_fleet(stack), inputs, job).trained_model.apply(models.append)
    )()
    assert next(iter(mocks.seen)) == "TrainingRun training"
    assert set(mocks.seen) == {
        *("TrainingRun training", "Bucket bucket", "Text text", "Job job"),
        *("Machine master-0", "Machine worker-0", "Machine ps-0"),
    }
    assert plain(mocks.seen["TrainingRun training"]) == stack.words()
    assert JobSpec.model_validate(plain(mocks.seen["Job job"]["spec"])) == job
    assert mocks.seen["Machine worker-0"]["run"] == job.run
    assert models == [f"{stack.bucket}/runs/{job.run}/model"]
    # Pulumi keeps providers in its state by name; by code, each change of code would be a change of every stack.
    assert all(len(seen["__provider"]) < 100 for name, seen in mocks.seen.items() if "__provider" in seen)
    assert not Path(stack.root / "artifacts").exists()  # a declaration writes nothing


def test_trainers_of_a_local_stack_get_the_gpus_that_they_share_out(
    stack: config.StackConfig, inputs: Inputs, job: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = tuple(HostGpu(f"GPU-{letter}", "NVIDIA H100") for letter in "abcd")
    monkeypatch.setattr("infra.local.machines.host_gpus", lambda: gpus)
    on_gpus = job.model_copy(update={"cluster": job.cluster.model_copy(update={"processes": 2, "gpus": 2})})
    mocks = Seen()
    pulumi.runtime.set_mocks(mocks, project="gpt2-training", stack="local", preview=True)
    pulumi.runtime.test(lambda: TrainingRun(stack, resolve_fleet(stack), inputs, on_gpus).run)()
    devices = {name: mocks.seen[f"Machine {name}"].get("devices") for name in ("master-0", "worker-0", "ps-0")}
    assert devices == {**dict.fromkeys(("master-0", "worker-0"), "GPU-a,GPU-b,GPU-c,GPU-d"), "ps-0": None}


def props(stack: config.StackConfig, job: JobSpec) -> dict[str, Any]:
    return {"bucket": stack.bucket, "path": f"runs/{job.run}/job.json", "spec": job.to_json()}


def put(stack: config.StackConfig, job: JobSpec, **status: Any) -> None:
    body = Status(**{"updated": 0.0, **status}).to_json()
    open_storage(stack.bucket).write(f"runs/{job.run}/status.json", json.dumps(body).encode())


def state(stack: config.StackConfig, job: JobSpec) -> tuple[str, int]:
    status = read_status(open_storage(stack.bucket), job.run)
    assert status is not None
    return status.state, status.launch


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, ("PROVISIONING", 2)),
        ({"state": "RUNNING"}, ("RUNNING", 1)),
        ({"state": "SUCCEEDED"}, ("SUCCEEDED", 1)),
        ({"state": "FAILED"}, ("PROVISIONING", 2)),
        ({"state": "FAILED", "launch": 2}, ("FAILED", 2)),
        ({"state": "STOPPED", "reason": "maxHours"}, ("PROVISIONING", 2)),
        ({"state": "STOPPED", "reason": "maxHours", "launch": 2}, ("STOPPED", 2)),
        ({"state": "STOPPED", "reason": "destroyed; `pulumi up` continues", "launch": 2}, ("PROVISIONING", 2)),
        ({"state": "STOPPED", "reason": "replaced by gpt2-x", "launch": 2}, ("PROVISIONING", 2)),
    ],
)
def test_job_of_launch_two_starts_a_run_that_has_ended(
    stack: config.StackConfig, job: JobSpec, before: dict[str, Any] | None, after: tuple[str, int]
) -> None:
    job = job.model_copy(update={"launch": 2})
    if before is not None:
        put(stack, job, **before)
    JobProvider().create(props(stack, job))
    assert state(stack, job) == after
    storage = open_storage(stack.bucket)
    assert json.loads(storage.read("current.json")) == {"run": job.run, "launch": 2}
    assert JobSpec.model_validate_json(storage.read(f"runs/{job.run}/job.json")) == job


def test_job_of_a_new_launch_removes_the_last_failure(stack: config.StackConfig, job: JobSpec) -> None:
    put(
        stack, job, state="FAILED", step=9, reason="ps-0: IndexError", traceback=["Traceback", "IndexError"], finished=1
    )
    JobProvider().create(props(stack, job.model_copy(update={"launch": 2})))
    status = read_status(open_storage(stack.bucket), job.run)
    assert status is not None
    assert (status.step, status.reason, status.traceback, status.finished) == (9, "", None, None)


def test_destroyed_job_names_the_checkpoint_from_which_it_would_resume(stack: config.StackConfig, job: JobSpec) -> None:
    JobProvider().create(props(stack, job))
    put(stack, job, state="RUNNING", step=600)
    storage = open_storage(stack.bucket)
    for name in ("step-00000250-attempt-1/manifest.json", "step-00000500-attempt-2/manifest.json"):
        storage.write(f"runs/{job.run}/checkpoints/{name}", b"{}")
    # This checkpoint is not complete.
    storage.write(f"runs/{job.run}/checkpoints/step-00000550-attempt-2/part-0.safetensors", b"")
    newest = newest_checkpoint(storage, job.run)
    assert newest is not None
    assert newest.step == 500
    JobProvider().delete(job.run, props(stack, job))
    status = read_status(storage, job.run)
    assert status is not None
    assert status.reason == "destroyed; `pulumi up` continues from step 500"
    assert status_line(read_status(open_storage(stack.bucket), job.run), stack.bucket, job) is None


def test_text_is_copied_once_and_checked(stack: config.StackConfig, job: JobSpec) -> None:
    given = {"bucket": stack.bucket, "source": str(stack.text), "path": job.data.path, "fingerprint": job.fingerprint}
    provider = TextProvider()
    provider.create(given)
    storage = open_storage(stack.bucket)
    _, generation = storage.read_generation(job.data.path)
    provider.create(given)
    assert storage.read_generation(job.data.path)[1] == generation
    assert provider.diff("", given, {**given, "source": "/elsewhere"}).changes is False
    storage.delete(job.data.path)
    assert provider.diff("", given, given).changes is True
    stack.text.write_text("another text")
    with pytest.raises(StorageError, match="was changed while it was being copied"):
        provider.create(given)
    assert storage.list("data") == []
