"""Show how good a run's model is at its task, compared with a baseline that needs no training and with other runs.

A run with evaluation.task evaluates its model at its end, and this command shows the results. For another task, or with
--again, it evaluates the model itself. The results are in the run's folder: evaluation.json, and predictions.jsonl with
all answers. Results for another task than the run's own are only shown.
"""

import argparse
import json
from collections.abc import Sequence
from typing import cast, get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from scripts.support.common import UserError, add_bucket_arguments, bucket_url, find_run, run_address, run_main
from scripts.support.writing import load, model_folder
from trainer.contract import paths
from trainer.contract.options import Task, format_problem
from trainer.contract.spec import JobSpec
from trainer.data.prepared import Prepared, find_prepared
from trainer.report.page import write_page
from trainer.runs import scores
from trainer.runs.scores import LOWER, NAMES, Confusion, Prediction, Scores, words
from trainer.runs.trials import trained_spec
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

SHOWN = 120  # characters of a prompt's end


def scores_of(storage: Storage, run: str, task: Task | None, *, again: bool, console: Console) -> Scores:
    """Return the scores of a run's model: those in the bucket, or else new ones.

    New scores for the run's own task are written into its folder.

    Args:
        storage: the bucket.
        run: the run's id.
        task: what the model is evaluated at; None for the run's own task.
        again: whether existing scores are ignored.
        console: where progress is shown.

    Raises:
        UserError: if the task is not known or does not suit the data, or if the data is gone.
    """
    # Choose the task.
    spec = _spec(storage, run)
    existing = scores.read(storage, run)
    own = spec.evaluation.task or (existing.task if existing else None)
    wanted_task = task or own
    if wanted_task is None and spec.data.format != "pairs":
        wanted_task = "text"  # the only task for a text
    if wanted_task is None:
        raise UserError(f"{run} declares no evaluation.task; say which: --task translation, sentiment or questions")
    if problem := format_problem(wanted_task, spec.data.format or "text"):
        raise UserError(f"{run}: {problem.replace('evaluation.task', '--task').replace(', or remove it', '')}")
    # Use the existing scores, or evaluate the model.
    if existing is not None and existing.task == wanted_task and not again:
        return existing
    prepared = find_prepared(storage, spec.data, spec.fingerprint)
    if prepared is None:
        raise UserError(
            f"the data of {run} is gone from {storage.url}/{paths.DATA}; `make data` with its stack makes it again"
        )
    new_scores, predictions = _evaluate(storage, spec, wanted_task, prepared, console)
    # Write the scores.
    if own not in (None, wanted_task):
        console.print(f"{run} is for {own}, and keeps the results of that: these are only shown")
        return new_scores
    scores.write(storage, new_scores, predictions)
    if storage.list(paths.report(run)):
        write_page(storage, run)  # the page shows the scores
    return new_scores


def _spec(storage: Storage, run: str) -> JobSpec:
    """Return the run with which the model was trained; for a sweep, this is its best trial."""
    try:
        return trained_spec(storage, JobSpec.model_validate_json(storage.read(paths.job(run))))
    except FileNotFoundError:
        raise UserError(f"{storage.url} has no job.json of {run}; `pulumi up` writes it") from None
    except ValueError:
        raise UserError(f"the job.json of {run} is of another version of this project; use that one") from None


def _evaluate(
    storage: Storage, spec: JobSpec, task: Task, prepared: Prepared, console: Console
) -> tuple[Scores, list[Prediction]]:
    model, _ = load(model_folder(storage, spec.run))
    import torch  # 3 s of imports with all of this, so after all checks that do not need it
    from transformers import GPT2LMHeadModel

    from trainer.evaluation.evaluate import evaluate

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task(f"evaluating {spec.run}", total=None)
        return evaluate(
            cast(GPT2LMHeadModel, model.to("cuda" if torch.cuda.is_available() else "cpu")),
            prepared.tokenizer(),
            spec,
            task,
            prepared,
            lambda done, total: bar.update(line, completed=done, total=total),
        )


def examples(spec: JobSpec) -> tuple[object, ...]:
    """Return a key of the examples that a run is evaluated on. Scores of runs with different keys are not comparable.

    Answers are text, so their tokens do not matter. Perplexity is per token, and is lower with a longer context.
    """
    data = spec.data
    if data.format == "pairs":
        return spec.fingerprint, "test", data.test_fraction, data.skip_bad_lines
    return spec.fingerprint, "validation", data.tokens_key(), spec.hyperparameters.sequence_length


# -- tables ------------------------------------------------------------------------------------------------------------


