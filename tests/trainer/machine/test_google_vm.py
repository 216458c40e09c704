"""A machine on Google Cloud: the real supervisor with a metadata server, a bucket and Google's REST services."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from scripts.support import run_files
from tests.gcs import Faults
from tests.trainer.google_vm import JOB, PROJECT, Vm, into_bucket
from tests.trainer.running import PATIENCE, Run
from trainer.cluster import lease
from trainer.compute import member
from trainer.contract import metric_names, pace
from trainer.contract.log_phrases import FAILED, PREEMPTED, SUCCEEDED
from trainer.machine import cloud_metrics, google_vm, metadata
from trainer.runs.records import Record
from trainer.runs.status import update_status
from trainer.runs.trials import Trial, write_trials

RUN_JOB = [f"{JOB}:run"]
END = "runs/test-run/ends/1.json"
NewVm = Callable[..., Vm]


@pytest.fixture
def new_vm(tmp_path: Path) -> Iterator[NewVm]:
    made: list[Vm] = []

    def make(role: str = "master", **attributes: str) -> Vm:
        made.append(Vm(tmp_path, role, **attributes))
        return made[-1]

    yield make
    for vm in made:
        assert vm.rest.wrong == []
        vm.close()


@pytest.fixture
def new_google_run(new_run: Callable[..., Run], gcs_bucket: str) -> Callable[..., Run]:
    return lambda **overrides: into_bucket(new_run(**overrides), gcs_bucket)


NewRun = Callable[..., Run]


def test_every_patience_with_a_machine_allows_for_three_missed_heartbeats() -> None:
    assert 15 <= pace.HEARTBEAT <= 30  # dearer, or too late for a person who watches
    assert member.LEADER_SILENT >= 3 * pace.HEARTBEAT
    assert run_files.PATIENCE["gs"].late >= 3 * pace.HEARTBEAT
    assert run_files.PATIENCE["gs"].heartbeat >= 3 * pace.HEARTBEAT
    assert lease.LOST >= 3 * pace.LEASE
    assert run_files.PATIENCE["gs"].step >= 3 * (pace.METRICS + pace.STATUS)


@pytest.mark.slow
def test_preempted_master_checkpoints_comes_back_and_scales_the_finished_run_to_zero(
    new_google_run: NewRun, new_vm: NewVm
) -> None:
    run = new_google_run(hyperparameters={"steps": 4000}, checkpoints={"every": 100_000})
    vm = new_vm()
    process = vm.start(run)
    run.until_step(20)
    vm.metadata.set("instance/preempted", "TRUE")
    assert process.wait(PATIENCE) == 0
    assert vm.said(PREEMPTED)
    assert vm.said("s after the notice")
    machine = run.machine("master-0")
    assert (machine.state, machine.message) == ("stopped", "preempted: Google takes this machine back")
    assert any(PREEMPTED in line for line in machine.log)
    status = run.status()
    assert status is not None
    assert status.state == "RUNNING"
    checkpoint = f"runs/test-run/checkpoints/step-{machine.step:08d}-attempt-{status.attempt}/manifest.json"
    assert run.storage.read(checkpoint)
    assert vm.rest.paths("cloudscheduler") == []  # the group brings the machine back

    hyper = run.spec.hyperparameters.model_copy(update={"steps": machine.step + 50})
    run.spec = run.spec.model_copy(update={"hyperparameters": hyper})
    run.write_spec()
    vm.metadata.set("instance/preempted", "FALSE")
    refused: list[str] = []

    def refuse(path: str) -> int | None:  # the refusals simulate a grant that is still on its way
        if path.startswith("cloudscheduler/") and len(refused) < 1:
            refused.append(path)
            return 403
        return None

    vm.rest.refuse = refuse
    assert vm.start(run).wait(PATIENCE) == 0
    assert vm.said(f"restored the checkpoint of step {machine.step}")
    assert vm.said(SUCCEEDED)
    assert vm.rest.paths("cloudscheduler") == RUN_JOB
    assert vm.rest.points(metric_names.STEP)[-1] == machine.step + 50
    assert vm.rest.points(metric_names.FAILED)[-1] == 0
    assert run.machine("master-0").state == "finished"

    last_words = run.machine("master-0").log
    assert vm.start(run).wait(PATIENCE) == 0  # this machine boots after the end of the run
    assert vm.rest.paths("cloudscheduler") == RUN_JOB * 2
    assert run.machine("master-0").log == last_words
    assert vm.lines.read_text().count(SUCCEEDED) == 1


@pytest.mark.slow
def test_preempted_worker_leaves_and_the_others_continue(new_google_run: NewRun, new_vm: NewVm) -> None:
    run = new_google_run(hyperparameters={"steps": 4000}, cluster={"workers": 1}, checkpoints={"every": 100_000})
    master, worker = new_vm(), new_vm("worker")
    process = master.start(run)
    leaving = worker.start(run)
    run.until_step(10)
    worker.metadata.set("instance/preempted", "TRUE")
    assert leaving.wait(PATIENCE) == 0
    step = run.machine("worker-x7kq").step
    assert not worker.said("checkpoint step-")  # the checkpoint is not the worker's task
    run.until_step(step + 50)
    assert process.poll() is None
    assert not master.said(PREEMPTED)
    assert run.machine("master-0").restarts == 0
    process.send_signal(signal.SIGTERM)  # this is a shutdown without a notice: the run continues on other machines
    assert process.wait(PATIENCE) == 0
    assert master.said("s after the notice")
    assert master.rest.paths("cloudscheduler") == []


def test_failed_run_is_reported_and_scaled_to_zero(new_google_run: NewRun, new_vm: NewVm) -> None:
    run = new_google_run()
    run.storage.delete(run.spec.data.path)
    vm = new_vm()
    assert vm.start(run).wait(PATIENCE) == 0  # nothing is left to do here, so boot.sh must not try again
    status = run.status()
    assert status is not None
    assert status.state == "FAILED"
    assert vm.said(f"{FAILED}test-run: master-0: data.path ")
    assert vm.rest.points(metric_names.FAILED)[-1] == 1
    assert vm.rest.paths("cloudscheduler") == RUN_JOB
    machine = run.machine("master-0")
    assert machine.state == "failed"
    assert "text.txt" in machine.log[-1]

    worker = new_vm("worker")  # this machine boots after the end of the run
    assert worker.start(run).wait(PATIENCE) == 0
    assert worker.rest.calls == []
    assert run.machine("worker-x7kq").state == "finished"


@pytest.mark.slow
def test_parameter_server_waits_for_its_grants_and_leaves_at_the_end_of_the_run(
    new_google_run: NewRun, new_vm: NewVm, gcs_faults: Faults
) -> None:
    run = new_google_run()
    refused: list[str] = []

    def before(method: str, path: str) -> int | None:
        late = "job.json" in path and len(refused) < 2
        if late or (method == "DELETE" and len(refused) < 4):  # the grants to read and to write arrive one by one
            refused.append(path)
            return 403
        return None

    gcs_faults.before = before
    vm = new_vm("ps")
    process = vm.start(run)
    run.until(lambda: vm.said("gpt2-training: waiting for runs/test-run/job.json (cannot read"), "a line that says so")
    run.until(lambda: vm.said("gpt2-training: waiting for the right to write (cannot delete"), "another one")
    run.until(lambda: _message(run, "ps-x7kq"), "a heartbeat")
    assert not vm.said("could not be written")
    update_status(run.storage, "test-run", 1, state="SUCCEEDED")
    assert process.wait(PATIENCE) == 0
    assert run.machine("ps-x7kq").state == "finished"
    assert vm.rest.calls == []


@pytest.mark.slow
def test_last_message_of_a_machine_arrives_although_the_bucket_was_away(
    new_google_run: NewRun, new_vm: NewVm, gcs_faults: Faults
) -> None:
    run = new_google_run()
    vm = new_vm("ps")
    process = vm.start(run)
    run.until(lambda: _message(run, "ps-x7kq"), "a heartbeat")
    away = time.monotonic() + 3
    gcs_faults.before = lambda method, path: 503 if time.monotonic() < away else None
    vm.metadata.set("instance/preempted", "TRUE")
    assert process.wait(PATIENCE) == 0
    machine = run.machine("ps-x7kq")
    assert machine.state == "stopped"
    assert any(PREEMPTED in line for line in machine.log)


def test_job_with_a_key_unknown_to_the_image_is_reported_in_the_bucket(new_google_run: NewRun, new_vm: NewVm) -> None:
    run = new_google_run()
    run.storage.write("runs/test-run/job.json", json.dumps({**run.spec.to_json(), "newKey": 1}).encode())
    vm = new_vm()
    assert vm.start(run).wait(PATIENCE) == 2
    machine = run.machine("master-0")
    assert (machine.state, machine.log) == ("failed", [machine.message])
    assert machine.message.endswith("runs/test-run/job.json: newKey: Extra inputs are not permitted")
    assert vm.lines.read_text() == f"{machine.message}\n"
    assert vm.rest.calls == []


def _message(run: Run, name: str) -> str:
    try:
        return run.machine(name).message
    except FileNotFoundError:
        return ""


class Supervisor:
    """The part of a supervisor that request_end() sees; it is told to leave after some looks."""

    grace = heartbeat = 0.0

    def __init__(self, looks: int = 1) -> None:
        self.lines: list[str] = []
        self.note = self.lines.append
        self.waits: list[float] = []  # in seconds
        self._looks = looks

    def told_to_leave(self, timeout: float) -> bool:
        self.waits.append(timeout)
        return len(self.waits) >= self._looks

    def run(self) -> int:
        raise NotImplementedError

    leave = over = run  # type: ignore[assignment]


@pytest.fixture
def here(new_vm: NewVm, monkeypatch: pytest.MonkeyPatch) -> Vm:
    """Let this process call the VM's services. Importing google.auth looks for a metadata server, once."""
    vm = new_vm()
    for key, value in vm.environment.items():
        monkeypatch.setenv(key, value)
    # Fixtures of other tests may have set it for their whole session.
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr("google.auth.default", lambda scopes: (Credentials("ya29.test"), PROJECT))
    return vm


