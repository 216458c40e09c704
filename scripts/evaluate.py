"""How good a run's model is at its task, beside what takes no training; --compare puts another run's beside it.

A run with evaluation.task does this at its end, and then it is only shown. For another task, or with --again, the model
is evaluated here. The results lie in the run's folder: evaluation.json, and predictions.jsonl with all answers. Those
of another task than the run's own are only shown.
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
    """What is there, else what is found now; written too if it is of the run's own task. Raises UserError."""
    spec = _spec(storage, run)
    there = scores.read(storage, run)
    own = spec.evaluation.task or (there.task if there else None)
    wanted = task or own
    if wanted is None and spec.data.format != "pairs":
        wanted = "text"  # there is no other
    if wanted is None:
        raise UserError(f"{run} declares no evaluation.task; say which: --task translation, sentiment or questions")
    if problem := format_problem(wanted, spec.data.format or "text"):
        raise UserError(f"{run}: {problem.replace('evaluation.task', '--task').replace(', or remove it', '')}")
    if there is not None and there.task == wanted and not again:
        return there
    prepared = find_prepared(storage, spec.data, spec.fingerprint)
    if prepared is None:
        raise UserError(
            f"the data of {run} is gone from {storage.url}/{paths.DATA}; `make data` with its stack makes it again"
        )
    found, predictions = _evaluate(storage, spec, wanted, prepared, console)
    if own not in (None, wanted):
        console.print(f"{run} is for {own}, and keeps the results of that: these are only shown")
        return found
    scores.write(storage, found, predictions)
    if storage.list(paths.report(run)):
        write_page(storage, run)  # which shows the scores
    return found


def _spec(storage: Storage, run: str) -> JobSpec:
    """The run, as its model was trained."""
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
    import torch  # takes seconds, so after all that can be said without it
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
    """What a run is evaluated on: the scores of two runs of which this differs cannot be compared.

    Answers are text, whatever the tokens. Perplexity is of a token, and lower the more of the text stands before it.
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
    """A row a metric; the better one of several runs is bold, if they can be compared."""
    first = all_scores[0]
    of = "windows of the held-out text" if first.task == "text" else f"pairs of the {first.split} part"
    table = Table(title=f"{first.task}: {first.examples:,} {of}", title_justify="left")
    table.add_column("")
    for each in all_scores:
        table.add_column(each.run, justify="right")
    table.add_column(f"baseline: {escape(first.baseline.name)}", justify="right")
    for metric in first.metrics:
        values = [each.metrics.get(metric) for each in all_scores]
        known = [value for value in values if value is not None]
        best = (min if metric in LOWER else max)(known)
        marked = comparable and len(set(known)) > 1
        cells = [f"[bold]{words(metric, v)}[/]" if marked and v == best else words(metric, v) for v in values]
        table.add_row(NAMES.get(metric, metric), *cells, words(metric, first.baseline.metrics.get(metric)))
    return table


def confusion_table(found: Confusion) -> Table:
    table = Table(title="how often (row) was taken for (column)", title_justify="left")
    table.add_column("")
    for name in found.predicted:
        table.add_column(escape(name), justify="right")
    for label, counts in zip(found.labels, found.counts, strict=True):
        cells = [
            f"[bold]{n:,}[/]" if label == name else f"{n:,}" for n, name in zip(counts, found.predicted, strict=True)
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
            same = next((s.predicted for s in each.samples if s.prompt == sample.prompt), "–")
            answers.append(f"[{'green' if same.strip() == sample.expected.strip() else 'red'}]{escape(same)}[/]")
        end = sample.prompt[-SHOWN:]
        table.add_row(escape(end if end == sample.prompt else f"…{end}"), escape(sample.expected), *answers)
    return table


# -- the command -------------------------------------------------------------------------------------------------------


def _find(options: argparse.Namespace, wanted: tuple[str | None, str] | None) -> tuple[Storage, str]:
    bucket, run = wanted or (None, None)
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
        "--compare", type=run_address, metavar="RUN2", help="another run, side by side; likewise an id or an address"
    )
    parser.add_argument("--again", action="store_true", help="evaluate anew what was evaluated before")
    parser.add_argument("--json", action="store_true", help="print evaluation.json; with --compare, a list of two")
    options = parser.parse_args(arguments)
    stderr = Console(stderr=True)
    runs = [_find(options, options.run)] + ([_find(options, options.compare)] if options.compare else [])
    found: list[Scores] = []
    for storage, run in runs:
        task = options.task or (found[0].task if found else None)  # what is compared is one task
        found.append(scores_of(storage, run, task, again=options.again, console=stderr))
    if options.json:
        plain = [each.to_json() for each in found]
        print(json.dumps(plain if options.compare else plain[0], ensure_ascii=False, indent=1))
        return
    comparable = len({examples(_spec(storage, run)) for storage, run in runs}) == 1
    if not comparable and found[0].task == "text":
        stderr.print("the runs have different text, tokens or sequenceLength: their scores cannot be compared")
    elif not comparable:
        stderr.print("the runs have different data, or parts of it: their scores are not of the same examples")
    show(Console(), found, comparable=comparable)


if __name__ == "__main__":
    run_main(main)
