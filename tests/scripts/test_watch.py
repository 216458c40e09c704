"""scripts.watch on runs made of files: its picture, its end, and when it stops waiting.

The tests set the time: a run proceeds when the watch sleeps.
"""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts.support.common import UserError
from scripts.support.render import picture
from scripts.support.run_files import RunFiles
from scripts.watch import watch
from trainer.contract.options import Data, Hyperparameters, Model
from trainer.contract.spec import Cluster, JobSpec
from trainer.runs.records import Exit, MachineStatus, Record, Status
from trainer.storage.base import Entry, StorageError
from trainer.storage.factory import open_storage

RUN = "gpt2-4x128-01234567"
START = 1_800_000_000.0
STEPS = 1000


class FakeRun:
    """A run's folder, a clock, and the events that happen while the watch sleeps."""

    def __init__(self, root: Path) -> None:
        self.storage = open_storage(str(root))
        self.root = root
        self.now = START
        self.terminal = False
        self.width, self.height = 80, 30
        self.script: Iterator[None] = iter(())
        self.out = io.StringIO()
        self.records: list[Record] = []

    def declare(self, launch: int = 1, workers: int = 1, servers: int = 0, **each: int) -> None:
        spec = JobSpec(
            run=RUN,
            launch=launch,
            model=Model(layers=4, heads=4, width=128, positions=128),
            data=Data(path="data/0/text.txt", tokenizer="train"),
            fingerprint="0" * 16,
            code="0" * 16,
            hyperparameters=Hyperparameters(steps=STEPS, sequence_length=128),
            cluster=Cluster(workers=workers, parameter_servers=servers, **each),
        )
        self.put("job.json", spec.to_json())
        self.storage.write("current.json", json.dumps({"run": RUN, "launch": launch}).encode())
        # The file's date is the run's declaration; our clock differs from the machine's.
        os.utime(self.root / "runs" / RUN / "job.json", (self.now, self.now))

    def put(self, path: str, content: dict[str, Any]) -> None:
        self.storage.write(f"runs/{RUN}/{path}", json.dumps(content).encode())

    def status(self, state: str, **further: Any) -> None:
        self.put("status.json", Status(state=state, updated=self.now, **further).to_json())

    def machine(self, name: str, state: str = "running", *, ago: float = 0, **further: Any) -> None:
        role = name.partition("-")[0]
        status = MachineStatus(
            name=name,
            role=role,
            state=state,
            heartbeat=self.now - ago,
            started=START,
            pid=1,
            **further,
        )
        self.put(f"machines/{name}.json", status.to_json())

    def metrics(self, records: list[Record], name: str = "attempt-1-master-0-00000") -> None:
        lines = "".join(json.dumps(record.to_json()) + "\n" for record in records)
        self.storage.write(f"runs/{RUN}/metrics/{name}.jsonl", lines.encode())

    def train(self, first: int, last: int, attempt: int = 1, loss: float = 4.0, seconds: float = 0.5) -> list[Record]:
        """Return records of steps, half a second each, the last of them now."""
        return [
            Record(
                step=step,
                time=self.now - (last - step) * seconds,
                attempt=attempt,
                loss=loss,
                learning_rate=1e-3,
                tokens_per_second=14_200,
                trainers=2,
            )
            for step in range(first, last + 1)
        ]

    def evaluation(self, step: int, loss: float, attempt: int = 1) -> Record:
        return Record(step=step, time=self.now, attempt=attempt, validation_loss=loss)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > START + 5000:
            raise AssertionError("the watch does not end")
        next(self.script, None)

    def watch(self, **options: Any) -> int:
        console = Console(
            file=self.out, force_terminal=self.terminal, width=self.width, height=self.height, color_system=None
        )
        return watch(
            self.storage, options.pop("run", None), console, clock=lambda: self.now, sleep=self.sleep, **options
        )

    @property
    def text(self) -> str:
        return self.out.getvalue()


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path)


def running(run: FakeRun, step: int = 400) -> None:
    run.declare()
    run.status("RUNNING", step=step, attempt=1, started=START - 200)
    run.machine("master-0", step=step, memory_mb=612, log=["tokens are ready", f"step {step}"])
    run.machine("worker-0", step=step, memory_mb=500)
    run.metrics([*run.train(1, step, loss=4.25), run.evaluation(step, 4.0)])


