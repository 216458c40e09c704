"""The report at the end of real runs, and its content for files made by hand."""

import base64
import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.report.report_page import BEGAN, Page, bucket, declare, record, write_machine, write_records
from tests.trainer.running import Run
from trainer.contract.options import Hyperparameters, Model
from trainer.contract.spec import JobSpec
from trainer.data.tokenizer import from_bytes
from trainer.evaluation.sampler import Sampler
from trainer.model.gpt2 import build
from trainer.report import charts, timeline
from trainer.report.charts import Series
from trainer.report.page import render_page
from trainer.runs import history, outcome, samples
from trainer.runs.records import Event, Exit, MachineStatus
from trainer.runs.samples import Sample
from trainer.runs.status import update_status
from trainer.storage.base import Entries, Refused, Storage
from trainer.storage.local import FileStorage

NewRun = Callable[..., Run]
slow = pytest.mark.slow


def read(run: Run) -> Page:
    return Page(run.storage.read("runs/test-run/report.html").decode())


def made(storage: Storage, *compare: str) -> Page:
    return Page(render_page(storage, "a-run", compare))


# -- at the end of real runs -------------------------------------------------------------------------------------------


@slow
def test_finished_run_has_a_report_with_its_losses(undisturbed: Run) -> None:
    page = read(undisturbed)
    losses, validation = undisturbed.losses(), undisturbed.validation()
    assert page.row("validation loss")[0] == f"{validation[-1]:.4f}"
    assert page.row("training loss")[0] == f"{losses[-1]:.4f}"
    assert "test-run SUCCEEDED" in page.text
    assert "600 of 600; 154 k tokens" in page.text
    assert page.row("learningRate") == ["0.01"]
    assert page.row("torch") == [torch.__version__.partition("+")[0]]
    assert "master-0 left: the run is over" in " ".join(" ".join(row[1:]) for row in page.rows)
    taken = samples.read(undisturbed.storage, "test-run")
    assert [sample.step for sample in taken] == [300, 600]
    assert all(sample.prompt and sample.text for sample in taken)
    assert all(sample.text.split()[0] in page.text for sample in taken if sample.text.split())
    machine = undisturbed.machine("master-0")
    assert [event.kind for event in machine.history] == ["started", "left"]
    assert int(machine.environment["cores"]) >= 1


@slow
def test_page_refers_to_no_other_file_and_runs_no_script_but_its_own(undisturbed: Run) -> None:
    page = read(undisturbed)
    used = {name for _, attributes in page.elements for name in attributes}
    assert not used & {"src", "href", "srcset", "action", "onload", "onclick"}
    assert "url(" not in page.html
    assert "@import" not in page.html
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    figures = [tag for tag, _ in page.elements].count("figure")
    assert figures >= 4
    assert len(page.attributes("div", "data-stops")) == figures
    titles = page.attributes("div", "aria-labelledby")
    assert {i for both in titles for i in both.split()} <= {str(a.get("id")) for _, a in page.elements}


@slow
def test_page_of_a_failed_run_gives_the_reason(new_run: NewRun) -> None:
    run = new_run(model={"initialize": "/not/there"})
    assert run.start().wait().state == "FAILED"
    page = read(run)
    status = run.status()
    assert status is not None
    assert f"FAILED {status.reason}" in page.text
    assert run.machine("master-0").log[-1] in page.text  # the page shows the machine's last line
    assert "figure" not in [tag for tag, _ in page.elements]  # the run took no step


@slow
def test_stopped_run_has_a_report_and_its_restarted_machine_keeps_its_history(new_run: NewRun) -> None:
    run = new_run(hyperparameters={"steps": 100_000}).start()
    run.until_step(5)
    run.kill("master-0")
    heard = run.machine("master-0")
    run.start()
    run.until(lambda: run.machine("master-0").pid != heard.pid, "the machine's next boot")
    update_status(run.storage, "test-run", 1, state="STOPPED", reason="enough", finished=time.time())
    assert run.wait().state == "STOPPED"
    assert "STOPPED enough" in read(run).text
    machine = run.machine("master-0")
    assert [event.kind for event in machine.history][:3] == ["started", "lost", "back"]
    assert machine.history[1].time == heard.heartbeat
    assert machine.before == pytest.approx(heard.heartbeat - heard.started)
    assert len(outcome.boots(machine)) == 2


