"""Write a run's report as one HTML page: curves, timeline, cost, samples, settings, and the bucket's other runs.

A run writes this page at its end, as runs/<run>/report.html in its bucket. This command writes it again, even while the
run is running.
"""

import argparse
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from scripts.support.common import UserError, add_run_arguments, bucket_url, find_run, run_main
from trainer.contract import paths
from trainer.report.page import render_page
from trainer.storage.base import Storage, new_file
from trainer.storage.factory import open_storage


def page(storage: Storage, run: str, compare: list[str]) -> str:
    """Return the page as HTML. Raise UserError if a run does not exist or cannot be read."""
    others = [find_run(storage, other) for other in compare]
    try:
        return render_page(storage, run, others)
    except FileNotFoundError:
        raise UserError(
            f"{storage.url} has no job.json of {run} or of a run of --compare; `pulumi up` writes it"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"a run's file has {'.'.join(map(str, first['loc']))}: {first['msg']};"
            " was it written by another version of this project?"
        ) from None


def target(storage: Storage, run: str, path: Path | None) -> Path:
    """Return the page's path: with the run's files if they are on this machine, else in the working directory."""
    return path or storage.local_path(paths.report(run)) or Path(f"report-{run}.html")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description=__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--to", type=Path, metavar="FILE", help="default: report.html of the run, or report-RUN.html if it is on gs://"
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="also draw the validation loss of these runs"
    )
    options = parser.parse_args(arguments)
    storage = open_storage(bucket_url(options))
    run = find_run(storage, options.run)
    with Console(stderr=True).status(f"reading {run}"):
        made = page(storage, run, options.compare)
    path = target(storage, run, options.to)
    try:
        with new_file(path) as file:
            file.write(made.encode())
    except OSError as error:
        raise UserError(f"--to {path}: {error.strerror}") from None
    print(path)


if __name__ == "__main__":
    run_main(main)
