"""Small real runs whose machines are killed, frozen, moved and asked to leave, for benchmarks/faults.py."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from tests.gcs import Faults, failing_proxy, fake_gcs_server
from tests.trainer.google_vm import into_bucket
from tests.trainer.running import ROOT, Run
from tests.warm import Process, start
from trainer.runs.records import FINAL_STATES, MachineStatus

PATIENCE = 180.0  # seconds for a run to continue, or to end
STEPS = {False: 1500, True: 800}  # with parameter servers all wait for all, so fewer steps take as long


@dataclass(frozen=True)
class Setup:
    """A kind of run."""

    trainers: int
    servers: int
    least: int  # the fewest trainers that take a step
    google: bool = False  # the bucket is on a storage server, which may answer 503
    processes: int = 1  # of each trainer machine
    fsdp: bool = False  # whether these share the parameters

    @property
    def steps(self) -> int:
        return STEPS[self.servers > 0]

    def __str__(self) -> str:
        least = f", at least {self.least} trainers" if self.least < self.trainers else ""
        each = f" of {self.processes} processes{' (fsdp)' if self.fsdp else ''}" if self.processes > 1 else ""
        return f"{self.trainers} trainers{each}, {self.servers} servers{least}{', gs://' if self.google else ''}"


@dataclass
class Fault:
    kind: str
    machines: list[str]
    begun: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # the time without a new step
    repeated: int = 0  # the steps that were taken twice

    @property
    def role(self) -> str:
        roles = {name.split("-")[0] for name in self.machines}
        return "several" if len(roles) > 1 else f"{len(self.machines)} × {roles.pop()}"


@dataclass
class Storages:
    """A way to a storage server that may fail."""

    failing: str  # host:port
    faults: Faults


@contextmanager
def storages(folder: Path) -> Iterator[Storages]:
    """Serve a storage that may fail. Raise ToolError if there is no fake-gcs-server."""
    with fake_gcs_server(folder / "storage.log") as direct, failing_proxy(direct) as (failing, faults):
        before = os.environ.get("STORAGE_EMULATOR_HOST")
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://{direct}"  # this process uses no proxy, machines do
        try:
            yield Storages(failing, faults)
        finally:
            del os.environ["STORAGE_EMULATOR_HOST"]
            os.environ |= {"STORAGE_EMULATOR_HOST": before} if before is not None else {}


class DisturbedMachines:
    """The machines of a run, and the faults that can happen to them."""

    def __init__(
        self, folder: Path, setup: Setup, storages: Storages | None = None, steps: int = 0, *, forked: bool = False
    ) -> None:
        """Declare a run. forked: its processes start quickly, by a fork (tests/warm.py)."""
        steps, self._forked = steps or setup.steps, forked
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
                "processes": setup.processes,
                "threads": 1,
            },
            parallel={"parallelism": "fsdp"} if setup.fsdp else {},
        )
        if setup.google:
            bucket = f"bucket-{uuid.uuid4().hex[:12]}"
            gcs.Client(project="test", credentials=AnonymousCredentials()).create_bucket(bucket)
            into_bucket(self.run, f"gs://{bucket}")
        self.names = [name for name, _ in self.run.spec.cluster.machines()]
        self._roles = dict(self.run.spec.cluster.machines())
        self._places = dict.fromkeys(self.names, 1)
        self.processes: dict[str, Process | subprocess.Popen[bytes]] = {}
        self.seen: set[int] = set()  # every process that was ever there
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
            self.processes[name] = start(command, ROOT, environment, log.fileno(), forked=self._forked)
        self.seen.add(self.processes[name].pid)

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
        """Return the step that each training machine reports; machines that do not train are left out."""
        found = {name: self.machine(name) for name in self.names}
        return {
            name: machine.step
            for name, machine in found.items()
            if machine is not None and machine.message == "training" and machine.trainer_pid in self.computing(name)[:1]
        }

    def computing(self, name: str) -> list[int]:
        """Return the processes that compute on this machine, the first one first; none while there is none."""
        found: list[int] = []
        parents = [self.processes[name].pid]
        for parent in parents:  # it grows: the first process starts the others
            with suppress(OSError):
                tasks = Path(f"/proc/{parent}/task").iterdir()
                children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
                found += children
                parents += children
        self.seen.update(found)
        return found

    def all_of(self, name: str) -> list[int]:
        return [self.processes[name].pid, *self.computing(name)]

    # -- faults ----------------------------------------------------------------------------------------------------

    def kill_process(self, names: list[str], chance: random.Random) -> None:
        """Kill one of each machine's processes."""
        for name in names:
            send(chance.sample(self.computing(name), 1), signal.SIGKILL)

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
        self._freeze(names, chance.uniform(1, 8), chance)

    def freeze_long(self, names: list[str], chance: random.Random) -> None:
        """Freeze machines for longer than the time-out of a collective."""
        self._freeze(names, chance.uniform(32, 45), chance)

    def _freeze(self, names: list[str], seconds: float, chance: random.Random) -> None:
        """Freeze machines as a whole, or all that computes there."""
        whole = chance.random() < 0.5
        frozen = [pid for name in names for pid in (self.all_of(name) if whole else self.computing(name))]
        send(frozen, signal.SIGSTOP)
        time.sleep(seconds)
        send(frozen, signal.SIGCONT)

    def notice_process(self, names: list[str], chance: random.Random) -> None:
        """Ask each machine's first process to leave, as its supervisor would."""
        for name in names:
            send(self.computing(name)[:1], signal.SIGTERM)

    def notice_machine(self, names: list[str], chance: random.Random) -> None:
        """Ask machines to leave, wait until they do, and start them again."""
        for name in names:
            self.processes[name].terminate()
        for name in names:
            code = self.processes[name].wait(PATIENCE)
            self.ended += [f"{name} was asked to leave and ended with {code}"] if code else []
            self.start(name)

    def storage_away(self, names: list[str], chance: random.Random) -> None:
        """Let storage answer most requests of all machines with 503."""
        assert self._storages is not None
        share, draw = chance.uniform(0.5, 1), random.Random(chance.random())  # noqa: S311
        self._storages.faults.before = lambda method, path: 503 if draw.random() < share else None
        time.sleep(chance.uniform(2, 10))
        self._storages.faults.before = lambda method, path: None

    def disk_full(self, names: list[str], chance: random.Random) -> None:
        """Let no process of these machines make a file longer, logs included, as on a full disk."""
        pids = [pid for name in names for pid in self.all_of(name)]
        for pid in pids:
            limit_files(pid, 0)
        time.sleep(chance.uniform(2, 8))
        for pid in {*pids, *(pid for name in names for pid in self.all_of(name))}:
            limit_files(pid, resource.RLIM_INFINITY)

    # -- the end ---------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until all machines have left, but at most PATIENCE seconds."""
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


KINDS: dict[str, tuple[Callable[[DisturbedMachines, list[str], random.Random], None], float]] = {
    "kill -9, process": (DisturbedMachines.kill_process, 5),  # and its frequency, relative to the others
    "kill -9, machine": (DisturbedMachines.kill_machine, 5),
    "notice, process": (DisturbedMachines.notice_process, 3),
    "notice, machine": (DisturbedMachines.notice_machine, 3),
    "frozen 1 to 8 s": (DisturbedMachines.freeze, 4),
    "frozen 32 to 45 s": (DisturbedMachines.freeze_long, 1),
    "another address": (DisturbedMachines.move, 3),
    "disk full": (DisturbedMachines.disk_full, 3),
    "storage 503": (DisturbedMachines.storage_away, 12),
}


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def limit_files(pid: int, size: int) -> None:
    with suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
