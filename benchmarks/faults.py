"""Random faults under small real runs, and what each costs: `python -m benchmarks.faults [--faults 200] [--seed 1]`.

Every run must end SUCCEEDED with each step's loss as the undisturbed run has it: bit-equal if all steps were taken by
all trainers, else within 1e-4. Its model and checkpoints must be whole, and no process may be left. A run depends on
the seed and its number alone, but for timing: `--run 7` does run 7 again. What a failed run leaves is kept, and named.

The table counts "seconds" without a new step, from a fault to the next one, and the steps that were taken twice.
"""

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from rich.console import Console
from rich.table import Table

from tests.gcs import Faults, failing_proxy, fake_gcs_server
from tests.trainer.google_vm import into_bucket
from tests.trainer.runs import ROOT, Run
from trainer import manifest
from trainer.spec import FINAL_STATES, MachineStatus, Record

STEPS = {False: 1500, True: 800}  # with parameter servers all wait for all, and less steps last as long
CLOSE = 1e-4  # of losses in nats; where the batch was cut for another number of trainers, sums have another order
PATIENCE = 180.0  # seconds for a run to go on, or to end


@dataclass(frozen=True)
class Setup:
    """What kind of run it is."""

    trainers: int
    servers: int
    least: int  # trainers without which no step is taken
    google: bool = False  # the bucket is a storage server's, which may answer 503

    @property
    def steps(self) -> int:
        return STEPS[self.servers > 0]

    def __str__(self) -> str:
        least = f", at least {self.least} trainers" if self.least < self.trainers else ""
        return f"{self.trainers} trainers, {self.servers} servers{least}{', gs://' if self.google else ''}"


@dataclass
class Fault:
    kind: str
    machines: list[str]
    begun: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # without a new step
    repeated: int = 0  # steps

    @property
    def role(self) -> str:
        return "all" if len(self.machines) > 1 else self.machines[0].split("-")[0]


@dataclass
class Storages:
    """A storage server, and a way to it that may fail."""

    direct: str  # host:port
    failing: str
    faults: Faults


@contextmanager
def storages(folder: Path) -> Iterator[Storages]:
    """Raises ToolError where there is no fake-gcs-server."""
    with fake_gcs_server(folder / "storage.log") as direct, failing_proxy(direct) as (failing, faults):
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://{direct}"  # of this process; machines go through the proxy
        yield Storages(direct, failing, faults)


