"""The parts of benchmarks/gpu.py that were tried, the time that is left, and the table and file of what was found."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from infra.sizing.measured_gpus import MeasuredGpu
from infra.sizing.measured_gpus import table as measured_table
from tests.trainer.running import Run
from trainer.contract.errors import first_line

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Row:
    """A line of the table. good: None where nothing was demanded."""

    part: str
    found: str
    wanted: str = ""
    good: bool | None = None


@dataclass
class Session:
    """What all parts need, and what they have found."""

    options: argparse.Namespace
    folder: Path
    gpus: int
    end: float  # of time.monotonic()
    rows: list[Row] = field(default_factory=list)
    speeds: list[MeasuredGpu] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def add(self, part: str, found: str, wanted: str = "", good: bool | None = None) -> None:
        self.rows.append(Row(part, found, wanted, good))
        print(f"{self.left:4.0f} s left: {part}: {found}", file=sys.stderr, flush=True)

    def attempt(self, part: str, seconds: float, work: Callable[[], None]) -> None:
        """Do a part that takes about so many seconds, if they are left. Note why it failed."""
        if self.left < seconds:
            return self.add(part, f"not begun: {self.left:.0f} s were left, and it takes {seconds:.0f}")
        try:
            work()
        except Exception as error:
            self.add(part, f"failed: {first_line(error)}", good=False)


@contextmanager
def visible(gpus: str | None) -> Iterator[None]:
    """Let processes that start now see these GPUs only; all if None."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def finish(run: Run, seconds: float) -> None:
    """Wait until the run has succeeded. Raise RuntimeError if it has not, and end it."""
    end = time.monotonic() + seconds
    try:
        while any(machine.poll() is None for machine in run.machines.values()) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        run.end()
    status = run.status()
    if status is None or status.state != "SUCCEEDED":
        raise RuntimeError(f"{status.state}, {status.reason}" if status else "the run never began")


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def commit() -> str:
    """Return the checkout's commit; "" if this is none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def table(session: Session, title: str) -> str:
    marks = {True: "good", False: "**bad**", None: ""}
    lines = [f"## {title}", "", "| part | found | wanted | |", "|---|---|---|---|"]
    lines += [f"| {row.part} | {row.found} | {row.wanted} | {marks[row.good]} |" for row in session.rows]
    return "\n".join(lines)


def keep(speeds: list[MeasuredGpu], file: Path) -> None:
    """Write the speeds into a list of all that were measured, in the place of older ones of their kind."""

    def kind(speed: MeasuredGpu) -> tuple[str, str, str, bool]:
        return speed.device, speed.model, speed.precision, speed.compiled

    new_kinds = {kind(speed) for speed in speeds}
    kept = [speed for speed in measured_table(file) if kind(speed) not in new_kinds] if file.is_file() else []
    entries = [speed.model_dump(by_alias=True) for speed in [*kept, *speeds]]
    file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