def test_once_shows_state_progress_and_machines(run: FakeRun) -> None:
    running(run)
    assert run.watch(once=True) == 0
    text = run.text
    assert re.search(rf"{RUN}\s+RUNNING\s+2 trainers", text)
    assert re.search(r"400/1,000\s+40%\s+ETA 5:00", text)  # 600 steps of half a second are left
    assert "train loss 4.250  validation loss 4.000 (perplexity 54.6)" in text
    assert "14.2k tokens/s  MFU n/a  elapsed 3:20" in text
    assert re.search(r"master-0\s+running\s+400\s+0 s ago\s+612 MB", text)
    assert re.search(r"worker-0\s+running\s+400\s+0 s ago\s+500 MB", text)
    assert "log of master-0\n  tokens are ready\n  step 400\n" in text
    assert re.search("[\u2801-\u28ff]", text), "no curve"


def test_gpus_and_processes_are_shown_inside_their_machines(run: FakeRun) -> None:
    running(run)
    run.declare(servers=1, processes=8, gpus=8)
    for name in ("master-0", "worker-0", "ps-0"):
        run.machine(name, step=400, memory_mb=612, environment={"gpu": "8 × NVIDIA H100 80GB HBM3"})
    assert run.watch(once=True) == 0
    assert "RUNNING  2 trainers x 8 GPUs" in run.text
    assert "H100" not in run.text  # too narrow
    run.width = 100
    assert run.watch(once=True) == 0
    assert re.findall(r"(\S+-0) .* MB  (8 × H100 80GB HBM3)?", run.text)[-3:] == [
        ("master-0", "8 × H100 80GB HBM3"),
        ("worker-0", "8 × H100 80GB HBM3"),
        ("ps-0", ""),
    ]
    run.declare(processes=2)
    assert run.watch(once=True) == 0
    assert "RUNNING  2 trainers x 2 processes" in run.text


def test_parameter_server_is_shown_like_other_machines(run: FakeRun) -> None:
    running(run)
    run.declare(servers=2)
    run.machine("ps-0", step=400, memory_mb=620, message="holds 0.8 M of 0.8 M parameters")
    assert run.watch(once=True) == 0
    assert re.search(r"master-0 .*\n\s*worker-0 .*\n\s*ps-0\s+running\s+400\s+0 s ago\s+620 MB\s+holds 0.8 M", run.text)
    assert re.search(r"ps-1\s+not there yet", run.text)
    assert "RUNNING  2 trainers" in run.text


def test_notice_is_not_counted_as_a_step(run: FakeRun) -> None:
    running(run)
    run.now += 2
    leaving = Record(step=400, time=run.now, attempt=1, notice_seconds=1.5)
    run.metrics([leaving], "attempt-1-master-0-00001")
    run.metrics([leaving.model_copy(update={"step": 401})], "attempt-1-master-0-00002")
    snapshot = RunFiles(run.storage, RUN, lambda: run.now).read()
    assert (snapshot.steps[-1].step, snapshot.steps[-1].loss, snapshot.unreadable) == (400, 4.25, 0)


def test_picture_shows_a_known_mfu(run: FakeRun) -> None:
    running(run)
    run.metrics([r.model_copy(update={"mfu": 0.4321}) for r in run.train(1, 400)])
    run.watch(once=True)
    assert "MFU 43.2%" in run.text