@slow
def test_report_that_cannot_be_written_does_not_fail_the_run(new_run: NewRun) -> None:
    run = new_run(hyperparameters={"steps": 5})
    run.storage.write("runs/test-run/report.html/in-the-way", b"")
    assert run.start().wait().state == "SUCCEEDED"
    assert run.machines["master-0"].returncode == 0
    assert run.machine("master-0").state == "finished"


# -- content -----------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> {{ 7*7 }} \x1b[31m"


def test_page_escapes_every_text_of_the_files(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    status = {"reason": HOSTILE, "traceback": [HOSTILE]}
    declare(storage, state="FAILED", status=status, data={"path": f"data/0/{HOSTILE}.txt"}, code=HOSTILE)
    write_records(storage, [record(step) for step in range(1, 4)])
    samples.add(storage, "a-run", Sample(step=2, time=BEGAN, prompt=HOSTILE, text=HOSTILE))
    events = [{"kind": "exit", "time": BEGAN + 1, "words": HOSTILE}]
    write_machine(storage, "master-0", log=[HOSTILE], history=events, environment={"cpu": HOSTILE, HOSTILE: "1"})
    page = made(storage)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("{{ 7*7 }}") >= 7
    assert "\x1b" not in page.html


def test_page_leaves_out_steps_that_a_resume_undid(tmp_path: Path) -> None:
    """Attempt 1 reached step 40; attempt 2 began again at 21 and was stopped at 30."""
    storage = bucket(tmp_path)
    declare(storage, state="STOPPED")
    first = [record(step) for step in range(1, 41)] + [record(40, validation_loss=3.0)]
    write_records(storage, first)
    again = [record(step, attempt=2, time=BEGAN + 60 + step, loss=9.0) for step in range(21, 31)]
    write_records(storage, again, name="2")
    found = outcome.read(storage, "a-run")
    assert [each.step for each in found.steps] == list(range(1, 31))
    assert [each.loss for each in found.steps[20:]] == [9.0] * 10
    assert found.evaluations == []
    assert [(a.first, a.last) for a in found.attempts] == [(1, 40), (21, 30)]
    page = made(storage)
    assert "attempt 2: steps 21 to 30 in 0:09" in page.attributes("div", "title")
    assert "attempt 2 begins" in page.attributes("div", "title")


def test_page_leaves_out_lines_that_are_not_records(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage)
    write_records(storage, [record(1), record(2)])
    lines = storage.read("runs/a-run/metrics/1.jsonl")
    storage.write("runs/a-run/metrics/1.jsonl", lines + b'{"step": 3, "of": "another version"}\n{"step": 4, "ti')
    storage.write("runs/a-run/machines/master-0.json", b'{"of": "another version"}')
    assert [each.step for each in outcome.read(storage, "a-run").steps] == [1, 2]
    assert made(storage).row("training loss")[0] == "4.9600"


def test_cost_on_the_page_is_the_list_price_times_the_time_of_each_machine(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    master = {"machineType": "n1-highmem-16", "accelerator": "nvidia-tesla-t4", "accelerators": 1, "usdPerHour": 2.0}
    worker = {"machineType": "n1-highmem-16", "spot": True, "usdPerHour": 0.5}
    declare(storage, hardware={"master": master, "worker": worker})
    write_machine(storage, "master-0")
    write_machine(storage, "worker-0", before=7200.0)  # the machine ran for an hour, and for two in earlier boots
    write_machine(storage, "worker-1")
    page = made(storage)
    assert page.row("master n1-highmem-16 + 1 × nvidia-tesla-t4") == ["1", "1.00", "$2.0000", "$2.00"]
    assert page.row("workers n1-highmem-16, Spot") == ["2", "4.00", "$0.5000", "$2.00"]
    assert page.row("worker-0") == ["3.00", "$1.50"]
    assert page.row("total") == ["$4.00"]
    declare(storage, hardware={"master": master, "worker": {**worker, "usdPerHour": None}})
    page = made(storage)
    assert page.row("workers n1-highmem-16, Spot")[-2:] == ["unknown", "unknown"]
    assert page.row("total") == ["at least $2.00"]
    declare(storage)
    page = made(storage)
    assert page.row("workers this machine") == ["2", "4.00"]
    assert "no cost" in page.text
    assert "$" not in page.text


def test_page_reports_where_the_run_is_and_how_it_came_there(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage, state="STARTING")
    write_machine(storage, "master-0", environment={"zone": "us-central1-f"})
    assert "us-central1-f" in made(storage).text
    moves = [{"from": "us-central1-a", "to": "us-central1-c", "time": BEGAN + 900}]
    placement = {"zone": "us-central1-c", "moves": moves, "waiting_since": BEGAN + 1000}
    storage.write("runs/a-run/launches/1.json", json.dumps({"started": BEGAN, "zone": "us-central1-a"}).encode())
    storage.write("runs/a-run/launches/1.placement.json", json.dumps(placement).encode())
    page = made(storage)
    assert "us-central1-c waits for machines since 2026-09-21 14:30 UTC" in page.text
    assert page.row("15:00") == ["run", "moved from us-central1-a to us-central1-c, 1 of 6 moves"]


def test_page_compares_other_runs_by_the_keys_that_differ(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage)
    write_records(storage, [record(50), record(50, validation_loss=4.0), record(100, validation_loss=3.5)])
    declare(storage, "other", code="d1ff", hyperparameters={"learningRate": 0.002}, checkpoints={"every": 7})
    write_records(storage, [record(100), record(100, validation_loss=3.25)], "other")
    declare(storage, "empty")
    storage.write("runs/broken/job.json", b"{}")
    storage.write("runs/broken/status.json", b"{}")
    page = made(storage)
    assert page.row("a-run")[-1] == "this run"
    expected = ["succeeded", "3.2500", "3.0000", "100", "1:40", "256"]
    assert page.row("other") == [*expected, "learningRate 0.002, checkpoints.every 7, other code"]
    assert not any(row[:1] in (["empty"], ["broken"]) for row in page.rows)
    assert "Validation loss of these runs" not in page.text
    over = made(storage, "other")
    assert "Validation loss of these runs" in over.text
    stops = json.loads(over.attributes("div", "data-stops")[1])
    assert stops[-1] == [charts.WIDTH, "step 100: a-run 3.5, other 3.25"]
    assert [row[0] for row in over.rows if row[:1] == ["other"]] == ["other"]  # the other run is listed once


class OwnRunAlone(FileStorage):
    def list(self, prefix: str) -> Entries:
        if prefix == "runs":
            raise Refused("no permission")
        return super().list(prefix)


def test_page_of_a_machine_that_may_list_no_other_run_compares_none(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage)
    write_records(storage, [record(50), record(100, validation_loss=3.5)])
    declare(storage, "other")
    write_records(storage, [record(100)], "other")
    assert made(storage).row("other")
    own = OwnRunAlone(tmp_path)
    assert [row for row in made(own).rows if row[:1] == ["other"]] == []


def test_page_of_a_run_without_status_and_metrics_is_made(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage)
    storage.delete("runs/a-run/status.json")
    assert "a-run PROVISIONING" in made(storage).text
    declare(storage, parallel={"parallelism": "fsdp"})
    assert "no process has the whole model" in made(storage).text


# -- curves ------------------------------------------------------------------------------------------------------------


def test_thinned_curve_keeps_its_spikes_and_stays_small() -> None:
    chance = random.Random(1)
    points = [(float(i), chance.random()) for i in range(100_000)]
    points[12_345], points[67_890] = (12_345.0, 50.0), (67_890.0, -50.0)
    thin = charts.thinned(points)
    assert len(thin) <= 4 * charts.BUCKETS
    assert {points[0], points[12_345], points[67_890], points[-1]} <= set(thin)
    assert thin == sorted(thin)
    made = charts.chart("k", "t", "", [Series("raw", "raw", points)], 100_000)
    assert made is not None
    assert len(made.lines[0].path) < 40_000
    assert len(made.stops) <= charts.STOPS + 2


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.003), (3.38, 6.96), (5.0, 5.0), (0.0, 0.0), (2e5, 3e7), (-3.0, -1.0)]
)
@pytest.mark.parametrize("zero", [False, True])
def test_axes_of_a_chart_hold_all_values(low: float, high: float, zero: bool) -> None:
    made = charts.chart("k", "t", "", [Series("s", "line", [(1.0, low), (1000.0, high)])], 1000, zero=zero)
    assert made is not None
    numbers = [int(n) for n in re.findall(r"-?\d+", made.lines[0].path)]
    if not zero or low >= 0:
        assert all(
            0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in zip(*[iter(numbers)] * 2, strict=True)
        )
    labels = [tick.label for tick in made.y_ticks]
    assert 2 <= len(labels) == len(set(labels)) <= 8
    assert [made.x_ticks[0].label, made.x_ticks[-1].label] == ["0", "1,000"]


