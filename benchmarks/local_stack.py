"""Compare `pulumi` on the local stack with an empty program, in seconds: `python -m benchmarks.local_stack`.

It works in a copy of the checkout, with a state of its own, the real trainer and prepared data. Run it after `make
setup`, in an activated environment. Each figure is the median of the rounds. The two programs take turns.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra import load
from infra.job import job_spec
from infra.local import processes
from trainer.contract import paths
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.status import read_status
from trainer.storage.factory import open_storage

CHECKOUT = Path(__file__).resolve().parents[1]
EMPTY = "name: empty\nruntime: {name: python, options: {toolchain: pip, virtualenv: .venv}}\n"
NOTHING = ("up", "--yes", "--skip-preview")
COMMANDS = {
    "preview of a new stack": ("preview",),
    "up": NOTHING,
    "up --skip-preview, nothing to do": NOTHING,
    "destroy": ("destroy", "--yes", "--skip-preview"),
}


def copy(target: Path) -> None:
    """Copy the files that git tracks, link the environment, and prepare the data."""
    files = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    for name in files.splitlines():
        if (CHECKOUT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, target / name)
    (target / ".venv").symlink_to(CHECKOUT / ".venv")
    subprocess.run([sys.executable, "-m", "scripts.prepare_data"], cwd=target, check=True, stdout=subprocess.DEVNULL)


def pulumi(folder: Path, state: Path, *arguments: str) -> float:
    """Return the seconds of a pulumi command in a project."""
    state.mkdir(exist_ok=True)
    environment = {**os.environ, "PULUMI_BACKEND_URL": state.as_uri()}
    begun = time.perf_counter()
    done = subprocess.run(
        ["pulumi", *arguments, "--non-interactive", "--stack", "local"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"pulumi {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begun


def first_step(folder: Path, begun: float) -> float:
    """Wait for the end of the run's first step. Return the seconds since `begun` (time.time)."""
    stack = load.from_file("local", folder)
    storage, run = open_storage(stack.bucket), job_spec(stack).run
    while not (steps := read_metrics(storage, run).steps):
        status = read_status(storage, run)
        if status is not None and status.state == "FAILED":
            raise SystemExit(f"the run has FAILED: {status.reason}")
        time.sleep(0.1)
    return steps[0].time - begun


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_stack", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    if shutil.which("pulumi") is None:
        parser.error("pulumi is not on PATH: run `. tools/activate` first")
    ours: dict[str, list[float]] = {name: [] for name in COMMANDS}
    empty: dict[str, list[float]] = {name: [] for name in COMMANDS}
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        project, nothing = Path(scratch) / "project", Path(scratch) / "empty"
        project.mkdir()
        nothing.mkdir()
        copy(project)
        (nothing / "Pulumi.yaml").write_text(EMPTY)
        (nothing / "__main__.py").write_text("import pulumi\n")
        (nothing / ".venv").symlink_to(CHECKOUT / ".venv")
        for folder in (project, nothing):
            (folder.parent / f"{folder.name}-state").mkdir()
            pulumi(folder, folder.parent / f"{folder.name}-state", "stack", "init")
        try:
            for turn in range(options.rounds):
                shutil.rmtree(project / "artifacts" / "local" / paths.RUNS, ignore_errors=True)
                for name, command in COMMANDS.items():
                    begun = time.time()
                    ours[name].append(pulumi(project, Path(scratch) / "project-state", *command))
                    if name == "up":
                        starts.append(first_step(project, begun))
                    empty[name].append(pulumi(nothing, Path(scratch) / "empty-state", *command))
                print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        finally:
            left = processes.sweep(project / "artifacts" / "local")
    table = Table(title="seconds, local stack and empty program")
    for column in ("command", "local", "empty", "ratio"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for name in COMMANDS:
        a, b = statistics.median(ours[name]), statistics.median(empty[name])
        table.add_row(name, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}")
    table.add_row("start of up -> first training step", f"{statistics.median(starts):.1f}", "", "")
    Console().print(table)
    print(f"processes left after destroy: {len(left)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
