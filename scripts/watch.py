"""Follow a training run: state, progress, losses, speed, machines and last log lines, live.

Exit code: 0 the run succeeded, 1 it failed, 3 it was stopped, 4 no machine is alive, 130 Ctrl-C (the run continues),
2 a mistake in the command. With --once, 0 also means that the run is running.
"""

import argparse
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scripts.support import render
from scripts.support.common import UserError, add_run_arguments, bucket_url, find_run, load_stack, run_main
from scripts.support.run_files import RunFiles, Snapshot, UnreadableRun
from scripts.support.whereabouts import whereabouts
from trainer.contract import paths
from trainer.contract.wording import duration
from trainer.runs.trials import Trial
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage

SUCCEEDED, FAILED, STOPPED, NOT_ALIVE, INTERRUPTED = 0, 1, 3, 4, 130
WAIT_FOR_RUN = 20.0  # seconds until there must be a run to follow
TROUBLE = 120.0  # seconds for which a bucket may be out of reach
PATIENCE = 5.0  # seconds until a bucket that does not answer is reported
LINE_EVERY = 10.0  # seconds between lines, where there is no terminal
LAST_WORDS = 20  # lines of log after a failure
Clock = Callable[[], float]
Sleep = Callable[[float], None]
Ask = Callable[[Snapshot], list[str]]  # why machines are missing, a line each


class PlainLines:
    """A view of the run as lines for a log.

    It prints every change of state, evaluation and event of a machine, and otherwise a line every LINE_EVERY seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ""
        self._evaluated: int | None = None
        self._machines: dict[str, tuple[str, int, bool]] = {}  # state, restarts, late
        self._last_line = -math.inf
        self._notes: list[str] = []
        self._whereabouts: list[str] = []
        self._presence = ""
        self._trials: list[Trial] | None = None

    def show(self, snapshot: Snapshot, note: str = "") -> None:
        lines = []
        state = snapshot.state + (f": {snapshot.status.reason}" if snapshot.status and snapshot.status.reason else "")
        if state != self._state:
            lines.append(f"{snapshot.run} {state}")
            self._state = state
        if (presence := render.presence(snapshot)) != self._presence:
            lines.append(f"{presence or 'all machines'} there")
            self._presence = presence
        lines += [line for line in whereabouts(snapshot) if line not in self._whereabouts]
        self._whereabouts = whereabouts(snapshot)
        lines += [line for line in note.splitlines() if line not in self._notes]
        self._notes = note.splitlines()
        for machine in snapshot.machines:
            now = machine.status.state, machine.status.restarts, machine.late
            before = self._machines.get(machine.status.name)
            if now == before or snapshot.final:
                continue
            silent = f", not heard for {render.ago(machine.age)}" if machine.late else ""
            lines.append(render.machine_line(machine) + silent)
            self._machines[machine.status.name] = now
        if snapshot.spec.sweep is not None:
            shown = snapshot.trials if self._trials is None else self._trials
            new = [trial for trial in snapshot.trials if trial not in shown]  # new, or repeated with another result
            lines += [render.trial_line(trial, snapshot.spec.sweep) for trial in new]
            self._trials = snapshot.trials
        if snapshot.evaluations and (last := snapshot.evaluations[-1]).step != self._evaluated:
            self._evaluated, self._last_line = last.step, snapshot.now
            lines.append(render.progress_line(snapshot))
        elif snapshot.now - self._last_line >= LINE_EVERY and not snapshot.final:
            self._last_line = snapshot.now
            lines.append(render.progress_line(snapshot))
        for line in lines:
            at = time.strftime("%H:%M:%S", time.localtime(snapshot.now))
            self._console.print(f"{at} {line}", soft_wrap=True, highlight=False, markup=False)


class LivePicture:
    """A view of the run as one picture that is redrawn in place."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live

    def show(self, snapshot: Snapshot, note: str = "") -> None:
        drawn = render.picture(snapshot, self._console.width, self._console.height - 1, note)
        self._live.update(Group(drawn, Text()), refresh=True)  # an empty line, for the ^C that a terminal writes


def follow(files: RunFiles, view: PlainLines | LivePicture, *, ask: Ask | None, clock: Clock, sleep: Sleep) -> Snapshot:
    """Show the run until it ends or no machine is alive.

    Raise StorageError or OSError if the bucket cannot be read for longer than TROUBLE seconds.
    """
    pause = 3.0 if files.storage.url.startswith("gs://") else 1.0
    began = clock()
    read: Snapshot | None = None
    while True:
        try:
            snapshot, note = files.read(), ""
            read, read_at = snapshot, clock()
        except (StorageError, OSError) as error:
            if read is None or clock() - read_at > TROUBLE:
                raise
            snapshot, note = read, f"the bucket cannot be read ({error}); trying again"
        view.show(snapshot, "\n".join(_notes(snapshot, note, ask)))
        if snapshot.final or (not snapshot.alive and clock() - began > files.patience.watched):
            return snapshot
        sleep(pause)