def show(console: Console, all_scores: Sequence[Scores], *, comparable: bool) -> None:
    first = all_scores[0]
    console.print(metrics_table(all_scores, comparable=comparable))
    if first.truncated:
        console.print(f"{first.truncated:,} prompts were longer than the model knows: their beginnings were cut off")
    if first.confusion is not None:
        console.print(confusion_table(first.confusion))
    if first.samples:
        console.print(samples_table(all_scores))


def metrics_table(all_scores: Sequence[Scores], *, comparable: bool) -> Table:
    """Return a table with a row per metric. The best of several runs is bold if they are comparable."""
    first = all_scores[0]
    examples_kind = "windows of the held-out text" if first.task == "text" else f"pairs of the {first.split} part"
    table = Table(title=f"{first.task}: {first.examples:,} {examples_kind}", title_justify="left")
    table.add_column("")
    for each in all_scores:
        table.add_column(each.run, justify="right")
    table.add_column(f"baseline: {escape(first.baseline.name)}", justify="right")
    for metric in first.metrics:
        values = [each.metrics.get(metric) for each in all_scores]
        known_values = [value for value in values if value is not None]
        best = (min if metric in LOWER else max)(known_values)
        marked = comparable and len(set(known_values)) > 1
        cells = [f"[bold]{words(metric, v)}[/]" if marked and v == best else words(metric, v) for v in values]
        table.add_row(NAMES.get(metric, metric), *cells, words(metric, first.baseline.metrics.get(metric)))
    return table


def confusion_table(confusion: Confusion) -> Table:
    table = Table(title="how often (row) was taken for (column)", title_justify="left")
    table.add_column("")
    for name in confusion.predicted:
        table.add_column(escape(name), justify="right")
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        cells = [
            f"[bold]{n:,}[/]" if label == name else f"{n:,}"
            for n, name in zip(counts, confusion.predicted, strict=True)
        ]
        table.add_row(escape(label), *cells)
    return table


def samples_table(all_scores: Sequence[Scores]) -> Table:
    first = all_scores[0]
    table = Table(title="some answers", title_justify="left", show_lines=True)
    for name in ("prompt", "expected", *(each.run if len(all_scores) > 1 else "answer" for each in all_scores)):
        table.add_column(name)
    for sample in first.samples:
        answers = []
        for each in all_scores:
            answer = next((s.predicted for s in each.samples if s.prompt == sample.prompt), "–")
            answers.append(f"[{'green' if answer.strip() == sample.expected.strip() else 'red'}]{escape(answer)}[/]")
        end = sample.prompt[-SHOWN:]
        table.add_row(escape(end if end == sample.prompt else f"…{end}"), escape(sample.expected), *answers)
    return table


# -- the command -------------------------------------------------------------------------------------------------------


def _find(options: argparse.Namespace, wanted_run: tuple[str | None, str] | None) -> tuple[Storage, str]:
    bucket, run = wanted_run or (None, None)
    storage = open_storage(bucket_url(options) if bucket is None else bucket)
    return storage, find_run(storage, run)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.evaluate", description=__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        type=run_address,
        metavar="RUN",
        help="the run's id, or its address such as gs://bucket/runs/ID (default: the run that the stack declares)",
    )
    add_bucket_arguments(parser)
    parser.add_argument("--task", choices=get_args(Task), help="default: the evaluation.task that the run declares")
    parser.add_argument(
        "--compare", type=run_address, metavar="RUN2", help="another run's id or address, to show side by side"
    )
    parser.add_argument("--again", action="store_true", help="evaluate again, even if there are results already")
    parser.add_argument("--json", action="store_true", help="print evaluation.json; with --compare, a list of two")
    options = parser.parse_args(arguments)
    stderr = Console(stderr=True)
    runs = [_find(options, options.run)] + ([_find(options, options.compare)] if options.compare else [])
    all_scores: list[Scores] = []
    for storage, run in runs:
        task = options.task or (all_scores[0].task if all_scores else None)  # compare runs at the same task
        all_scores.append(scores_of(storage, run, task, again=options.again, console=stderr))
    if options.json:
        plain = [each.to_json() for each in all_scores]
        print(json.dumps(plain if options.compare else plain[0], ensure_ascii=False, indent=1))
        return
    comparable = len({examples(_spec(storage, run)) for storage, run in runs}) == 1
    if not comparable and all_scores[0].task == "text":
        stderr.print("the runs have different text, tokens or sequenceLength: their scores cannot be compared")
    elif not comparable:
        stderr.print("the runs have different data, or parts of it: their scores are not of the same examples")
    show(Console(), all_scores, comparable=comparable)


if __name__ == "__main__":
    run_main(main)