def test_logarithmic_axis_leaves_out_values_that_have_no_place_on_it() -> None:
    points = [(1.0, 0.0), (2.0, 0.02), (3.0, math.nan), (4.0, 300.0)]
    made = charts.chart("k", "t", "", [Series("s", "line", points)], 4, logarithmic=True)
    assert made is not None
    assert made.lines[0].path.count(" ") == 2
    assert (made.y_ticks[0].label, made.y_ticks[-1].label) == ("0.01", "1,000")
    assert charts.chart("k", "t", "", [Series("s", "line", points[:1])], 4, logarithmic=True) is None


def test_smoothed_straight_line_is_the_same_line() -> None:
    points = [(float(i), 2.0 * i) for i in range(500)]
    assert [y for _, y in charts.smoothed(points)] == pytest.approx([y for _, y in points])


# -- machines ----------------------------------------------------------------------------------------------------------


def machine(**fields: Any) -> MachineStatus:
    usual: dict[str, Any] = {"name": "worker-0", "role": "worker", "state": "running", "pid": 1}
    return MachineStatus(**(usual | {"started": BEGAN, "heartbeat": BEGAN} | fields))


def test_history_of_a_machine_holds_its_starts_exits_and_notices() -> None:
    first = history.after_boot(None, machine())
    ended = Exit(code=-9, reason="killed by SIGKILL", time=BEGAN + 5)
    second = history.after_report(first, first.model_copy(update={"last_exit": ended, "heartbeat": BEGAN + 6}), None)
    same = history.after_report(second, second.model_copy(update={"heartbeat": BEGAN + 8}), None)
    told = history.after_report(same, same, (BEGAN + 9, "preempted"))
    left = Exit(code=75, reason="left", time=BEGAN + 10)  # as it does when told so
    change = {"last_exit": left, "state": "stopped", "message": "preempted", "heartbeat": BEGAN + 10}
    gone = history.after_report(told, told.model_copy(update=change), (BEGAN + 9, "preempted"))
    back = history.after_boot(gone, machine(started=BEGAN + 60, heartbeat=BEGAN + 70))
    again = history.after_boot(back, machine(started=BEGAN + 100, heartbeat=BEGAN + 101))
    assert [(e.kind, e.time - BEGAN, e.words) for e in again.history] == [
        ("started", 0, ""),
        ("exit", 5, "killed by SIGKILL"),
        ("notice", 9, "preempted"),
        ("left", 10, "preempted"),
        ("back", 60, ""),
        ("lost", 70, ""),
        ("back", 100, ""),
    ]
    assert again.before == 20
    assert history.seconds_present(again) == 21
    assert [(a - BEGAN, b - BEGAN) for a, b in outcome.boots(again)] == [(0, 10), (60, 70), (100, 101)]