def test_end_is_requested_again_until_this_machine_is_taken_away(here: Vm, new_run: Callable[..., Run]) -> None:
    run, supervisor = new_run(), Supervisor(looks=5)
    answers = iter([403, 403, None, 503, None])
    here.rest.refuse = lambda path: next(answers)
    google_vm.request_end(JOB, "SUCCEEDED", supervisor, run.storage, run.spec)
    assert here.rest.paths("cloudscheduler") == RUN_JOB * 2
    assert json.loads(run.storage.read(END))["reason"] == "SUCCEEDED"
    assert supervisor.waits == [1, 2, google_vm.ASK_AGAIN, 1, google_vm.ASK_AGAIN]
    assert "cannot be asked to end the machines yet" in supervisor.lines[0]
    assert supervisor.lines[1] == "gpt2-training: the run is over: the controller ends the machines"


@pytest.mark.parametrize("current", [{"run": "other", "launch": 1}, {"run": "test-run", "launch": 2}])
def test_end_of_a_replaced_run_is_left_to_the_next(
    here: Vm, new_run: Callable[..., Run], current: dict[str, Any]
) -> None:
    run, supervisor = new_run(), Supervisor()
    run.storage.write("current.json", json.dumps(current).encode())
    google_vm.request_end(JOB, "SUCCEEDED", supervisor, run.storage, run.spec)
    assert here.rest.calls == []
    assert "declares another run" in supervisor.lines[-1]


