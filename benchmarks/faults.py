"""Disturb small real runs with random faults, and measure the cost: `python -m benchmarks.faults [--faults 200]`.

Every run must end SUCCEEDED with the losses of the undisturbed run: bit-equal with one or two trainers, or if all
trainers took all steps; else within 1e-4. Its model and checkpoints must be whole, and no process may be left. Apart
from timing, a run depends on the seed and its number alone: `--run 7` repeats run 7. The folder of a failed run is
kept, and the output names it.

The table counts the seconds without a new step, from one fault to the next, and the steps that were taken twice.
"""

import argparse
import hashlib
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.disturbed import KINDS, PATIENCE, DisturbedMachines, Fault, Setup, Storages, storages
from tests.trainer.running import Run
from trainer.contract import paths
from trainer.runs.records import Record
from trainer.storage import manifest

KINDS_OF_LOSS = ("loss", "validation_loss")
SUMMED = 1e-6  # nats: each trainer sums its part of an evaluation, so the order depends on how many there are
TWICE = 0.5  # seconds between two records of a step that was taken twice; another member's copy comes sooner
CLOSE = 1e-4  # nats, for losses; if the batch was cut for another number of trainers, sums have another order


def draw(machines: DisturbedMachines, chance: random.Random, but: Collection[str]) -> Fault:
    not_here = "disk full" if machines.setup.google else "storage 503"
    weights = {kind: weight for kind, (_, weight) in KINDS.items() if kind not in (*but, not_here)}
    kind = chance.choices(list(weights), list(weights.values()))[0]
    role = chance.choice(sorted({name.split("-")[0] for name in machines.names}))
    of_role = [name for name in machines.names if name.startswith(role)]
    how_many = chance.random()
    if kind == "storage 503":
        names = machines.names
    elif how_many < 0.7:
        names = [chance.choice(of_role)]
    elif how_many < 0.85:
        names = of_role
    else:
        names = chance.sample(machines.names, chance.randint(1, len(machines.names)))
    return Fault(kind, names)


def back(machines: DisturbedMachines, before: dict[str, int]) -> bool:
    """Return whether every machine reports another step than before the fault."""
    now = machines.steps()
    return len(now) == len(machines.names) and all(now[name] != before.get(name) for name in now)


def until(condition: Callable[[], bool], machines: DisturbedMachines, what: str) -> None:
    """Wait for a condition, or for the run's end. Raise RuntimeError after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not machines.over() and not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.2)


def pause(seconds: float, enough: Callable[[], bool]) -> None:
    """Wait for some seconds, or until `enough`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not enough():
        time.sleep(0.05)


def measure(run: Run, faults: list[Fault]) -> None:
    """Set the cost of each fault by the records of all steps, also of those that were taken again."""
    records = sorted((r for r in all_records(run) if r.learning_rate is not None), key=lambda record: record.time)
    first = {record.step: record.time for record in reversed(records)}
    for fault, following in zip(faults, [*faults[1:], None], strict=True):
        end = following.begun if following is not None else math.inf
        step, last = max((r.step for r in records if r.time <= fault.begun), default=0), fault.begun
        for record in records:
            if fault.begun < record.time <= end:
                fault.repeated += record.time > first[record.step] + TWICE
                if record.step > step:
                    fault.seconds, last, step = max(fault.seconds, record.time - last), record.time, record.step


def all_records(run: Run) -> Iterator[Record]:
    for entry in run.storage.list(paths.metrics(run.spec.run)):
        if paths.is_metrics(entry.path, run.spec.run):
            yield from (Record.model_validate_json(line) for line in run.storage.read(entry.path).splitlines())