def _notes(snapshot: Snapshot, trouble: str, ask: Ask | None) -> list[str]:
    """Return lines that a person should know in addition to the figures."""
    notes = [trouble] if trouble else []
    if snapshot.unreadable and not trouble:
        notes = [f"{snapshot.unreadable} lines of metrics are not understood: written by another version?"]
    if snapshot.final or trouble:
        return notes
    if not snapshot.heard and not notes:
        notes.append(_silence(snapshot))
    elif snapshot.quiet is not None:
        notes.append(f"no step for more than {snapshot.quiet // 60:.0f} min")  # a new line in a log each minute
    if ask is not None and (snapshot.state == "PROVISIONING" or render.presence(snapshot)):
        notes += ask(snapshot)
    return notes


def _silence(snapshot: Snapshot) -> str:
    if not snapshot.machines:
        return "no machine has been heard yet"
    last = min(snapshot.machines, key=lambda m: m.age)
    return f"no machine is at work; last was {last.status.name}, {render.ago(last.age)} ago"


def conclude(snapshot: Snapshot, storage: Storage, console: Console, *, curve: bool, ask: Ask | None = None) -> int:
    """Print the state of the run and return the exit code."""

    def say(line: str | Text) -> None:
        console.print(line, soft_wrap=not console.is_terminal, highlight=False, markup=False)

    status = snapshot.status
    at = f"at step {snapshot.step:,} of {snapshot.total:,}"
    if snapshot.spec.sweep is not None:
        at = f"after {len(snapshot.trials)} of {snapshot.total} trials"
    if snapshot.elapsed is not None:
        at += f" after {duration(snapshot.elapsed)}"
    if curve:
        console.print(Group(*render.final_curve(snapshot, console.width, unigram_entropy(snapshot, storage))))
    code = SUCCEEDED
    if status and snapshot.state == "SUCCEEDED":
        for line in render.summary(snapshot):
            say(line)
        if snapshot.trials:
            console.print(render.trials(snapshot, min(console.width, 110)))
        model = _place(storage, paths.model(snapshot.run))
        console.print(f"model: {model}", soft_wrap=True, highlight=False, markup=False)  # in one piece, to be copied
    elif status and snapshot.state == "FAILED":
        say(Text(f"{snapshot.run} FAILED {at}: {status.reason or 'no reason was given'}", "red"))
        if status.traceback:  # that machine's log ends with the same
            _lines(status.traceback, say)
        else:
            _last_words(snapshot, say)
        code = FAILED
    elif status and snapshot.state == "STOPPED":
        say(Text(f"{snapshot.run} STOPPED {at}: {status.reason or 'no reason was given'}", "yellow"))
        if not status.taken_back:  # else the reason says what to do
            again = f"raise `launch` to {status.launch + 1} in the stack file and run `pulumi up`"
            say(f"{again}: it continues from a checkpoint")
        code = STOPPED
    elif not snapshot.alive:
        again = "`pulumi up` starts machines again"
        if not snapshot.named:
            again = "Google keeps making machines until the deadline of this launch: watch again later"
        say(Text(f"{snapshot.run} {snapshot.state} {at}: {_silence(snapshot)}; {again}", "red"))
        for why in ask(snapshot) if ask else []:
            say(why)
        _last_words(snapshot, say)
        code = NOT_ALIVE
    return code


def _last_words(snapshot: Snapshot, say: Callable[[str | Text], None]) -> None:
    machine = render.speaker(snapshot)
    if machine is None:
        return
    ended = machine.status.last_exit
    say(f"last words of {machine.status.name}" + (f" (exit {ended.code}: {ended.reason})" if ended else "") + ":")
    _lines(machine.status.log, say)


def _lines(log: list[str], say: Callable[[str | Text], None]) -> None:
    for line in log[-LAST_WORDS:]:
        if line := render.clean(line):
            say(f"  {line}")


def _place(storage: Storage, path: str) -> str:
    """Return the place of a file of the bucket for a person: a path, relative if possible, or a gs:// address."""
    local = storage.local_path(path)
    if local is None:
        return f"{storage.url}/{path}"
    here = Path.cwd()
    return str(local.relative_to(here) if local.is_relative_to(here) else local)


