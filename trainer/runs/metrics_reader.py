"""Read a run's metrics, once or again and again while its files grow; trainer/runs/metrics.py writes them.

A run that resumes from a checkpoint takes some steps again, in a new attempt. The records of those that the former
attempt took are undone: once the new attempt has its own record of a step, or has begun before it, they do not count.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from trainer.contract import paths
from trainer.runs.records import Record
from trainer.storage.base import Entry, Storage


@dataclass
class Attempt:
    """The steps that one cluster took, first to last, and when."""

    number: int
    first: int
    last: int
    began: float  # seconds since the epoch: when its first step was done
    ended: float

    def add(self, record: Record) -> None:
        self.first, self.last = min(self.first, record.step), max(self.last, record.step)
        self.began, self.ended = min(self.began, record.time), max(self.ended, record.time)


@dataclass(frozen=True)
class _File:
    generation: int
    parsed: bytes


class MetricsReader:
    """The records of one run, as far as read() has come."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage, self._run = storage, run
        self._files: dict[str, _File] = {}  # by path
        self._steps: dict[int, Record] = {}
        self._evaluations: dict[int, Record] = {}
        self._notices: set[Record] = set()
        self._attempts: dict[int, Attempt] = {}
        self.unreadable = 0  # lines that this version does not understand

    def read(self, entries: Iterable[Entry]) -> None:
        """Take in the new lines of files that are new or have changed; entries that are no metrics are left out."""
        for entry in entries:
            if not paths.is_metrics(entry.path, self._run):
                continue
            cached = self._files.get(entry.path)
            if cached and cached.generation == entry.generation:
                continue
            data, generation = self._storage.read_generation(entry.path)
            before = cached.parsed if cached and data.startswith(cached.parsed) else b""
            whole = data[: data.rfind(b"\n") + 1]  # a line without its end is still being written
            for line in whole[len(before) :].splitlines():
                self._parse(line)
            self._files[entry.path] = _File(generation, whole)

    @property
    def steps(self) -> list[Record]:
        """The training steps in order; of a step that was taken twice, the newest record."""
        return self._valid(self._steps)

    @property
    def evaluations(self) -> list[Record]:
        """The evaluations in order of step, likewise."""
        return self._valid(self._evaluations)

    @property
    def notices(self) -> list[Record]:
        """The notices to leave, in order of time; none is ever undone."""
        return sorted(self._notices, key=lambda record: record.time)

    @property
    def attempts(self) -> list[Attempt]:
        """All attempts that took a step, in order, with the steps that were undone since."""
        return [self._attempts[number] for number in sorted(self._attempts)]

    @property
    def newest_step(self) -> Record | None:
        """The training step that was taken last; a step after it may be there, of before a resume."""
        return max(self._steps.values(), key=lambda record: (record.attempt, record.time), default=None)

    def _parse(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            record = Record.model_validate_json(line)
        except ValidationError:
            self.unreadable += 1
            return
        if record.notice_seconds is not None:  # no step was taken for it
            self._notices.add(record)
            return
        if record.validation_loss is not None:
            _put(self._evaluations, record)
        if record.validation_loss is None or record.loss is not None:
            _put(self._steps, record)
            first = Attempt(record.attempt, record.step, record.step, record.time, record.time)
            self._attempts.setdefault(record.attempt, first).add(record)

    def _valid(self, records: dict[int, Record]) -> list[Record]:
        """Return the records by step, without those of steps behind which a later attempt went back."""
        undone: dict[int, float] = {}  # by attempt: the first step that a later attempt took
        first = math.inf
        for number in sorted(self._attempts, reverse=True):
            undone[number] = first
            first = min(first, self._attempts[number].first)
        return [record for step, record in sorted(records.items()) if step < undone.get(record.attempt, math.inf)]


def _put(records: dict[int, Record], record: Record) -> None:
    """Keep the newest record of a step."""
    before = records.get(record.step)
    if before is None or (before.attempt, before.time) <= (record.attempt, record.time):
        records[record.step] = record


def read_metrics(storage: Storage, run: str, files: int | None = None) -> MetricsReader:
    """Return a run's metrics as they are now. files: read only so many of its newest files, each of up to 256 KiB."""
    entries = sorted(storage.list(paths.metrics(run)), key=lambda entry: entry.updated)
    newest = [entry for entry in entries if paths.is_metrics(entry.path, run)]
    reader = MetricsReader(storage, run)
    reader.read(newest if files is None else newest[-files:])
    return reader