def complaints(machines: DisturbedMachines, calm: Run) -> list[str]:
    """Return everything that is wrong, a line each. calm: the same run without faults."""
    run, wrong = machines.run, list(machines.ended)
    status = run.status()
    if status is None or status.state != "SUCCEEDED":
        return [*wrong, f"the run did not succeed: {status}"]
    steps = [record for record in run.records() if record.learning_rate is not None]
    ours, theirs = losses(run), losses(calm)
    setup = machines.setup
    exact = setup.trainers * setup.processes <= 2 or all(record.trainers == setup.trainers for record in steps)
    for kind, allowed in (("loss", 0.0 if exact else CLOSE), ("validation_loss", SUMMED if exact else CLOSE)):
        worst = max((abs(loss - theirs[key]) for key, loss in ours.items() if key[1] == kind), default=0.0)
        if not worst <= allowed:
            wrong.append(f"{kind} differs by up to {worst:.1e}, allowed is {allowed:.0e}")
    if ours.keys() ^ theirs.keys():
        wrong.append(f"records are missing, or too many: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    saved = [entry.path for entry in run.storage.list(paths.checkpoints(run.spec.run))]
    whole = [path.rpartition("/")[0] for path in saved if paths.parse_whole_checkpoint(path)]
    if not whole:
        wrong.append("there is no checkpoint")
    wrong += [line for place in (paths.model(run.spec.run), *whole) for line in damaged(run, place)]
    left = {path.name for path in Path("/proc").glob("[0-9]*") if run.storage.url in command_of(path)}
    left |= {
        str(pid) for pid in machines.seen if command_of(Path("/proc", str(pid)))
    }  # forked processes have another command
    if left:
        wrong.append(f"processes are left: {left}")
    return wrong


def losses(run: Run) -> dict[tuple[int, str], float]:
    """Return each step's training loss and, after an evaluation, its validation loss."""
    found = [(r.step, kind, value) for r in run.records() for kind in KINDS_OF_LOSS if (value := getattr(r, kind))]
    return {(step, kind): value for step, kind, value in found}


def damaged(run: Run, folder: str) -> list[str]:
    try:
        files = manifest.parse(run.storage.read(f"{folder}/{paths.MANIFEST}"))["files"]
        for name, entry in files.items():
            body = run.storage.read(f"{folder}/{name}")
            if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
                return [f"{folder}/{name} is damaged"]
    except (ValueError, FileNotFoundError) as error:
        return [f"{folder}: {error}"]
    return []


def command_of(process: Path) -> str:
    with suppress(OSError):
        return (process / "cmdline").read_text(errors="replace")
    return ""


@dataclass
class RunResult:
    setup: Setup
    faults: list[Fault]
    wrong: list[str]
    seconds: float


@dataclass
class Benchmark:
    """The disturbed runs, and the undisturbed ones with which they are compared."""

    folder: Path
    seed: int
    storages: Storages
    console: Console
    but: Collection[str] = ()  # kinds of faults that are left out
    hurry: float = 0.2  # the fraction of faults that come before all machines are back
    forked: bool = False  # see DisturbedMachines
    calm: dict[tuple[Setup, int], Run] = field(default_factory=dict)

    def undisturbed(self, setup: Setup, steps: int) -> Run:
        """Return the run without faults, in the fewest processes that compute the same bits.

        The two micro-batches of two trainers have the same sum in one process.
        """
        calm = Setup(1, 0, least=1)
        if setup.trainers > 2 or setup.processes > 1:
            servers = min(setup.servers, 1) if setup.trainers > 2 else 0  # two parts have one sum, whoever adds
            calm = replace(setup, servers=servers, least=setup.trainers, google=False)
        key = (calm, steps)
        if key not in self.calm:
            machines = DisturbedMachines(
                self.folder / f"calm-{len(self.calm)}-{steps}", calm, self.storages, steps, forked=self.forked
            )
            try:
                for name in machines.names:
                    machines.start(name)
                machines.wait()
            finally:
                machines.close()
            if machines.ended or machines.step() < steps:
                raise SystemExit(f"a run without faults failed: {machines.ended}; see {machines.folder}")
            self.calm[key] = machines.run
        return self.calm[key]

    def once(self, number: int, setup: Setup, most: int, steps: int = 0, planned: Sequence[Fault] = ()) -> RunResult:
        """Do one run with at most `most` faults. The first ones are those that are planned."""
        begun, chance = time.monotonic(), random.Random(f"{self.seed}/{number}")  # noqa: S311
        calm = self.undisturbed(setup, steps or setup.steps)
        machines = DisturbedMachines(self.folder / f"run-{number}", setup, self.storages, steps, forked=self.forked)
        faults: list[Fault] = []
        try:
            wrong = []
            try:
                self._disturb(machines, chance, most, faults, planned)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                wrong.append(str(error))
            else:
                machines.wait()
        finally:
            machines.close()
        with suppress(FileNotFoundError):
            wrong += complaints(machines, calm)
        measure(machines.run, faults)
        outcome = RunResult(setup, faults, wrong, time.monotonic() - begun)
        verdict = "; ".join(wrong) + f" (see {machines.folder})" if wrong else "as undisturbed"
        self.console.print(f"run {number}, {setup}: {len(faults)} faults, {outcome.seconds:.0f} s: {verdict}")
        if not wrong:
            shutil.rmtree(machines.folder)
        return outcome

    def _disturb(
        self,
        machines: DisturbedMachines,
        chance: random.Random,
        most: int,
        faults: list[Fault],
        planned: Sequence[Fault],
    ) -> None:
        """Start the machines and cause faults, which go into `faults`, until the run is over or there are `most`."""
        begun = time.time()
        for name in machines.names:
            machines.start(name)
        until(lambda: len(machines.steps()) == len(machines.names), machines, "the first step")
        late = chance.random() < 0.3 and not planned  # the last fault waits for the end
        while len(faults) < most and not machines.over():
            if late and len(faults) == most - 1:
                last = machines.run.spec.hyperparameters.steps - 5
                until(lambda last=last: machines.step() >= last, machines, "the last steps")  # type: ignore[misc]
            fault = planned[len(faults)] if len(faults) < len(planned) else draw(machines, chance, self.but)
            what = f"{fault.kind}: {', '.join(fault.machines)}"
            until(lambda fault=fault: all(map(machines.computing, fault.machines)), machines, what)  # type: ignore[misc]
            fault.begun, before = time.time(), machines.steps()
            self.console.print(f"  {fault.begun - begun:.0f} s, step {machines.step()}: {what}")
            faults.append(fault)
            KINDS[fault.kind][0](machines, fault.machines, chance)
            # On a fast machine the next fault comes sooner, so that all find steps that are still to be taken.
            steps = machines.run.spec.hyperparameters.steps * len(faults) // (most + 1)
            if chance.random() < self.hurry:
                pause(chance.uniform(0, 4), lambda steps=steps: machines.step() >= steps)  # type: ignore[misc]
            else:
                until(lambda before=before: back(machines, before), machines, f"{what}: to be over")  # type: ignore[misc]
                pause(chance.uniform(0, 2), lambda steps=steps: machines.step() >= steps)  # type: ignore[misc]


def setup_of(chance: random.Random) -> Setup:
    trainers, servers = chance.choice([(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
    least, google = chance.choice([1, trainers]), chance.random() < 0.25
    processes = chance.choice([1, 2]) if trainers <= 2 else 1
    return Setup(trainers, servers, least, google, processes, fsdp=processes > 1 and chance.random() < 0.5)


def _setup(text: str) -> Setup:
    """Read an argument such as 2x2x1-fsdp."""
    numbers, _, fsdp = text.partition("-")
    trainers, processes, servers = map(int, numbers.split("x"))
    return Setup(trainers, servers, least=1, processes=processes, fsdp=fsdp == "fsdp")


def table(outcomes: list[RunResult]) -> Table:
    """Return the cost of each kind of fault, by role. The column failed counts faults in runs that ended wrongly."""
    shown = Table(title="the cost of faults: seconds without a new step, steps taken twice")
    for column in ("fault", "role", "count", "median s", "longest s", "median steps", "most steps", "failed"):
        shown.add_column(column, justify="left" if column in ("fault", "role") else "right")
    found: dict[tuple[str, str], list[Fault]] = {}
    failed = {id(fault) for outcome in outcomes if outcome.wrong for fault in outcome.faults}
    for fault in (fault for outcome in outcomes for fault in outcome.faults):
        found.setdefault((fault.kind, fault.role), []).append(fault)
    for (kind, role), faults in sorted(found.items(), key=lambda item: (list(KINDS).index(item[0][0]), item[0][1])):
        seconds, steps = [fault.seconds for fault in faults], [fault.repeated for fault in faults]
        figures = [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}", f"{statistics.median(steps):.0f}"]
        bad = sum(id(fault) in failed for fault in faults)
        shown.add_row(kind, role, str(len(faults)), *figures, str(max(steps)), str(bad))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="number of faults in all (default: %(default)s)")
    parser.add_argument("--each", type=int, default=12, help="most faults in one run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--run", type=int, help="only the run with this number")
    parser.add_argument(
        "--setup",
        type=_setup,
        help="only runs of so many trainers, processes each and servers, such as 2x2x1 or 2x2x0-fsdp",
    )
    options = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160, soft_wrap=True)
    outcomes, begun = list[RunResult](), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with storages(folder) as storage:
        benchmark = Benchmark(folder, options.seed, storage, console)
        for number in count(1) if options.run is None else [options.run]:
            done = sum(len(outcome.faults) for outcome in outcomes)
            if done >= options.faults:
                break
            console.print(f"{done} of {options.faults} faults, {time.monotonic() - begun:.0f} s")
            setup = options.setup or setup_of(random.Random(f"{options.seed}/{number}/setup"))  # noqa: S311
            outcomes.append(benchmark.once(number, setup, min(options.each, options.faults - done)))
    console.print(table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.wrong]
    done = sum(len(outcome.faults) for outcome in outcomes)
    seconds = time.monotonic() - begun
    console.print(f"{done} faults in {len(outcomes)} runs, {seconds:.0f} s; {len(failed)} runs ended wrongly")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