def unigram_entropy(snapshot: Snapshot, storage: Storage) -> float | None:
    """Return the loss of a model that knows only how frequent each token is, in nats per token, or None if unknown."""
    folder = paths.tokens(snapshot.spec.fingerprint, snapshot.spec.data.tokens_key())
    try:
        return float(json.loads(storage.read(f"{folder}/{paths.MANIFEST}"))["validation"]["unigramEntropy"])
    except (FileNotFoundError, StorageError, OSError, ValueError, KeyError, TypeError):
        return None


def wait_for_run(
    storage: Storage, wanted_run: str | None, console: Console, *, wait: float, clock: Clock, sleep: Sleep
) -> str:
    """Return the run that find_run() finds, and wait up to `wait` seconds for it.

    Raise UserError if it does not appear.
    """
    began, last_message = clock(), ""
    while True:
        try:
            with _slow_bucket_note(storage, console):
                run = find_run(storage, wanted_run)
                if any(entry.path == paths.job(run) for entry in storage.list(paths.run(run))):
                    return run
            missing = f"there is no job.json of {run} in {storage.url}; `pulumi up` (or `make train`) writes it"
        except UserError as error:
            missing = str(error)
        if clock() - began >= wait:
            raise UserError(missing)
        if missing != last_message:
            console.print(
                f"{missing}; waiting up to {wait:.0f} s for it", soft_wrap=True, highlight=False, markup=False
            )
            last_message = missing
        sleep(1.0)


@contextmanager
def _slow_bucket_note(storage: Storage, console: Console) -> Iterator[None]:
    """Print a note if a bucket does not answer, because Google's library tries for two minutes before it gives up."""
    message = f"{storage.url} does not answer; trying for up to two minutes: check the network meanwhile"
    timer = threading.Timer(PATIENCE, lambda: console.print(message, soft_wrap=True, highlight=False, markup=False))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def watch(
    storage: Storage,
    wanted_run: str | None,
    console: Console,
    *,
    once: bool = False,
    curve: bool = False,
    ask: Ask | None = None,
    clock: Clock = time.time,
    sleep: Sleep = time.sleep,
) -> int:
    """Follow a run to its end, or show it once, and return the exit code that the module's docstring explains."""
    run = ""
    try:
        run = wait_for_run(storage, wanted_run, console, wait=0 if once else WAIT_FOR_RUN, clock=clock, sleep=sleep)
        files = RunFiles(storage, run, clock)
        snapshot = files.read()
        if once:
            if not snapshot.final:
                notes = "\n".join(_notes(snapshot, "", ask))
                console.print(render.picture(snapshot, console.width, max(console.height, 40), notes))
        elif snapshot.final:
            console.print(f"{run} has ended already:", highlight=False)
        elif console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
                try:
                    snapshot = follow(files, LivePicture(console, live), ask=ask, clock=clock, sleep=sleep)
                except KeyboardInterrupt:
                    live.transient = False  # the last picture stays
                    raise
        else:
            snapshot = follow(files, PlainLines(console), ask=ask, clock=clock, sleep=sleep)
        return conclude(snapshot, storage, console, curve=curve, ask=ask)
    except KeyboardInterrupt:
        note = f"{run} continues without this watch; `pulumi destroy` would end it" if run else "nothing was started"
        console.print(note, soft_wrap=True, highlight=False)
        return INTERRUPTED
    except (UnreadableRun, StorageError) as error:
        raise UserError(str(error)) from None
    except FileNotFoundError:
        raise UserError(f"the files of {run} are gone from {storage.url}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.watch", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("--once", action="store_true", help="show the run once and leave")
    parser.add_argument("--curve", action="store_true", help="draw the losses over the steps at the end")
    options = parser.parse_args(arguments)
    storage = open_storage(bucket_url(options))
    ask = None if options.bucket else _google(options.stack, storage)
    return watch(storage, options.run, Console(), once=options.once, curve=options.curve, ask=ask)


def _google(stack: str, storage: Storage) -> Ask | None:
    """Return a function that asks Google about a stack's machines, or None for a stack on this machine."""
    if not storage.url.startswith("gs://"):
        return None
    from scripts.support.google_groups import Groups  # 0.1 s of imports that a local stack does not need

    try:
        groups = Groups(load_stack(stack), time.time)
    except UserError as error:  # the run can be followed even if its stack file has errors by now
        unknown = f"cannot say why machines are missing: {error}".splitlines()[:1]
        return lambda _: unknown
    return lambda snapshot: groups.lines(snapshot.spec.launch, {m.status.name for m in snapshot.machines})


if __name__ == "__main__":
    run_main(main)
