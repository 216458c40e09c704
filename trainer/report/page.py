"""Write runs/<run>/report.html: a page that shows how a run went, and that loads no other file.

The master writes it each time the run ends, and scripts.report at any time. Everything that is put into the page is
escaped, because log lines, reasons and samples may contain anything. The page's content security policy allows no
request and no script but its own.
"""

import base64
import hashlib
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.settings import changes, settings, written
from trainer.contract.spec import JobSpec
from trainer.contract.wording import duration, printable
from trainer.data.prepared import find_prepared
from trainer.report import timeline
from trainer.report.charts import Chart, Point, Series, chart, smoothed
from trainer.report.figures import Pick, communication_share, costs, figures, headlines, loss, speed, total
from trainer.report.sweep_plot import plot
from trainer.runs import outcome, scores
from trainer.runs.outcome import Outcome
from trainer.runs.records import Record
from trainer.runs.samples import Sample
from trainer.runs.trials import Trial, best_trial, read_trials, trained_spec
from trainer.storage.base import Storage

PAGE = Path(__file__).with_name("page.html")
LAST_RECORDS_SECONDS = 10.0  # how long write_page() waits for the last records of a run
SHOWN_SAMPLES = 6  # the others are folded


def write_page(storage: Storage, run: str) -> None:
    """Write the page of a run that has ended into the run's folder of the bucket."""
    end = time.monotonic() + LAST_RECORDS_SECONDS
    while not _last_records_written(storage, run) and time.monotonic() < end:
        time.sleep(0.5)
    storage.write(paths.report(run), render_page(storage, run).encode())


def _last_records_written(storage: Storage, run: str) -> bool:
    """Return whether the evaluation of the last step can be read.

    If parameter servers write the records, the run's success is known earlier than its last records.
    """
    newest = outcome.read(storage, run, outcome.NEWEST_FILES)
    if newest.spec.sweep is not None:  # a sweep has no records of its own, and each trial's report waited for its own
        return True
    last = newest.evaluations[-1].step if newest.evaluations else 0
    return newest.state != "SUCCEEDED" or last >= newest.spec.hyperparameters.steps


def render_page(storage: Storage, run: str, compare: Sequence[str] = ()) -> str:
    """Return the page of a run, as HTML. The curves of the runs `compare` are drawn together with its own.

    Raise FileNotFoundError if one of the runs is not declared, ValidationError if its job.json is of another version.
    """
    this = outcome.read(storage, run)
    trials = read_trials(storage, run) if this.spec.sweep else []
    if this.spec.sweep and (best := best_trial(this.spec.sweep, trials)):  # show the best trial's curves
        best_run = outcome.read(storage, paths.trial_id(run, best.number))
        this = replace(
            this,
            steps=best_run.steps,
            evaluations=best_run.evaluations,
            attempts=best_run.attempts,
            samples=best_run.samples,
        )
    named = [outcome.read(storage, other) for other in compare if other != run]
    named_runs = {each.spec.run for each in named}
    rest = [each for each in outcome.others(storage, run) if each.spec.run not in named_runs]
    return render(this, named, rest, time.time(), trials, _truncated(storage, trained_spec(storage, this.spec)))


def _truncated(storage: Storage, spec: JobSpec) -> int:
    """Return how many training examples lost the beginning of their prompt."""
    if spec.data.format != "pairs":
        return 0
    with suppress(InputError):  # the data may be damaged since; the page is made without this number
        prepared = find_prepared(storage, spec.data, spec.fingerprint)
        return prepared.truncated("train", spec.hyperparameters.sequence_length) if prepared else 0
    return 0


