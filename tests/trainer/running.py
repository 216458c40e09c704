"""Small real runs for tests: a bucket in a folder, machines as processes of `python -m trainer`, most of them forks."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.warm import Process, start
from trainer.contract.identity import fingerprint
from trainer.contract.spec import JobSpec
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.records import MachineStatus, Record, Status
from trainer.runs.status import read_status
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

ROOT = Path(__file__).resolve().parents[2]
STEPS = 600  # steps of a run whose test gives no other number
PATIENCE = 300.0  # seconds that anything may take on a busy machine with two slow cores


def text(lines: int = 4000) -> str:
    """Return text with something to learn: sums in words. It is the same on every machine."""
    chance, digits = random.Random(7), ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = ((chance.randrange(5), chance.randrange(5)) for _ in range(lines))
    return "".join(f"{digits[a]} plus {digits[b]} is {digits[a + b]}\n" for a, b in pairs)


class Run:
    """A run in a folder of its own. `spec` overrides are merged into the defaults, section by section."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self.folder = folder
        self.storage: Storage = open_storage(str(folder))
        source = folder / "text.txt"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text(), encoding="utf-8")
        mark = fingerprint(source)
        self.storage.upload(source, f"data/{mark}/text.txt")
        fields: dict[str, Any] = {
            "run": "test-run",
            "model": {"layers": 2, "heads": 2, "width": 32, "positions": 32},
            "data": {"path": f"data/{mark}/text.txt", "tokenizer": "byte"},
            "fingerprint": mark,
            "code": "test",
            "hyperparameters": {
                "learningRate": 0.01, "batchSize": 8, "sequenceLength": 32, "steps": STEPS, "warmupSteps": 20,
                "microBatchSize": 4,
            },
            "evaluation": {"every": STEPS // 2, "sequences": 32},
            "checkpoints": {"every": STEPS // 6},
            "parallel": {},
            "cluster": {"workers": 0, "threads": 1},
        }  # fmt: skip
        for key, value in overrides.items():
            fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) and key != "model" else value
        self.spec = JobSpec.model_validate(fields)
        self.write_spec()
        self.machines: dict[str, Process | subprocess.Popen[bytes]] = {}

    def write_spec(self) -> None:
        self.storage.write(f"runs/{self.spec.run}/job.json", json.dumps(self.spec.to_json()).encode())

    def relaunch(self) -> None:
        self.spec = self.spec.model_copy(update={"launch": self.spec.launch + 1})
        self.write_spec()

    def start(self, *names: str, forked: bool = True) -> "Run":
        """Start these machines, or all that the spec declares.

        With forked=False the command itself starts, see tests/warm.py.
        """
        environment = {**os.environ, "TMPDIR": "/tmp"}
        for name, role in self.spec.cluster.machines():
            if not names or name in names:
                # fmt: off
                command = [
                    sys.executable, "-m", "trainer", "--bucket", self.storage.url, "--run", self.spec.run,
                    "--name", name, "--role", role,
                ]
                # fmt: on
                self.machines[name] = start(command, ROOT, environment, forked=forked)
        return self

    def machine(self, name: str) -> MachineStatus:
        return MachineStatus.model_validate_json(self.storage.read(f"runs/{self.spec.run}/machines/{name}.json"))

    def status(self) -> Status | None:
        return read_status(self.storage, self.spec.run)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until `condition` is true; fails after PATIENCE naming `what`."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not in {PATIENCE:.0f} s: {what}; status {self.status()}")

    def until_step(self, step: int) -> None:
        self.until(lambda: (s := self.status()) and s.step >= step, f"step {step}")

    def kill(self, name: str) -> None:
        """Lose a machine: kill its supervisor, which takes its process with it."""
        machine = self.machines.pop(name)
        machine.kill()
        machine.wait()

    def wait(self) -> Status:
        """Wait until every machine has left; return the final status."""
        for name, machine in self.machines.items():
            code = machine.wait(PATIENCE)
            assert code >= 0, f"{name} was killed by signal {-code}: the tests' machine may be out of memory"
        status = self.status()
        assert status is not None
        return status

    def records(self) -> list[Record]:
        metrics = read_metrics(self.storage, self.spec.run)
        found = [*metrics.steps, *metrics.evaluations, *metrics.notices]
        return sorted(found, key=lambda r: (r.step, r.validation_loss is not None, r.notice_seconds is not None))

    def steps(self) -> list[Record]:
        others = ("validation_loss", "notice_seconds")
        return [r for r in self.records() if all(getattr(r, name) is None for name in others)]

    def losses(self) -> list[float | None]:
        """Return the training loss of every step."""
        return [record.loss for record in self.steps()]

    def validation(self) -> list[float]:
        return [record.validation_loss for record in self.records() if record.validation_loss is not None]

    def end(self) -> None:
        """Kill each machine that is left, by its own process id."""
        for machine in self.machines.values():
            if machine.poll() is None:
                machine.kill()  # its child dies with it
                machine.wait()
