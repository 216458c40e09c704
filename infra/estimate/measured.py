"""Summarize how fast finished runs were, by their own metrics. An estimate prefers that to data sheets.

`scripts.estimate` reads the runs of a stack's bucket and keeps the summaries in artifacts/measured.json, so that a
preview needs no network and says the same twice. A summary names its machine, as a checkout may move to another one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.fleet.catalog import machine_label
from infra.fleet.host import host_label
from infra.sizing import workload
from trainer.contract import geometry, options, paths, spec
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.records import Status
from trainer.runs.status import read_status
from trainer.storage.base import Storage

FILE = "artifacts/measured.json"
Kind = dict[str, str | int | float | bool]
LEAST_STEPS = 50  # a run with fewer tells too little
WARM_UP = 5  # first steps, which are not counted
STALLS = 0.01  # the part of the steps, the slowest, that is not counted: a member was lost, or a machine slept


class Measured(options.Strict):
    """The speed of one finished run, whose trainers all had the same machine.

    machine: the machine in words (RoleMachines.label). finished: seconds since the epoch. steps: how many were counted.
    step_seconds: their mean. communication_seconds: the part of it in which trainers waited for the network.
    tokens: what the busiest trainer computed of a step. kind: see kind_of().
    """

    run: str
    launch: int
    machine: str
    finished: float
    steps: int
    step_seconds: float
    communication_seconds: float
    tokens: int
    flops_a_token: float
    kind: Kind

    @property
    def flops(self) -> float:
        """FLOP/s of one trainer while it does not wait for the network."""
        computing = max(self.step_seconds - self.communication_seconds, 0.05 * self.step_seconds)
        return self.tokens * self.flops_a_token / computing

    @property
    def processes(self) -> int:
        """All processes that computed."""
        return int(self.kind["trainers"]) * int(self.kind.get("processes", 1))


def kind_of(
    size: geometry.Dimensions, hyper: options.Hyperparameters, cluster: spec.Cluster, parallel: options.Parallel
) -> Kind:
    """Return the kind of a run: on the same machines, two runs of one kind take the same time for the same batch."""
    kind: Kind = {
        "layers": size.layers,
        "width": size.width,
        "vocabulary": size.vocabulary,
        "sequenceLength": hyper.sequence_length,
        "precision": hyper.precision,
        "compile": hyper.compile,
        "trainers": cluster.trainers,
        "servers": cluster.parameter_servers,
        "every": parallel.every,
        "parallelism": parallel.parallelism,
    }
    # Keys that older summaries do not have count where they are not the default.
    later = {
        "processes": (cluster.processes, 1),
        "recompute": (hyper.recompute, "none"),
        "wire": (parallel.wire, "fp32"),
    }
    return kind | {key: value for key, (value, default) in later.items() if value != default}


@dataclass(frozen=True)
class Likeness:
    """The newest comparable run on the same machines.

    same: whether it is of the same kind. If not, its FLOP/s can be scaled to another model or number of trainers.
    """

    measured: Measured
    same: bool


def comparable(runs: list[Measured], machine: str, kind: Kind) -> Likeness | None:
    """Return the newest run of a kind on a machine; without one, the newest there that computes in the same way."""
    newest_first = sorted((run for run in runs if run.machine == machine), key=lambda run: -run.finished)
    for run in newest_first:
        if run.kind == kind:
            return Likeness(run, True)
    for run in newest_first:
        if all(run.kind.get(key) == kind.get(key) for key in ("precision", "compile", "parallelism", "recompute")):
            return Likeness(run, False)
    return None


def read(root: Path) -> list[Measured]:
    """Return the runs that a checkout keeps; none if there is no file, or if another version wrote it."""
    try:
        return [Measured.model_validate(run) for run in json.loads((root / FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def write(root: Path, runs: list[Measured]) -> None:
    """Keep the summaries of runs in a checkout, instead of those that it has."""
    path = root / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [run.to_json() for run in sorted(runs, key=lambda run: (run.finished, run.run))]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def collect(storage: Storage, root: Path, known_runs: list[Measured]) -> tuple[list[Measured], int]:
    """Summarize the runs of a bucket that have finished and are not known.

    Return the summaries, and how many runs tell nothing. Raise StorageError.
    """
    seen: set[tuple[str, int]] = {(run.run, run.launch) for run in known_runs}
    fresh, silent = [], 0
    names = {name for entry in storage.list(paths.RUNS) if (name := paths.run_of_status(entry.path))}
    for name in sorted(name for name in names if paths.sweep_of(name) is None):
        try:
            job = spec.JobSpec.model_validate_json(storage.read(paths.job(name)))
            status = read_status(storage, name)
        except (FileNotFoundError, ValidationError):  # written by another version
            silent += 1
            continue
        if status is None or status.state != "SUCCEEDED" or (name, job.launch) in seen:
            continue
        run = measure(storage, job, status, root)
        if run is None:
            silent += 1
        else:
            fresh.append(run)
    return fresh, silent


def measure(storage: Storage, job: spec.JobSpec, status: Status, root: Path) -> Measured | None:
    """Summarize one run.

    None if it tells nothing: too few steps, trainers on different machines, or a model that a checkpoint alone knows.
    root: where a checkpoint's relative path starts.
    """
    size = workload.dimensions_of(job.model, job.data, root)
    machines = {
        machine_label(hardware.machine_type, hardware.accelerator or "", hardware.accelerators)
        for role, hardware in job.hardware.items()
        if role != "ps"
    }
    if storage.url.startswith("file://"):  # a local stack's processes, which ran on this computer
        machines = {host_label()}
    steps = [record for record in read_metrics(storage, job.run).steps if record.step_seconds and record.step > WARM_UP]
    if size is None or len(machines) != 1 or len(steps) < LEAST_STEPS:
        return None
    steps.sort(key=lambda record: record.step_seconds or 0)
    steps = steps[: max(1, round(len(steps) * (1 - STALLS)))]
    hyper, processes = job.hyperparameters, job.cluster.trainers * job.cluster.processes
    return Measured(
        run=job.run,
        launch=job.launch,
        machine=machines.pop(),
        finished=round(status.finished or status.updated),
        steps=len(steps),
        step_seconds=sum(record.step_seconds or 0 for record in steps) / len(steps),
        communication_seconds=sum(record.communication_seconds or 0 for record in steps) / len(steps),
        tokens=geometry.share(hyper, processes).tokens,
        flops_a_token=size.flops_a_token(hyper.sequence_length),
        kind=kind_of(size, hyper, job.cluster, job.parallel),
    )