def render(
    this: Outcome,
    named: Sequence[Outcome],
    rest: Sequence[Outcome],
    now: float,
    trials: Sequence[Trial] = (),
    truncated: int = 0,
) -> str:
    """Return the page as HTML.

    Args:
        this: the run, with the best trial's curves if it is a sweep.
        named: runs whose curves are shown, too.
        rest: runs that are only in the comparison.
        now: the time that the page names, in seconds since 1970.
        trials: the trials of a sweep.
        truncated: the number of training examples that were longer than sequenceLength.
    """
    template = PAGE.read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown, folded = _samples(this.samples)
    html = environment.from_string(template).render(
        script_hash=f"sha256-{digest}",
        run=this.spec.run,
        state=this.state,
        reason=this.status.reason if this.status else "",
        traceback=(this.status.traceback or []) if this.status else [],
        logs=[(m.name, m.log) for m in this.machines if m.log] if this.state == "FAILED" else [],
        headlines=headlines(this),
        figures=figures(this),
        charts=charts(this, named),
        timeline=timeline.timeline(this),
        events=timeline.events(this),
        costs=costs(this),
        total=total(this),
        priced=bool(this.spec.hardware),
        samples=shown,
        folded=folded,
        scores=this.scores,
        truncated=truncated,
        sweep=this.spec.sweep,
        trials=trials,
        best=best_trial(this.spec.sweep, list(trials)) if this.spec.sweep else None,
        plot=plot(this.spec.sweep, list(trials)) if this.spec.sweep else None,
        sharded=this.spec.parallel.parallelism == "fsdp",
        comparison=[(each, each is this, changes(this.spec, each.spec)) for each in (this, *named, *rest)],
        settings={key: list(lines) for key, lines in groupby(settings(this.spec), lambda line: line.section)},
        environments=environments(this),
        spec=this.spec,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        words={
            "loss": loss,
            "duration": duration,
            "speed": speed,
            "metric": scores.words,
            "value": written,
        },
        metric_names=scores.NAMES,
    )
    return printable(html)


def charts(this: Outcome, named: Sequence[Outcome]) -> list[Chart]:
    """Return the charts of a run, without those that have nothing to show."""
    last = this.spec.hyperparameters.steps
    marks = [(float(a.first), f"attempt {a.number} begins") for a in this.attempts[1:]]

    def curve(pick: Pick, records: Iterable[Record] = this.steps) -> list[Point]:
        return [(float(r.step), value) for r in records if (value := pick(r)) is not None]

    def noisy(key: str, title: str, unit: str, pick: Pick, more: Sequence[Series] = (), **how: Any) -> Chart | None:
        points = curve(pick)
        lines = [Series("a step", "raw", points), Series("mean", "line", smoothed(points)), *more]
        return chart(key, title, unit, lines, last, marks=marks, **how)

    # The losses.
    validation = Series("validation", "dots", curve(lambda r: r.validation_loss, this.evaluations), 1)
    made = [noisy("loss", "Loss", "nats a token", lambda r: r.loss, [validation])]
    if named:
        compared = [
            Series(each.spec.run, "dots", curve(lambda r: r.validation_loss, each.evaluations), tint)
            for tint, each in enumerate((this, *named))
        ]
        longest = max(each.spec.hyperparameters.steps for each in (this, *named))
        made.append(chart("compared", "Validation loss of these runs", "nats a token", compared, longest))
    # The optimizer and the hardware.
    made.append(noisy("speed", "Speed", "tokens a second", lambda r: r.tokens_per_second, zero=True))
    rate = Series("learning rate", "line", curve(lambda r: r.learning_rate))
    made.append(chart("rate", "Learning rate", "", [rate], last, zero=True, marks=marks))
    made.append(
        noisy("norm", "Gradient norm", "before clipping, logarithmic", lambda r: r.gradient_norm, logarithmic=True)
    )
    percent = "% of the hardware's peak"
    made.append(noisy("mfu", "MFU", percent, lambda r: None if r.mfu is None else 100 * r.mfu, zero=True))
    # The cluster.
    if any(map(communication_share, this.steps)):
        made.append(
            noisy(
                "network",
                "Waiting for the network",
                "% of a step's time",
                lambda r: 100 * (communication_share(r) or 0),
                zero=True,
            )
        )
    trainers = curve(lambda r: r.trainers)
    if len({count for _, count in trainers}) > 1:
        made.append(chart("trainers", "Trainers", "", [Series("trainers", "line", trainers)], last, zero=True))
    return [each for each in made if each is not None]


def environments(this: Outcome) -> list[tuple[str, dict[str, str]]]:
    """Return (names of machines, their environment). Machines with the same environment share an entry."""
    names_by_environment: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for machine in this.machines:
        if machine.environment:
            names_by_environment.setdefault(tuple(machine.environment.items()), []).append(machine.name)
    return [(", ".join(names), dict(environment)) for environment, names in names_by_environment.items()]


def _samples(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return the samples that are shown, spread from the first to the last, and the rest."""
    if len(samples) <= SHOWN_SAMPLES:
        return samples, []
    chosen = {round(i * (len(samples) - 1) / (SHOWN_SAMPLES - 1)) for i in range(SHOWN_SAMPLES)}
    return [samples[i] for i in sorted(chosen)], [s for i, s in enumerate(samples) if i not in chosen]
