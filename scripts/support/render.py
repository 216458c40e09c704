"""Draw a run: the live picture, lines for a log, and the summary at its end. Nothing is read here."""

import textwrap

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.support.curve import loss_curve, sparkline
from scripts.support.run_files import Snapshot, WatchedMachine, perplexity
from scripts.support.whereabouts import whereabouts
from trainer.contract.settings import written
from trainer.contract.spec import Cluster
from trainer.contract.sweep_options import Sweep
from trainer.contract.wording import duration, printable
from trainer.runs.records import State
from trainer.runs.trials import Trial, best_trial

STATE_STYLES: dict[State, str] = {
    "PROVISIONING": "bold blue",
    "STARTING": "bold blue",
    "RUNNING": "bold green",
    "RECOVERING": "bold yellow",
    "SUCCEEDED": "bold green",
    "FAILED": "bold red",
    "STOPPED": "bold yellow",
}
MACHINE_STYLES = {"running": "green", "finished": "green", "failed": "red", "restarting": "yellow", "stopped": "yellow"}
LOG_LINES = 6
WITH_GPUS = 100  # the least width with room for each machine's GPUs


def ago(seconds: float) -> str:
    """Return an age as text: `3 s`, `5 min`, `2 h`, `4 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def number(value: float) -> str:
    """Return a number with three significant digits: `870`, `14.2k`, `1.05M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.{1 if scaled >= 9.995 else 2}f}{unit}"
    return f"{value:.0f}"


def loss_and_perplexity(loss: float) -> str:
    return f"{loss:.3f} (perplexity {number(perplexity(loss)) if loss > 4.6 else f'{perplexity(loss):.1f}'})"


def headline(snapshot: Snapshot) -> Text:
    text = Text.assemble((snapshot.run, "bold"), "  ", (snapshot.state, STATE_STYLES[snapshot.state]))
    if snapshot.status and snapshot.status.attempt > 1:
        text.append(f"  attempt {snapshot.status.attempt}", "dim")
    if snapshot.steps and (trainers := snapshot.steps[-1].trainers) and snapshot.state == "RUNNING":
        all_trainers = snapshot.spec.cluster.trainers
        count = f"{trainers} of {all_trainers} trainers" if trainers < all_trainers else _count(trainers, "trainer")
        text.append(f"  {count}{_in_each(snapshot.spec.cluster)}")
    if presence_text := presence(snapshot):
        text.append(f"  {presence_text}", "yellow")
    return text


def _in_each(cluster: Cluster) -> str:
    """Return what computes in each trainer machine; empty if it is one process on a CPU."""
    each = _count(cluster.gpus, "GPU") if cluster.gpus else f"{cluster.processes} processes"
    return f" x {each}" if cluster.gpus or cluster.processes > 1 else ""


def presence(snapshot: Snapshot) -> str:
    """Return how many machines are present if some are missing that cannot be listed by name, else an empty text."""
    declared = len(snapshot.spec.cluster.machines())
    if snapshot.named or snapshot.final or snapshot.there >= declared:
        return ""
    return f"{snapshot.there} of {_count(declared, 'machine')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _progress(snapshot: Snapshot, width: int) -> Table:
    total = snapshot.total
    done = min(snapshot.step, total)
    progress_text = f"{done:,}/{total:,}{' trials' if snapshot.spec.sweep else ''}  {100 * done // total:3d}%"
    if snapshot.remaining is not None:
        progress_text += f"  ETA {duration(snapshot.remaining)}"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=max(width - len(progress_text) - 2, 10))
    grid.add_column(no_wrap=True)
    grid.add_row(ProgressBar(total=total, completed=done, width=max(width - len(progress_text) - 2, 10)), progress_text)
    return grid


def losses(snapshot: Snapshot, width: int = 1000) -> str:
    """Return train loss and last validation loss in one line, which is empty before the first step."""
    parts = []
    with_loss = [r for r in snapshot.steps if r.loss is not None]
    if with_loss:
        parts.append(f"train loss {with_loss[-1].loss:.3f}")
    if snapshot.evaluations:
        last = snapshot.evaluations[-1]
        assert last.validation_loss is not None
        at = f" at {last.step:,}" if last.step != snapshot.step else ""
        parts.append(f"validation loss {loss_and_perplexity(last.validation_loss)}{at}")
    text = "  ".join(parts)
    return text if len(text) <= width else text.replace("loss ", "").replace("perplexity", "ppl")


def _speed(snapshot: Snapshot) -> str:
    parts = []
    if snapshot.speed is not None:
        parts.append(f"{number(snapshot.speed)} tokens/s")
        parts.append("MFU n/a" if snapshot.mfu is None else f"MFU {snapshot.mfu:.1%}")
    if snapshot.elapsed is not None:
        parts.append(f"elapsed {duration(snapshot.elapsed)}")
    if snapshot.steps and (rate := snapshot.steps[-1].learning_rate) is not None:
        parts.append(f"learning rate {rate:.2g}")
    return "  ".join(parts)


def _machines(snapshot: Snapshot, width: int, most: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim", pad_edge=False, width=width)
    wide = width >= 76
    table.add_column("machine", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("heard", justify="right", no_wrap=True)
    restarts = any(m.status.restarts for m in snapshot.machines)
    if restarts:
        table.add_column("restarts", justify="right", no_wrap=True)
    if wide:
        table.add_column("memory", justify="right", no_wrap=True)
    gpus = snapshot.spec.cluster.gpus > 0 and width >= WITH_GPUS
    if gpus:
        table.add_column("GPUs", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    absent = [] if snapshot.final else snapshot.missing
    shown = snapshot.machines
    if len(shown) + len(absent) > most:  # show machines with problems first
        shown = sorted(shown, key=lambda m: m.status.state in ("running", "finished") and not m.late)
    rows = [_machine_row(m, restarts, wide, gpus, snapshot.final) for m in shown]
    rows += [[name, Text("not there yet", "dim")] for name in absent]
    if len(rows) > most:
        left = len(rows) - (most - 1)
        rows = [*rows[: most - 1], [Text(f"and {left} more", "dim")]]
    for row in rows:
        table.add_row(*row)
    return table


def _machine_row(machine: WatchedMachine, restarts: bool, wide: bool, gpus: bool, final: bool) -> list[Text | str]:
    status = machine.status
    late = machine.late and not final
    row: list[Text | str] = [
        status.name,
        Text(status.state, MACHINE_STYLES.get(status.state, "blue")),
        f"{status.step:,}" if status.step else "",
        Text(f"{ago(machine.age)} ago", "red" if late else ""),
    ]
    if restarts:
        row.append(str(status.restarts or ""))
    if wide:
        row += [f"{status.memory_mb:,} MB" if status.memory_mb is not None else ""]
    if gpus:  # a parameter server uses none, even if the computer has some
        row.append("" if status.role == "ps" else status.environment.get("gpu", "").replace("NVIDIA ", ""))
    return [*row, Text(_words(machine), "dim")]


def _words(machine: WatchedMachine) -> str:
    """Return what a machine is doing, or why it failed."""
    status = machine.status
    if status.message:
        return clean(status.message)
    if status.state in ("failed", "restarting") and status.last_exit:
        return clean(status.last_exit.reason)
    return ""


def clean(line: str) -> str:
    """Without the control characters that progress bars and colours leave in a log."""
    return printable(line.split("\r")[-1].replace("\t", "    ")).rstrip()


def speaker(snapshot: Snapshot) -> WatchedMachine | None:
    """Return the machine whose log is shown: one that failed, else the master, else the first with a log."""
    talking = [m for m in snapshot.machines if m.status.log]
    failed = [m for m in talking if m.status.state == "failed"]
    if failed:
        return max(failed, key=lambda m: m.status.heartbeat)
    return next((m for m in talking if m.status.role == "master"), talking[0] if talking else None)


def log_tail(snapshot: Snapshot, most: int) -> list[Text]:
    machine = speaker(snapshot)
    if machine is None or most < 1:
        return []
    lines = [line for line in map(clean, machine.status.log) if line][-most:]
    shown = [Text(f"  {line}", no_wrap=True, overflow="ellipsis") for line in lines]
    return [Text(f"log of {machine.status.name}", "dim"), *shown]


def picture(snapshot: Snapshot, width: int, height: int, note: str = "") -> Group:
    """Return the whole picture, at most `height` lines high.

    If the height is not enough, the log is cut first, then the machines, then the curve. `note` is a text for a person,
    which is folded to the width.
    """
    # Headline, reason and note.
    parts: list[Text | Table] = [headline(snapshot)]
    reason = snapshot.status.reason if snapshot.status else "waiting for the first machine"
    if reason:
        parts.append(_line(reason, STATE_STYLES[snapshot.state].removeprefix("bold ")))
    where = whereabouts(snapshot)
    parts += [_line(part, "yellow" if part.startswith("waits") else "dim") for part in where[:1] + where[1:][-2:]]
    folded = [part for line in note.splitlines() for part in _folded(line, width)]
    parts += [_line(part, "yellow") for part in folded[: max(height // 3, 1)]]
    # Progress; for a sweep, its trials and the present trial.
    parts.append(_progress(snapshot, width))
    used = len(parts)
    machines_of = snapshot
    if snapshot.trials:
        most = max(height // 3, 3)
        parts += [Text(), trials(snapshot, width, most), Text()]
        used += 3 + min(len(snapshot.trials), most)
    if snapshot.trial is not None:
        snapshot = snapshot.trial
        parts += [
            _line(f"trial {_number(snapshot)}: {_varied(machines_of, snapshot)}"),
            _progress(snapshot, width),
        ]
        used += 2
    # The curve.
    machines = len(machines_of.machines) + (0 if machines_of.final else len(machines_of.missing))
    points = [(float(r.step), r.loss) for r in snapshot.steps if r.loss is not None]
    if points:
        rows = 4 if height >= used + machines + LOG_LINES + 10 else 2
        parts.append(_line(losses(snapshot, width)))
        parts += sparkline(points, snapshot.spec.hyperparameters.steps, width, rows)
        used += 1 + rows
    if speed := _speed(snapshot):
        parts.append(_line(speed))
        used += 1
    # Machines and log, in the remaining lines.
    room = height - used - 3  # minus a blank line, the table's header, and the line of the cursor
    most = max(min(machines, room), 1)
    parts += [Text(), _machines(machines_of, width, most)]
    tail = log_tail(machines_of, min(LOG_LINES, room - most - 2))
    if tail:
        parts += [Text(), *tail]
    return Group(*parts)


def _folded(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)  # zones have hyphens


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def progress_line(snapshot: Snapshot) -> str:
    """Return the run's progress as one line of a log."""
    if snapshot.spec.sweep is not None:
        now = f"  trial {_number(snapshot.trial)}: {progress_line(snapshot.trial)}" if snapshot.trial else ""
        return f"{snapshot.state} {len(snapshot.trials)} of {_count(snapshot.total, 'trial')} done{now}"
    total = snapshot.total
    parts = [f"{snapshot.state} step {snapshot.step:,}/{total:,} ({100 * snapshot.step // total}%)"]
    if loss_text := losses(snapshot):
        parts.append(loss_text)
    elif busy := next((m for m in snapshot.machines if _words(m)), None):
        parts.append(machine_line(busy))
    if snapshot.speed is not None:
        parts.append(f"{number(snapshot.speed)} tokens/s")
    if snapshot.mfu is not None:
        parts.append(f"MFU {snapshot.mfu:.1%}")
    if snapshot.remaining is not None:
        parts.append(f"ETA {duration(snapshot.remaining)}")
    return "  ".join(parts)


def trial_line(trial: Trial, sweep: Sweep) -> str:
    """Return a finished trial as one line of a log."""
    value = "no value" if trial.value is None else f"{sweep.hyperparameter_metric_tag} {trial.value:.4f}"
    varied = ", ".join(f"{name} {written(sampled)}" for name, sampled in trial.parameters.items())
    return f"trial {trial.number} {trial.state}: {value} with {varied}" + (f"; {trial.reason}" if trial.reason else "")


def trials(snapshot: Snapshot, width: int, most: int = 1000) -> Table:
    """Return a table of a sweep's finished trials: the newest `most` of them, and the best one, which is bold."""
    of = snapshot.spec.sweep
    assert of is not None
    first = best_trial(of, snapshot.trials)
    shown = snapshot.trials[-most:]
    if first is not None and first not in shown:
        shown = [first, *shown[1:]]
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim", pad_edge=False, width=width)
    table.add_column("trial", justify="right", no_wrap=True)
    for parameter in of.params:
        table.add_column(parameter.parameter_name, justify="right", no_wrap=True)
    table.add_column(of.hyperparameter_metric_tag, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True, overflow="ellipsis", ratio=1)
    for trial in shown:
        cells = [written(trial.parameters[parameter.parameter_name]) for parameter in of.params]
        value = "–" if trial.value is None else f"{trial.value:.4f}"
        outcome = "best" if trial == first else trial.reason or trial.state.lower()
        style = "bold green" if trial == first else "" if trial.state == "SUCCEEDED" else "yellow"
        table.add_row(str(trial.number), *cells, value, clean(outcome), style=style)
    return table


def _number(trial: Snapshot) -> str:
    """Return the number of a trial. It may be an earlier trial that is repeated."""
    return trial.run.rpartition("/")[2]


def _varied(sweep: Snapshot, trial: Snapshot) -> str:
    """Return the hyperparameters that a sweep varies, with the trial's values."""
    assert sweep.spec.sweep is not None
    values = trial.spec.hyperparameters.to_json()
    names = [parameter.parameter_name for parameter in sweep.spec.sweep.params]
    return ", ".join(f"{name} {written(values.get(name, 'null'))}" for name in names)


def machine_line(machine: WatchedMachine) -> str:
    """Return a machine's state as one line of a log."""
    state_text = _words(machine)
    return f"{machine.status.name} {machine.status.state}" + (f": {state_text}" if state_text else "")


def summary(snapshot: Snapshot) -> list[Text]:
    """Return the lines that end the watch of a successful run."""
    took = f" in {duration(snapshot.elapsed)}" if snapshot.elapsed is not None else ""
    noun = "trial" if snapshot.spec.sweep else "step"
    done = (f"SUCCEEDED: {_count(snapshot.step, noun)}{took}", STATE_STYLES["SUCCEEDED"])
    loss_text = losses(snapshot)
    return [Text.assemble((snapshot.run, "bold"), " ", done), *([Text(f"final {loss_text}")] if loss_text else [])]


def final_curve(snapshot: Snapshot, width: int, unigram: float | None) -> list[Text]:
    """Return the plot of losses over steps, or nothing if there are no losses."""
    train = [(float(r.step), r.loss) for r in snapshot.steps if r.loss is not None]
    validation = [(float(r.step), r.validation_loss) for r in snapshot.evaluations if r.validation_loss is not None]
    if not train and not validation:
        return []
    return loss_curve(train, validation, snapshot.spec.hyperparameters.steps, min(width, 100), 14, unigram)
