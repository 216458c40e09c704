"""A whole cluster in one process, its members threads: small runs that need no start-up, and members that misbehave."""

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.trainer.running import PATIENCE, Run
from trainer.cluster.lighthouse import Stopping
from trainer.compute import context, process
from trainer.compute.assembly import assemble
from trainer.data.prepare import prepare
from trainer.parallel.diloco_server import DilocoServer
from trainer.parallel.ps_server import PsServer
from trainer.training.member_context import MemberContext

Make = Callable[[MemberContext], context.Runnable]
SEEDED = threading.Lock()  # a model is made from torch's one global seed


class Over(Exception):
    """The test has reached its end and stops the members."""


class Process(process.Process):
    """A Process without signals, which belong to the whole process."""

    def __init__(self, name: str) -> None:
        self.name, self.address, self.said, self._reports = name, "127.0.0.1", [], None
        self._over = threading.Event()
        self._told, self.over = math.inf, False

    def stopping(self) -> bool:
        if self.over:
            raise Over
        return self._over.is_set()

    def stop(self) -> None:
        """Ask the member to leave, as a notice does."""
        self._terminated()
        self._over.set()

    def log(self, line: str) -> None:
        self.said.append(line)


def trainer(made: MemberContext) -> context.Runnable:
    return assemble(made, prepare(made.storage, made.spec.data, made.spec.fingerprint, lambda *_: None))


def server(made: MemberContext, kind: type[PsServer] | None = None) -> PsServer:
    kind = kind or (DilocoServer if made.spec.parallel.synchronization == "local" else PsServer)
    return kind(made)


def _take_part(run: Run, process: Process, make: Make) -> None:
    made = context.make_context(process, run.storage, run.spec, serves=process.name.startswith("ps-"))
    try:
        with SEEDED:
            member = make(made)
        member.prepare()
        made.membership.join(0.1)
        with suppress(Over):
            try:
                member.run()
            except Stopping:
                member.leave(process.since_told)
    finally:
        made.membership.close()
        made.checkpoints.wait()
        made.journal.metrics.close()
        made.journal.status.close()


def together(
    run: Run,
    makes: Mapping[str, Make] | None = None,
    meanwhile: Callable[[dict[str, Process]], None] | None = None,
) -> dict[str, list[str]]:
    """Take all steps of a run, or work until `meanwhile`, which is called with the members, returns.

    Return the lines that each logged.

    makes: by name, the constructors of members that misbehave.
    """
    processes = {name: Process(name) for name, _ in run.spec.cluster.machines()}
    usual: dict[str, Make] = {name: server if name.startswith("ps-") else trainer for name in processes}
    usual |= makes or {}
    with ThreadPoolExecutor(len(processes)) as threads:
        futures: list[Future[None]] = [
            threads.submit(_take_part, run, process, usual[name]) for name, process in processes.items()
        ]
        try:
            if meanwhile is None:
                for future in futures:
                    future.result(PATIENCE)
            else:
                meanwhile(processes)
        finally:
            for process in processes.values():
                process.over = True
        for future in futures:
            future.result(PATIENCE)
    return {name: process.said for name, process in processes.items()}


def small(folder: Path, steps: int, **overrides: Any) -> Run:
    """Return a run without checkpoints to fall back to, so that a half-done step shows."""
    settings: dict[str, Any] = {
        "hyperparameters": {"steps": steps, "learningRate": 0.001},
        "evaluation": {"every": steps // 2},
        "checkpoints": {"every": 1000},
    }
    for section, values in overrides.items():
        settings[section] = {**settings.get(section, {}), **values}
    return Run(folder, **settings)