class Machines:
    """The machines of a run, and all that can happen to them."""

    def __init__(self, folder: Path, setup: Setup, storages: Storages | None = None, steps: int = 0) -> None:
        steps = steps or setup.steps
        self.folder, self.setup, self._storages = folder, setup, storages
        self.run = Run(
            folder / "bucket",
            hyperparameters={"steps": steps, "learningRate": 0.001},
            evaluation={"every": steps // 2},
            checkpoints={"every": 50},
            cluster={
                "workers": setup.trainers - 1,
                "minWorkers": setup.least - 1,
                "parameterServers": setup.servers,
                "threads": 1,
            },
        )
        if setup.google:
            bucket = f"bucket-{uuid.uuid4().hex[:12]}"
            gcs.Client(project="test", credentials=AnonymousCredentials()).create_bucket(bucket)
            into_bucket(self.run, f"gs://{bucket}")
        self.names = [name for name, _ in self.run.spec.cluster.machines()]
        self._roles = dict(self.run.spec.cluster.machines())
        self._places = dict.fromkeys(self.names, 1)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ended: list[str] = []  # machines that ended by themselves and should not have

    def start(self, name: str) -> None:
        # fmt: off
        command = [
            sys.executable, "-m", "trainer", "--bucket", self.run.storage.url, "--run", self.run.spec.run,
            "--name", name, "--role", self._roles[name], "--address", f"127.0.0.{self._places[name]}",
        ]
        # fmt: on
        environment = {**os.environ, "TMPDIR": "/tmp"}  # noqa: S108
        if self._storages is not None:
            environment["STORAGE_EMULATOR_HOST"] = f"http://{self._storages.failing}"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def machine(self, name: str) -> MachineStatus | None:
        try:
            return self.run.machine(name)
        except FileNotFoundError:
            return None

    def over(self) -> bool:
        status = self.run.status()
        return status is not None and status.state in FINAL_STATES

    def step(self) -> int:
        status = self.run.status()
        return 0 if status is None else status.step

    def steps(self) -> dict[str, int]:
        """What each machine that is at work says of itself; others are not there."""
        found = {name: self.machine(name) for name in self.names}
        return {
            name: machine.step
            for name, machine in found.items()
            if machine is not None and machine.message == "training" and machine.trainer_pid in self.computing(name)
        }

    def computing(self, name: str) -> list[int]:
        """The process that computes on this machine, if there is one now."""
        supervisor = self.processes[name].pid
        with suppress(OSError):
            return [int(child) for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]
        return []

    def all_of(self, name: str) -> list[int]:
        return [self.processes[name].pid, *self.computing(name)]

    # -- faults ----------------------------------------------------------------------------------------------------

    def kill_process(self, names: list[str], chance: random.Random) -> None:
        for name in names:
            send(self.computing(name), signal.SIGKILL)

    def kill_machine(self, names: list[str], chance: random.Random) -> None:
        for name in names:
            self.processes[name].kill()
        time.sleep(chance.uniform(0, 3))  # until the platform starts it again
        for name in names:
            self.processes[name].wait()
            self.start(name)

    def move(self, names: list[str], chance: random.Random) -> None:
        for name in names:
            self._places[name] = self._places[name] % 9 + 1
        self.kill_machine(names, chance)

    def freeze(self, names: list[str], chance: random.Random) -> None:
        self._freeze(names, chance.uniform(1, 8), whole=chance.random() < 0.5)

    def freeze_long(self, names: list[str], chance: random.Random) -> None:
        """Longer than the time-out of a collective."""
        self._freeze(names, chance.uniform(32, 45), whole=chance.random() < 0.5)

    def _freeze(self, names: list[str], seconds: float, *, whole: bool) -> None:
        frozen = [pid for name in names for pid in (self.all_of(name) if whole else self.computing(name))]
        send(frozen, signal.SIGSTOP)
        time.sleep(seconds)
        send(frozen, signal.SIGCONT)

    def notice_process(self, names: list[str], chance: random.Random) -> None:
        for name in names:
            send(self.computing(name), signal.SIGTERM)

    def notice_machine(self, names: list[str], chance: random.Random) -> None:
        """It is told to leave, does, and comes back."""
        for name in names:
            self.processes[name].terminate()
        for name in names:
            code = self.processes[name].wait(PATIENCE)
            self.ended += [f"{name} was told to leave and ended with {code}"] if code else []
            self.start(name)

    def storage_away(self, names: list[str], chance: random.Random) -> None:
        """Storage answers most requests of all machines with 503."""
        assert self._storages is not None
        share, draw = chance.uniform(0.5, 1), random.Random(chance.random())
        self._storages.faults.before = lambda method, path: 503 if draw.random() < share else None
        time.sleep(chance.uniform(2, 10))
        self._storages.faults.before = lambda method, path: None

    def disk_full(self, names: list[str], chance: random.Random) -> None:
        """No process of this machine can make a file longer, as on a disk that is full: also its log."""
        pids = [pid for name in names for pid in self.all_of(name)]
        for pid in pids:
            limit_files(pid, 0)
        time.sleep(chance.uniform(2, 8))
        for pid in {*pids, *(pid for name in names for pid in self.all_of(name))}:
            limit_files(pid, resource.RLIM_INFINITY)

    # -- the end ---------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all machines have left, or PATIENCE seconds went by."""
        end = time.monotonic() + PATIENCE
        for name, process in self.processes.items():
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
                self.ended += [f"{name} ended with {code}"] if code else []
            except subprocess.TimeoutExpired:
                self.ended.append(f"{name} is still there {PATIENCE:.0f} s after the last fault")

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()  # its child dies with it
                process.wait()


KINDS: dict[str, tuple[Callable[[Machines, list[str], random.Random], None], float]] = {
    "kill -9, process": (Machines.kill_process, 5),  # and how often, relative to the others
    "kill -9, machine": (Machines.kill_machine, 5),
    "notice, process": (Machines.notice_process, 3),
    "notice, machine": (Machines.notice_machine, 3),
    "frozen 1 to 8 s": (Machines.freeze, 4),
    "frozen 32 to 45 s": (Machines.freeze_long, 1),
    "another address": (Machines.move, 3),
    "disk full": (Machines.disk_full, 3),
    "storage 503": (Machines.storage_away, 12),
}


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def limit_files(pid: int, size: int) -> None:
    with suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def disturb(
    machines: Machines, chance: random.Random, most: int, faults: list[Fault], said: Callable[[Fault], None]
) -> None:
    """Start the machines and let faults happen to them, and into `faults`, until the run is over, or `most` did."""
    for name in machines.names:
        machines.start(name)
    until(lambda: len(machines.steps()) == len(machines.names), machines, "the first step")
    late = chance.random() < 0.3  # the last fault waits for the end
    while len(faults) < most and not machines.over():
        if late and len(faults) == most - 1:
            until(lambda: machines.step() >= machines.run.spec.hyperparameters.steps - 5, machines, "the last steps")
        fault = draw(machines, chance)
        until(lambda fault=fault: all(map(machines.computing, fault.machines)), machines, "a process to be disturbed")  # type: ignore[misc]
        fault.begun, before = time.time(), machines.steps()
        said(fault)
        faults.append(fault)
        KINDS[fault.kind][0](machines, fault.machines, chance)
        if chance.random() < 0.2:  # the next one comes before all are back
            time.sleep(chance.uniform(0, 8))
        else:
            until(lambda: back(machines, before), machines, f"{fault.kind} of {', '.join(fault.machines)} to be over")
            time.sleep(chance.uniform(0, 2))


def draw(machines: Machines, chance: random.Random) -> Fault:
    weights = {kind: weight for kind, (_, weight) in KINDS.items()}
    del weights["disk full" if machines.setup.google else "storage 503"]
    kind = chance.choices(list(weights), list(weights.values()))[0]
    role = chance.choice(sorted({name.split("-")[0] for name in machines.names}))
    names = [name for name in machines.names if name.startswith(role)]
    if kind == "storage 503":
        names = machines.names
    elif len(names) == 1 or chance.random() < 0.75:
        names = [chance.choice(names)]
    return Fault(kind, names)


def back(machines: Machines, before: dict[str, int]) -> bool:
    """Has every machine said that it took another step than before the fault?"""
    now = machines.steps()
    return len(now) == len(machines.names) and all(now[name] != before.get(name) for name in now)


def until(condition: Callable[[], bool], machines: Machines, what: str) -> None:
    """RuntimeError if that does not happen in PATIENCE seconds, though the run goes on."""
    end = time.monotonic() + PATIENCE
    while not machines.over() and not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.2)


