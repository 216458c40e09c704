"""Choose the bucket and the run of a command, show a progress bar, report errors in one line."""

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from infra import load
from infra.stack import config
from scripts.support.run_files import UnreadableRun, declared_run
from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.wording import few
from trainer.storage.base import ByteProgress, Conflict, Storage, StorageError

CHECKOUT = Path(__file__).resolve().parents[2]
USER_ERROR, INTERRUPTED = 2, 130  # exit codes
LOG_SECONDS = 10.0  # between two progress lines where there is no terminal


class UserError(Exception):
    """One line for a person: which argument or file, what was found, what to do."""


def run_main(main: Callable[[], int | None], *errors: type[Exception]) -> NoReturn:
    """Run a command and exit with its code, or with 2 and one line on stderr for an error that the user can fix.

    `errors` are further exceptions whose message is one line for a person.
    """
    user_errors: tuple[type[Exception], ...] = (UserError, InputError, StorageError, Conflict, *errors)
    try:
        code = main() or 0
        sys.stdout.flush()
    except user_errors as error:
        print(f"error: {error}", file=sys.stderr)
        code = USER_ERROR
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback from the exit itself
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains again at its exit
        code = 1
    sys.exit(code)


def add_bucket_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --stack and --bucket, which bucket_url() evaluates."""
    parser.add_argument("--stack", default="local", help="the stack whose bucket to use (default: %(default)s)")
    parser.add_argument("--bucket", metavar="URL", help="gs://bucket or a folder, instead of the stack's own bucket")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --stack, --bucket and --run, which bucket_url() and find_run() evaluate."""
    add_bucket_arguments(parser)
    parser.add_argument(
        "--run",
        action=_RunAction,
        type=run_address,
        metavar="RUN",
        help="the run's id, or its address such as gs://bucket/runs/ID (default: the run that the stack declares)",
    )


def run_address(given: str) -> tuple[str | None, str]:
    """Return the bucket (None if only an id is given) and the id of a run.

    `given` is a run's id, or its address such as gs://bucket/runs/ID. Raise ArgumentTypeError if it is neither.
    """
    bucket, separator, run = given.rstrip("/").rpartition(f"/{paths.RUNS}/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/trials/[0-9]+)?", run):  # or a trial of a sweep
        raise argparse.ArgumentTypeError(f"{given}: write a run's id, or its address such as gs://bucket/runs/ID")
    return bucket if separator else None, run


class _RunAction(argparse.Action):
    """Set the options `run` and `bucket` from a run's address."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, tuple)
        bucket, namespace.run = values
        if bucket is not None:
            namespace.bucket = bucket


def bucket_url(options: argparse.Namespace) -> str:
    """Return the address of the bucket that the options name. Raise UserError if their stack has none."""
    bucket: str | None = options.bucket
    return bucket if bucket else stack_bucket(options.stack)


def stack_bucket(stack: str, checkout: Path | None = None) -> str:
    """Return the address of a stack's bucket. Raise UserError if there is no such stack or it names no project."""
    try:
        return load.bucket_of(stack, checkout or CHECKOUT)
    except config.ConfigError as error:
        raise UserError(f"--stack {stack}: {error.problems[0]}") from None


def load_stack(stack: str, checkout: Path | None = None) -> config.StackConfig:
    """Return the whole configuration of a stack. Raise UserError with its problems, one per line."""
    try:
        return load.from_file(stack, checkout or CHECKOUT)
    except config.ConfigError as error:
        raise UserError(str(error)) from None


def google_stack(stack: str, checkout: Path | None = None) -> config.StackConfig:
    """Return the configuration of a stack on Google Cloud. Raise UserError for any other."""
    stack_config = load_stack(stack, checkout)
    if not stack_config.google:
        raise UserError(f"--stack {stack} runs on this machine; this command is for a stack with platform: google")
    return stack_config


def find_run(storage: Storage, wanted_run: str | None) -> str:
    """Return the id of the wanted run, else of the run that the stack declares, else of the newest run.

    Raise UserError if there is no such run.
    """
    if wanted_run is None:
        try:
            wanted_run = declared_run(storage)
        except UnreadableRun as error:
            raise UserError(str(error)) from None
    if wanted_run is not None:
        if not storage.list(paths.run(wanted_run)):
            raise UserError(f"there is no run {wanted_run} in {storage.url}; runs there: {few(_runs(storage))}")
        return wanted_run
    runs = _runs(storage)
    if not runs:
        raise UserError(f"there is no run in {storage.url} yet; `pulumi up` (or `make train`) starts one")
    return runs[0]


def _runs(storage: Storage) -> list[str]:
    """Return the ids of all runs, the newest first."""
    updated: dict[str, float] = {}
    for entry in storage.list(paths.RUNS):
        run = paths.run_of_status(entry.path) or paths.run_of_job(entry.path)
        if run is not None and paths.sweep_of(run) is None:
            updated[run] = max(entry.updated, updated.get(run, 0))
    return sorted(updated, key=lambda run: -updated[run])


@contextmanager
def progress_bar(title: str, total: int, console: Console | None = None) -> Iterator[ByteProgress]:
    """Show on stderr how many of `total` bytes are done: as a bar on a terminal, as lines in a log.

    Yield a function to call with the number of further bytes.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, last_line, lock = 0, time.monotonic(), threading.Lock()

    def advance(count: int) -> None:
        nonlocal done, last_line
        with lock:
            done += count
            if time.monotonic() - last_line >= LOG_SECONDS:
                last_line = time.monotonic()
                print(f"{title}: {megabytes(done)} of {megabytes(total)}", file=console.file, flush=True)

    yield advance


def megabytes(count: int) -> str:
    """Return a number of bytes as text: `99,999 bytes`, `1.2 MB`."""
    return f"{count:,} bytes" if count < 100_000 else f"{count / 1e6:,.1f} MB"