@pytest.mark.parametrize(("width", "height"), [(60, 24), (60, 12), (80, 24), (80, 16), (120, 50)])
def test_picture_fits_the_terminal(run: FakeRun, width: int, height: int) -> None:
    run.declare(workers=30)
    reason = "waiting for worker-7, which was lost with a very long story that nobody will want to read to its end"
    run.status("RECOVERING", step=400, attempt=2, started=START - 200, reason=reason)
    for name in ["master-0", *(f"worker-{i}" for i in range(30))]:
        run.machine(name, step=400, restarts=2, memory_mb=12_345, message="m" * 200, log=["l" * 200] * 30)
    run.machine("worker-29", "restarting", step=400, last_exit=Exit(code=1, reason="disk full", time=START))
    run.metrics([*run.train(1, 400, loss=11.25), run.evaluation(300, 10.0)])
    snapshot = RunFiles(run.storage, RUN, lambda: run.now).read()
    console = Console(file=run.out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(picture(snapshot, width, height))
    lines = run.text.splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "waiting for worker-7" in run.text
    assert re.search(r"worker-29\s+restarting", run.text), "the one in trouble must be seen"
    assert "worker-28" in run.text or re.search(r"and \d+ more", run.text)


def test_lines_in_a_log_follow_the_run_to_its_end(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        run.machine("master-0", "starting", message="tokenizing: 40%")
        yield
        run.status("STARTING", reason="waiting for worker-0")
        run.machine("worker-0", "starting")
        yield
        for step in range(10, STEPS + 1, 10):
            started = START + 3
            run.status("RUNNING", step=step, attempt=1, started=started)
            run.machine("master-0", step=step)
            lost = 300 <= step < 330
            run.machine(
                "worker-0",
                "restarting" if lost else "running",
                step=step,
                restarts=int(step >= 300),
                last_exit=Exit(code=-9, reason="killed (SIGKILL)", time=run.now) if lost else None,
            )
            run.records += run.train(step - 9, step, loss=7 - step / 250, seconds=0.1)
            if step % 250 == 0:
                run.records.append(run.evaluation(step, 7.5 - step / 250))
            run.metrics(run.records)
            yield
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=started, finished=run.now)
        yield

    run.declare()
    run.script = life()
    assert run.watch() == 0
    lines = [line.partition(" ")[2] for line in run.text.splitlines()]
    assert f"{RUN} PROVISIONING" in lines
    assert f"{RUN} STARTING: waiting for worker-0" in lines
    assert f"{RUN} RUNNING" in lines
    assert "master-0 starting: tokenizing: 40%" in lines
    assert lines.count("worker-0 restarting: killed (SIGKILL)") == 1
    evaluations = [line for line in lines if re.search(r"validation loss \d\.\d{3} \(perplexity [\d.]+\)  ", line)]
    assert [e.split()[2] for e in evaluations] == ["250/1,000", "500/1,000", "750/1,000", "1,000/1,000"]
    # Over 100 seconds there is a line every ten, and one for each evaluation.
    assert 12 <= sum("tokens/s" in line for line in lines) <= 18
    end = run.text.split(f"{RUN} SUCCEEDED: ")[1].splitlines()
    assert end[0] == "1,000 steps in 1:40"
    assert end[1] == "final train loss 3.000  validation loss 3.500 (perplexity 33.1)"
    assert end[2] == f"model: {run.root}/runs/{RUN}/model"
    assert "\x1b" not in run.text


def test_live_picture_ends_in_a_summary(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        yield
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START - 200, finished=run.now)
        run.metrics(run.train(1, STEPS, loss=3.5))
        yield

    running(run)
    run.terminal = True
    run.script = life()
    assert run.watch() == 0
    assert "400/1,000" in run.text
    assert f"{RUN} SUCCEEDED: 1,000 steps in 3:22" in run.text
    assert run.text.endswith(f"model: {run.root}/runs/{RUN}/model\n")


def test_run_that_has_ended_is_reported_as_such(run: FakeRun) -> None:
    running(run, STEPS)
    run.status("SUCCEEDED", step=STEPS, attempt=1, started=START - 200, finished=START - 100)
    run.now += 1e4
    assert run.watch() == 0
    assert run.text.startswith(f"{RUN} has ended already:\n{RUN} SUCCEEDED: 1,000 steps in 1:40\n")
    assert run.now == START + 1e4, "it waited"


def test_failed_run_shows_its_reason_and_the_machines_last_lines(run: FakeRun) -> None:
    running(run)
    run.status("FAILED", step=400, attempt=1, started=START - 200, finished=START, reason="the loss is not finite")
    ended = Exit(code=1, reason="RuntimeError: loss", time=START)
    run.machine("worker-0", "failed", last_exit=ended, log=["\x1b[31mTraceback\x1b[0m", "10%\r20%\rRuntimeError: loss"])
    assert run.watch() == 1
    assert f"{RUN} FAILED at step 400 of 1,000 after 3:20: the loss is not finite\n" in run.text
    assert run.text.endswith(
        "last words of worker-0 (exit 1: RuntimeError: loss):\n  Traceback\n  RuntimeError: loss\n"
    )


def test_crashed_run_shows_the_end_of_its_traceback(run: FakeRun) -> None:
    running(run)
    frames = [part for i in range(18) for part in (f'  File "model.py", line {i}, in forward', "    return f(x)")]
    traceback = ["Traceback (most recent call last):", *frames, "IndexError: index out of range in self"]
    reason = "ps-0: IndexError: index out of range in self"
    run.status("FAILED", step=400, attempt=1, finished=START, reason=reason, traceback=traceback)
    run.machine("ps-0", "failed", log=["before it", *traceback])
    assert run.watch() == 1
    assert f"{RUN} FAILED at step 400 of 1,000: {reason}\n" in run.text
    assert run.text.endswith("line 17, in forward\n      return f(x)\n  IndexError: index out of range in self\n")
    assert run.text.count("in forward") == 9
    assert "last words" not in run.text


def test_stopped_run_shows_the_reason_and_how_to_continue(run: FakeRun) -> None:
    running(run)
    run.status("STOPPED", step=400, attempt=1, started=START - 200, finished=START, reason="maxHours 2 is over")
    assert run.watch() == 3
    assert "STOPPED at step 400 of 1,000 after 3:20: maxHours 2 is over\n" in run.text
    assert "raise `launch` to 2 in the stack file" in run.text


def test_status_of_an_earlier_launch_does_not_end_the_watch(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        run.machine("master-0")
        yield
        run.status("SUCCEEDED", step=STEPS, attempt=2, launch=2, started=START, finished=run.now)
        yield

    run.declare(launch=2)
    run.status("FAILED", step=400, attempt=1, launch=1, reason="disk full")
    run.script = life()
    assert run.watch() == 0
    assert "FAILED" not in run.text


def test_watch_ends_when_no_machine_is_alive(run: FakeRun) -> None:
    running(run)
    assert run.watch() == 4
    assert 60 < run.now - START < 70
    assert re.search(r"RUNNING at step 400 .*: no machine is at work; last was \S+, 61 s ago; `pulumi up`", run.text)
    assert run.text.endswith("last words of master-0:\n  tokens are ready\n  step 400\n")


def test_watch_does_not_wait_for_machines_that_gave_up(run: FakeRun) -> None:
    running(run)
    run.now += 100
    run.machine("master-0", "failed")
    run.machine("worker-0", "stopped")
    assert run.watch() == 4
    assert run.now < START + 120


def test_watch_gives_a_new_run_time_to_start_its_machines(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        for _ in range(20):
            yield
        running(run, STEPS)
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    run.declare()
    run.script = life()
    assert run.watch() == 0


def test_watch_waits_for_machines_that_an_up_has_just_replaced(run: FakeRun) -> None:
    """`pulumi up` after all were killed changes no file of the run.

    Its machines need a moment until their first heartbeat.
    """

    def life() -> Iterator[None]:
        for _ in range(5):
            yield
        run.machine("master-0", step=400)
        run.status("SUCCEEDED", step=STEPS, attempt=2, started=START, finished=run.now)
        yield

    running(run)
    run.now += 1000
    run.script = life()
    assert run.watch() == 0


def test_watch_gives_up_on_a_run_whose_machines_never_come(run: FakeRun) -> None:
    run.declare()
    assert run.watch() == 4
    assert "no machine has been heard yet; `pulumi up` starts machines again" in run.text


@pytest.mark.parametrize("skew", [-500.0, 500.0])
def test_heartbeat_counts_by_its_arrival_not_by_the_machines_clock(run: FakeRun, skew: float) -> None:
    """A machine whose clock is wrong counts as alive while its file changes, and no longer."""

    def life() -> Iterator[None]:
        for _ in range(100):
            run.machine("master-0", ago=skew)
            yield

    run.declare()
    run.status("RUNNING", step=5, attempt=1, started=START)
    run.machine("master-0", ago=skew)
    run.script = life()
    assert run.watch() == 4
    assert 100 + 55 < run.now - START < 100 + 70


def test_once_reports_a_dead_run_without_waiting(run: FakeRun) -> None:
    running(run)
    run.now += 100
    assert run.watch(once=True) == 4
    assert run.now == START + 100


def test_ctrl_c_ends_the_watch_and_says_that_the_run_continues(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    running(run)
    run.script = life()
    assert run.watch() == 130
    assert run.text.endswith(f"{RUN} continues without this watch; `pulumi destroy` would end it\n")
    assert RunFiles(run.storage, RUN, lambda: run.now).read().state == "RUNNING"


def test_watch_waits_for_a_run_and_then_reports_that_there_is_none(run: FakeRun) -> None:
    with pytest.raises(UserError, match="`pulumi up`"):
        run.watch()
    assert run.now - START >= 20
    assert run.text.count("waiting up to 20 s") == 1


def test_watch_reports_that_it_waits_for_a_bucket_that_does_not_answer(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(run, STEPS)
    run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
    listed, said = run.storage.list, "does not answer; trying for up to two minutes: check the network meanwhile"

    def slow(prefix: str) -> list[Entry]:
        deadline = time.monotonic() + 10
        while said not in run.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return listed(prefix)

    monkeypatch.setattr("scripts.watch.PATIENCE", 0.01)
    monkeypatch.setattr(run.storage, "list", slow)
    assert run.watch() == 0
    assert said in run.text


def test_watch_follows_a_run_that_is_declared_meanwhile(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        yield
        running(run, STEPS)
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    run.script = life()
    assert run.watch() == 0


def test_watch_reports_a_run_that_takes_no_step(run: FakeRun) -> None:
    def life() -> Iterator[None]:
        for _ in range(150):
            run.machine("master-0", step=400, message="writing a checkpoint")
            yield
        run.metrics([*run.train(1, 400), *run.train(401, 402)])
        yield
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    running(run)
    run.script = life()
    assert run.watch() == 0
    lines = [line.partition(" ")[2] for line in run.text.splitlines()]
    told = [line for line in lines if line.startswith("no step for")]
    assert told == ["no step for more than 1 min", "no step for more than 2 min"]


# On Google Cloud machines have names that are unknown before, and come when Google has one.


@pytest.fixture
def cloud_run(run: FakeRun) -> FakeRun:
    run.storage.url = "gs://bucket"
    run.declare(workers=10)
    return run


def test_machines_with_unknown_names_are_counted(cloud_run: FakeRun) -> None:
    run = cloud_run
    run.status("RUNNING", step=40, attempt=1, started=START)
    for name in ("worker-zzzz", "master-0", "worker-a1b2"):
        run.machine(name, step=40)
    run.machine("worker-lost", ago=700)
    assert run.watch(once=True) == 0
    assert re.search(rf"{RUN}\s+RUNNING\s+3 of 11 machines", run.text)
    machines = re.findall(r"^(\S+)\s+running\s", run.text, re.MULTILINE)
    assert machines == ["master-0", "worker-a1b2", "worker-zzzz"]
    assert "not there yet" not in run.text
    assert "worker-0" not in run.text


def test_log_reports_when_machines_come(cloud_run: FakeRun) -> None:
    run = cloud_run

    def life() -> Iterator[None]:
        yield
        for i in range(10):
            run.machine(f"worker-aaa{i}")
        run.machine("master-0")
        yield
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    run.script = life()
    assert run.watch() == 0
    lines = [line.partition(" ")[2] for line in run.text.splitlines()]
    assert [line for line in lines if line.endswith(" there")] == ["0 of 11 machines there", "all machines there"]


def test_log_and_picture_report_where_the_run_is_and_each_move(cloud_run: FakeRun) -> None:
    run = cloud_run
    moves = [{"from": "us-central1-a", "to": "us-central1-c", "time": START + 900}]

    def life() -> Iterator[None]:
        run.put("launches/1.json", {"started": START, "zone": "us-central1-a", "zones": ["us-central1-a"]})
        yield
        run.put("launches/1.placement.json", {"zone": "us-central1-a", "moves": [], "waiting_since": START + 60})
        yield
        run.put("launches/1.placement.json", {"zone": "us-central1-c", "moves": moves, "waiting_since": None})
        yield
        run.status("FAILED", reason="no more")
        yield

    run.script = life()
    run.watch()
    waited, moved = (time.strftime("%Y-%m-%d %H:%M", time.localtime(START + after)) for after in (60, 900))
    lines = [line.partition(" ")[2] for line in run.text.splitlines()]
    onward = "it moves to another zone if this lasts, unless the deadline is near"
    assert [line for line in lines if "us-central1" in line and line == line.lower()] == [
        "in us-central1-a",
        f"waits for machines in us-central1-a since {waited}; {onward}",
        "in us-central1-c",
        f"moved from us-central1-a to us-central1-c at {moved}, 1 of 6 moves",
    ]


def test_google_is_asked_only_while_machines_are_missing_and_each_line_appears_once(cloud_run: FakeRun) -> None:
    run = cloud_run
    asked: list[int] = []

    def ask(snapshot: Any) -> list[str]:
        asked.append(snapshot.there)
        return ["worker: zone us-central1-b has no n1-highmem-16 now", f"{snapshot.there} heard"]

    def life() -> Iterator[None]:
        run.machine("master-0")
        for _ in range(5):
            yield
        run.status("RUNNING", step=1, attempt=1, started=run.now)
        for i in range(10):
            run.machine(f"worker-aaa{i}")
        for _ in range(5):
            yield
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    run.script = life()
    assert run.watch(ask=ask) == 0
    assert set(asked) == {0, 1}
    assert run.text.count("worker: zone us-central1-b has no n1-highmem-16 now") == 1
    assert run.text.count("1 heard") == 1


@pytest.mark.parametrize(("width", "height"), [(60, 24), (60, 12), (80, 24)])
def test_reason_for_missing_machines_is_readable_in_the_picture(cloud_run: FakeRun, width: int, height: int) -> None:
    run = cloud_run
    run.machine("master-0", log=["l" * 200] * 30)
    snapshot = RunFiles(run.storage, RUN, lambda: run.now).read()
    line = "worker: zone us-central1-b has no n1-highmem-16 with nvidia-tesla-t4 now; Google keeps trying, or raise x"
    console = Console(file=run.out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(picture(snapshot, width, height, line))
    lines = run.text.splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert line in " ".join(" ".join(lines).split())


def test_last_lines_of_a_machine_gone_for_long_are_shown(cloud_run: FakeRun) -> None:
    run = cloud_run
    run.status("FAILED", step=40, attempt=1, started=START, finished=START, reason="the loss is not finite")
    ended = Exit(code=1, reason="loss", time=START)
    run.machine("worker-a1b2", "failed", last_exit=ended, log=["RuntimeError: loss"])
    run.now += 86400
    assert run.watch() == 1
    assert run.text.endswith("last words of worker-a1b2 (exit 1: loss):\n  RuntimeError: loss\n")


def test_picture_leaves_out_machines_of_an_earlier_launch(cloud_run: FakeRun) -> None:
    run = cloud_run
    run.machine("worker-old1", "failed")
    run.now += 60
    run.declare(launch=2, workers=10)
    run.machine("worker-new1")
    assert run.watch(once=True) == 0
    assert "worker-new1" in run.text
    assert "worker-old1" not in run.text


def read(run: FakeRun) -> Callable[[], tuple[list[tuple[int, int, float | None]], list[tuple[int, float | None]]]]:
    files = RunFiles(run.storage, RUN, lambda: run.now)

    def losses() -> tuple[list[tuple[int, int, float | None]], list[tuple[int, float | None]]]:
        snapshot = files.read()
        steps = [(r.step, r.attempt, r.loss) for r in snapshot.steps]
        return steps, [(r.step, r.validation_loss) for r in snapshot.evaluations]

    return losses


def test_steps_that_a_resume_undid_are_replaced_by_the_newest(run: FakeRun) -> None:
    run.declare()
    losses = read(run)
    run.metrics([*run.train(1, 6, attempt=1, loss=5.0), run.evaluation(2, 5.5), run.evaluation(6, 5.6)])
    assert losses()[0] == [(step, 1, 5.0) for step in range(1, 7)]
    run.metrics(run.train(4, 4, attempt=2, loss=4.0), "attempt-2-worker-0-00000")
    assert losses() == ([(1, 1, 5.0), (2, 1, 5.0), (3, 1, 5.0), (4, 2, 4.0)], [(2, 5.5)])
    run.now += 5
    again = run.train(4, 5, attempt=2, loss=3.0)
    # A new leader fills in records that the old one may not have written.
    run.metrics(again, "attempt-2-worker-1-00000")
    assert losses()[0][3:] == [(4, 2, 3.0), (5, 2, 3.0)]


def test_unchanged_files_are_not_read_again(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    running(run)
    losses = read(run)
    losses()
    paths: list[str] = []
    real = run.storage.read_generation

    def noted(path: str) -> tuple[bytes, int]:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(run.storage, "read_generation", noted)
    losses()
    assert paths == []
    run.metrics(run.train(401, 402), "attempt-1-master-0-00001")
    assert len(losses()[0]) == 402
    assert paths == [f"runs/{RUN}/metrics/attempt-1-master-0-00001.jsonl"]


def test_growing_or_rewritten_file_is_read_right(run: FakeRun) -> None:
    run.declare()
    losses = read(run)
    whole = "".join(json.dumps(r.to_json()) + "\n" for r in run.train(1, 3)).encode()
    path = f"runs/{RUN}/metrics/a.jsonl"
    run.storage.write(path, whole[: len(whole) // 2])  # the file ends in the middle of a line
    assert [step for step, *_ in losses()[0]] == [1]
    run.storage.write(path, whole)
    assert [step for step, *_ in losses()[0]] == [1, 2, 3]
    run.now += 1
    run.metrics(run.train(1, 4, loss=2.0), "a")
    assert losses()[0] == [(step, 1, 2.0) for step in range(1, 5)]


def test_lines_of_another_version_are_counted(run: FakeRun) -> None:
    running(run)
    run.storage.write(f"runs/{RUN}/metrics/b.jsonl", b'{"step": 3, "someNewKey": 1}\nnot json\n')
    run.machine("master-0", "running")
    run.script = iter(())
    run.watch()
    assert "2 lines of metrics are not understood" in run.text


def test_status_of_another_version_is_one_line(run: FakeRun) -> None:
    running(run)
    run.put("status.json", {"state": "DANCING", "updated": 1.0})
    with pytest.raises(UserError, match=rf"runs/{RUN}/status\.json: state: "):
        run.watch()


def test_bucket_out_of_reach_is_tried_again(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.storage.list

    def away(prefix: str) -> Any:
        raise StorageError("no network")

    def life() -> Iterator[None]:
        yield
        monkeypatch.setattr(run.storage, "list", away)
        yield
        yield
        monkeypatch.setattr(run.storage, "list", real)
        run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=run.now)
        yield

    running(run)
    run.script = life()
    assert run.watch() == 0
    assert run.text.count("the bucket cannot be read (no network); trying again") == 1


def test_bucket_that_stays_out_of_reach_is_an_error(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(prefix: str) -> Any:
        raise StorageError("no network")

    def life() -> Iterator[None]:
        monkeypatch.setattr(run.storage, "list", away)
        yield

    running(run)
    run.script = life()
    with pytest.raises(UserError, match="no network"):
        run.watch()
    assert 120 < run.now - START < 130


def test_curve_has_axes_and_the_unigram_entropy(run: FakeRun) -> None:
    running(run, STEPS)
    run.metrics([*run.train(1, 500, loss=7.0), *run.train(501, STEPS, loss=4.0), run.evaluation(500, 4.5)])
    run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=START)
    folder = f"data/{'0' * 16}/{Data(path='x', tokenizer='train').tokens_key()}"
    run.storage.write(f"{folder}/manifest.json", b'{"validation": {"unigramEntropy": 5.97}}')
    run.watch(curve=True)
    curve = run.text.splitlines()
    assert any(line.startswith("  7.00 ┤⠉") for line in curve)  # the first half is at the top
    assert next(line for line in curve if line.startswith("  4.00 ┤")).endswith("⣀")
    assert sum("●" in line for line in curve) == 2  # the marks are the point and the legend
    assert "unigram entropy 5.97" in run.text
    assert "1,000 steps" in run.text
    assert max(map(len, curve[1:-2])) <= 80


def test_curve_is_drawn_without_the_entropy(run: FakeRun) -> None:
    running(run, STEPS)
    run.status("SUCCEEDED", step=STEPS, attempt=1, started=START, finished=START)
    assert run.watch(curve=True) == 0
    assert "┤" in run.text
    assert "unigram" not in run.text


def test_command_exits_with_the_runs_code_and_loads_no_torch(run: FakeRun) -> None:
    running(run)
    run.status("FAILED", step=400, attempt=1, started=START - 200, finished=START, reason="disk full")
    code = (
        "import sys; from scripts.watch import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "--bucket", run.root.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "disk full" in done.stdout


def test_command_reports_a_missing_run_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.watch", "--once", "--bucket", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no run in ")
    assert done.stderr.count("\n") == 1


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_picture_of_a_sweep_shows_its_trials(run: FakeRun) -> None:
    running(run, step=1)
    rate = {"parameterName": "learningRate", "type": "DOUBLE", "minValue": 1e-4, "maxValue": 1e-2}
    job = json.loads(run.storage.read(f"runs/{RUN}/job.json")) | {"sweep": {"maxTrials": 3, "params": [rate]}}
    run.put("job.json", job)
    trials = [
        {"number": 1, "parameters": {"learningRate": 0.005}, "state": "SUCCEEDED", "value": 3.25, "step": 1000},
        {
            "number": 2,
            "parameters": {"learningRate": 0.0002},
            "state": "STOPPED",
            "value": 5.5,
            "reason": "stopped early",
        },
    ]
    run.storage.write(f"runs/{RUN}/sweep.json", json.dumps(trials).encode())
    assert run.watch(once=True) == 0
    drawn = run.out.getvalue()
    assert "2/3 trials" in drawn
    assert re.search(r"1 +0\.005 +3\.2500 +best", drawn)
    assert re.search(r"2 +0\.0002 +5\.5000 +stopped early", drawn)


def test_retried_trial_keeps_its_number_and_its_new_end_is_reported(run: FakeRun) -> None:
    rate = {"parameterName": "learningRate", "type": "DOUBLE", "minValue": 1e-4, "maxValue": 1e-2}
    table = [
        {"number": n, "parameters": {"learningRate": n / 1000}, "state": "SUCCEEDED", "value": 3.0} for n in (1, 2, 3)
    ]
    again = table[1]
    table[1] = {**again, "state": "FAILED", "value": None, "reason": "no memory"}

    def life() -> Iterator[None]:
        yield
        table[1] = {**again, "launch": 2, "value": 2.5}
        run.storage.write(f"runs/{RUN}/sweep.json", json.dumps(table).encode())
        yield
        run.status("SUCCEEDED", step=3, attempt=1, started=START, finished=run.now, launch=2)
        yield

    run.declare(launch=2)
    job = json.loads(run.storage.read(f"runs/{RUN}/job.json"))
    trial = f"{RUN}/trials/2"
    run.storage.write(f"runs/{trial}/job.json", json.dumps({**job, "run": trial}).encode())
    run.put("job.json", {**job, "sweep": {"maxTrials": 3, "params": [rate]}})
    run.storage.write(f"runs/{RUN}/sweep.json", json.dumps(table).encode())
    run.status("RUNNING", step=3, attempt=1, started=START, launch=2)
    run.machine("master-0", step=3)
    run.script = life()
    assert run.watch() == 0
    assert "3 of 3 trials done  trial 2: " in run.text
    assert run.text.count("trial 2 SUCCEEDED: validationLoss 2.5000 with learningRate 0.002\n") == 1
    assert "trial 2 FAILED" not in run.text  # it had failed before the watch began
    assert "trial 1 SUCCEEDED" not in run.text