def measure(run: Run, faults: list[Fault]) -> None:
    """What each fault cost, as the records of all steps tell: also of those that were taken again."""
    records = sorted(all_records(run), key=lambda record: record.time)
    for fault, following in zip(faults, [*faults[1:], None], strict=True):
        step = max((r.step for r in records if r.time <= fault.begun), default=0)
        last, previous = fault.begun, step
        for record in records:
            if record.time <= fault.begun or (following is not None and record.time > following.begun):
                continue
            fault.repeated += max(0, previous - record.step) + (record.step < previous)
            previous = record.step
            if record.step > step:
                fault.seconds, last, step = max(fault.seconds, record.time - last), record.time, record.step


def all_records(run: Run) -> Iterator[Record]:
    for entry in run.storage.list(f"runs/{run.spec.run}/metrics"):
        if entry.path.endswith(".jsonl"):
            yield from (Record.model_validate_json(line) for line in run.storage.read(entry.path).splitlines())


def complaints(machines: Machines, calm: Run) -> list[str]:
    """All that is not as it must be, a line each. calm: the same run, to which nothing happened."""
    run, wrong = machines.run, list(machines.ended)
    status = run.status()
    if status is None or status.state != "SUCCEEDED":
        return [*wrong, f"the run did not succeed: {status}"]
    steps = [record for record in run.records() if record.learning_rate is not None]
    missing = sorted({*range(1, run.spec.hyperparameters.steps + 1)} - {record.step for record in steps})
    if missing:
        wrong.append(f"{len(missing)} steps have no record, the first is {missing[0]}")
    ours, theirs = (dict(zip((r.step for r in a.records()), losses(a), strict=True)) for a in (run, calm))
    difference = max((abs(ours[step] - theirs[step]) for step in ours), default=0.0)
    allowed = 0.0 if all(record.trainers == machines.setup.trainers for record in steps) else CLOSE
    if not difference <= allowed or (not missing and run.validation() != calm.validation() and not allowed):
        wrong.append(f"losses differ by up to {difference:.1e}, allowed are {allowed}")
    folder = f"runs/{run.spec.run}"
    checkpoints = {entry.path.rsplit("/", 1)[0] for entry in run.storage.list(f"{folder}/checkpoints")}
    whole = [c for c in checkpoints if any(e.path == f"{c}/{manifest.NAME}" for e in run.storage.list(c))]
    if not whole:
        wrong.append("there is no checkpoint")
    wrong += [line for place in (f"{folder}/model", *whole) for line in damaged(run, place)]
    left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if run.storage.url in command_of(pid)]
    if left:
        wrong.append(f"processes are left: {left}")
    return wrong


def losses(run: Run) -> list[float]:
    return [r.validation_loss if r.loss is None else r.loss for r in run.records()]  # type: ignore[misc]