def test_metrics_of_a_sweep_are_those_of_the_trial_that_is_trained(
    here: Vm, new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the metric of steps the alert for a stalled run fires."""
    monkeypatch.setattr(cloud_metrics, "LEAST", 0.0)
    rate = {"parameterName": "learningRate", "type": "DOUBLE", "minValue": 0.001, "maxValue": 0.01}
    run, now = new_run(sweep={"params": [rate]}), time.time()
    monitoring = cloud_metrics.Monitoring(
        run.storage, run.spec, metadata.Vm(PROJECT, "us-central1-a", "dev", ""), "master-0", lambda line: None
    )
    monitoring._started = 0.0  # the start was long ago
    for number, step in ((1, 40), (2, 7)):
        record = Record(step=step, time=now + number, attempt=1, loss=3.5)
        body = (json.dumps(record.to_json()) + "\n").encode()
        run.storage.write(f"runs/test-run/trials/{number}/metrics/attempt-1-master-0-1-00000.jsonl", body)
        monitoring._write(failed=False)
        trials = [Trial(number=n, parameters={"learningRate": 0.01}, state="SUCCEEDED") for n in range(1, number + 1)]
        write_trials(run.storage, "test-run", trials)
    monitoring.close(failed=False)  # the third trial has no step yet
    assert here.rest.points(metric_names.STEP) == [40, 7, 7]
    assert max(here.rest.points(metric_names.SECONDS_SINCE_STEP)) < PATIENCE


def test_metrics_report_step_loss_speed_and_failure_of_the_run(
    here: Vm, new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud_metrics, "EVERY", 0.05)
    monkeypatch.setattr(cloud_metrics, "LEAST", 0.0)
    run, lines = new_run(), []
    records = [
        Record(step=7, time=time.time(), attempt=1, loss=3.5, tokens_per_second=1000.0),
        Record(step=7, time=time.time(), attempt=1, validation_loss=3.25),
    ]
    body = "".join(json.dumps(record.to_json()) + "\n" for record in records)
    run.storage.write("runs/test-run/metrics/attempt-1-master-0-1-00000.jsonl", body.encode())
    here.rest.refuse = lambda path: 403
    monitoring = cloud_metrics.Monitoring(
        run.storage, run.spec, metadata.Vm(PROJECT, "us-central1-a", "dev", ""), "master-0", lines.append
    )
    run.until(lambda: lines, "a line about it")
    here.rest.refuse = lambda path: None
    run.until(lambda: len(here.rest.calls) > 2, "points")
    monitoring.close(failed=True)
    assert len(lines) == 1
    assert "metrics do not reach Cloud Monitoring" in lines[0]
    assert here.rest.points(metric_names.STEP)[0] == 7
    assert here.rest.points(metric_names.LOSS)[0] == 3.5
    assert here.rest.points(metric_names.TOKENS_PER_SECOND)[0] == 1000
    assert 0 <= here.rest.points(metric_names.SECONDS_SINCE_STEP)[0] < PATIENCE
    assert here.rest.points(metric_names.FAILED) == [0] * (len(here.rest.calls) - 1) + [1]
    path, body_sent = here.rest.calls[0]
    assert path == f"monitoring/projects/{PROJECT}/timeSeries"
    assert body_sent["timeSeries"][0]["resource"] == {
        "type": "generic_task",
        "labels": {
            "project_id": PROJECT, "location": "us-central1-a", "namespace": "dev", "job": "test-run",
            "task_id": "master-0",
        },
    }  # fmt: skip