def test_history_of_a_machine_is_bounded_and_its_total_time_is_not() -> None:
    now = history.after_boot(None, machine(heartbeat=BEGAN + 1))
    for i in range(1, 200):
        now = history.after_boot(now, machine(started=BEGAN + 10 * i, heartbeat=BEGAN + 10 * i + 1))
    assert len(now.history) == history.LONGEST
    assert history.seconds_present(now) == 200


def test_timeline_of_very_many_machines_draws_those_with_events(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    declare(storage)
    for i in range(timeline.SHOWN_MACHINES + 20):
        write_machine(storage, f"worker-{i}")
    event = Event(kind="notice", time=BEGAN + 60, words="preempted").to_json()
    write_machine(storage, "worker-55", history=[Event(kind="started", time=BEGAN).to_json(), event])
    drawn = timeline.timeline(outcome.read(storage, "a-run"))
    assert drawn is not None
    assert (len(drawn.rows), drawn.hidden) == (timeline.SHOWN_MACHINES + 1, 20)
    (row,) = (row for row in drawn.rows if row.marks)
    assert (row.name, row.marks[0].words) == ("worker-55", "1:00 asked to leave: preempted")


# -- samples -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sampler(tmp_path: Path) -> Sampler:
    tokenizer = from_bytes()
    model = build(Model(layers=1, heads=1, width=8, positions=24), tokenizer, 0.1, 1).eval()
    spec = JobSpec.model_construct(run="a-run", hyperparameters=Hyperparameters(seed=7))
    return Sampler(bucket(tmp_path), spec, model, tokenizer, list(b"once upon a "), print)


def test_sample_is_the_same_for_the_same_model_and_leaves_its_state_alone(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.sampler.SHARE", math.inf)
    sampler._created -= 1
    state = torch.get_rng_state()
    before = [parameter.clone() for parameter in sampler._model.parameters()]
    sampler.take(1)
    sampler.take(2)
    sampler.close()
    one, two = samples.read(bucket(tmp_path), "a-run")
    assert (one.step, one.text) == (1, two.text)
    assert one.prompt == "once upon a "  # the prompt takes half of the positions
    assert len(one.text) > 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, sampler._model.parameters()))
    assert all(parameter.grad is None for parameter in sampler._model.parameters())


def test_sample_without_time_is_one_token(sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.evaluation.sampler.SHARE", 0.0)
    passes = []
    sampler._model.transformer.register_forward_hook(lambda *_: passes.append(1))
    sampler.take(1)
    sampler.close()
    assert len(passes) == 1
    assert len(samples.read(bucket(tmp_path), "a-run")) == 1


def test_sample_that_fails_is_logged_and_raises_nothing(sampler: Sampler, capsys: pytest.CaptureFixture[str]) -> None:
    sampler._prompt = []
    sampler.take(3)
    sampler.close()
    assert capsys.readouterr().out.startswith("no sample of step 3 (")


def test_very_many_samples_keep_the_first_and_the_newest(tmp_path: Path) -> None:
    storage = bucket(tmp_path)
    for step in range(1, 301):
        samples.add(storage, "a-run", Sample(step=step, time=0, prompt="p", text="t"))
    steps = [sample.step for sample in samples.read(storage, "a-run")]
    assert steps[0] == 1
    assert steps[-1] == 300
    assert len(steps) < 2 * samples.KEPT
    samples.add(storage, "a-run", Sample(step=50, time=0, prompt="p", text="t"))  # a resume takes this step again
    assert samples.read(storage, "a-run")[-1].step == 50