def damaged(run: Run, folder: str) -> list[str]:
    try:
        files = manifest.parse(run.storage.read(f"{folder}/{manifest.NAME}"))["files"]
        for name, entry in files.items():
            body = run.storage.read(f"{folder}/{name}")
            if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
                return [f"{folder}/{name} is damaged"]
    except (ValueError, FileNotFoundError) as error:
        return [f"{folder}: {error}"]
    return []


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


@dataclass
class Outcome:
    setup: Setup
    faults: list[Fault]
    wrong: list[str]
    seconds: float


@dataclass
class Benchmark:
    """Runs, and the undisturbed ones that they are compared with."""

    folder: Path
    seed: int
    storages: Storages
    console: Console
    calm: dict[tuple[int, int, int], Run] = field(default_factory=dict)

    def undisturbed(self, setup: Setup, steps: int) -> Run:
        key = (setup.trainers, setup.servers, steps)
        if key not in self.calm:
            machines = Machines(self.folder / f"calm-{'-'.join(map(str, key))}", setup, self.storages, steps)
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

    def once(self, number: int, setup: Setup, most: int, steps: int = 0) -> Outcome:
        """One run with at most so many faults."""
        begun, chance = time.monotonic(), random.Random(f"{self.seed}/{number}")
        calm = self.undisturbed(replace(setup, google=False), steps or setup.steps)
        machines = Machines(self.folder / f"run-{number}", setup, self.storages, steps)
        faults: list[Fault] = []
        try:
            wrong = []
            try:
                disturb(machines, chance, most, faults, lambda fault: self._say(machines, fault))
            except RuntimeError as error:
                wrong.append(str(error))
            else:
                machines.wait()
        finally:
            machines.close()
        with suppress(FileNotFoundError):
            wrong += complaints(machines, calm)
        measure(machines.run, faults)
        outcome = Outcome(setup, faults, wrong, time.monotonic() - begun)
        verdict = "; ".join(wrong) + f" (see {machines.folder})" if wrong else "as undisturbed"
        self.console.print(f"run {number}, {setup}: {len(faults)} faults, {outcome.seconds:.0f} s: {verdict}")
        if not wrong:
            shutil.rmtree(machines.folder)
        return outcome

    def _say(self, machines: Machines, fault: Fault) -> None:
        self.console.print(f"  step {machines.step()}: {fault.kind}: {', '.join(fault.machines)}")


def setup_of(chance: random.Random) -> Setup:
    trainers, servers = chance.choice([(1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)])
    return Setup(trainers, servers, chance.choice([1, trainers]), google=chance.random() < 0.25)


def table(outcomes: list[Outcome]) -> Table:
    """What each kind of fault cost, by role."""
    shown = Table(title="what faults cost: seconds without a new step, steps taken twice")
    for column in ("fault", "role", "count", "median s", "longest s", "median steps", "most steps"):
        shown.add_column(column, justify="left" if column in ("fault", "role") else "right")
    found: dict[tuple[str, str], list[Fault]] = {}
    for fault in (fault for outcome in outcomes for fault in outcome.faults):
        found.setdefault((fault.kind, fault.role), []).append(fault)
    for (kind, role), faults in sorted(found.items(), key=lambda item: (list(KINDS).index(item[0][0]), item[0][1])):
        seconds, steps = [fault.seconds for fault in faults], [fault.repeated for fault in faults]
        figures = [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
        shown.add_row(kind, role, str(len(faults)), *figures, f"{statistics.median(steps):.0f}", str(max(steps)))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="in all (default: %(default)s)")
    parser.add_argument("--each", type=int, default=12, help="at most in one run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--run", type=int, help="only the run with this number")
    options = parser.parse_args()
    console, outcomes, begun = Console(highlight=False, soft_wrap=True), list[Outcome](), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    with storages(folder) as storage:
        benchmark = Benchmark(folder, options.seed, storage, console)
        for number in count(1) if options.run is None else [options.run]:
            done = sum(len(outcome.faults) for outcome in outcomes)
            if done >= options.faults:
                break
            console.print(f"{done} of {options.faults} faults, {time.monotonic() - begun:.0f} s")
            setup = setup_of(random.Random(f"{options.seed}/{number}/setup"))
            outcomes.append(benchmark.once(number, setup, min(options.each, options.faults - done)))
    console.print(table(outcomes))
    failed = [outcome for outcome in outcomes if outcome.wrong]
    done = sum(len(outcome.faults) for outcome in outcomes)
    console.print(
        f"{done} faults in {len(outcomes)} runs, {time.monotonic() - begun:.0f} s; {len(failed)} runs not as they must be"
    )
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
