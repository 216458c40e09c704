"""The reader of metrics leaves out what a later attempt undid, and reads growing files as whole ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.contract import paths
from trainer.runs.metrics_reader import MetricsReader, read_metrics
from trainer.runs.records import Record
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

RUN = "a-run"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def line(record: Record) -> bytes:
    return json.dumps(record.to_json()).encode() + b"\n"


def write(storage: Storage, number: int, *records: Record, more: bytes = b"") -> None:
    path = paths.metrics_file(RUN, 1, "master-0", 0, number)
    storage.write(path, b"".join(map(line, records)) + more)


def step(number: int, attempt: int = 1, time: float | None = None) -> Record:
    return Record(step=number, time=time or 100.0 * attempt + number, attempt=attempt, loss=float(number))


def taken(records: list[Record]) -> list[tuple[int, int]]:
    """Return the step and the attempt of each record."""
    return [(record.step, record.attempt) for record in records]


def test_steps_that_a_later_attempt_went_back_behind_are_undone(storage: Storage) -> None:
    write(storage, 0, *(step(number) for number in range(1, 9)))
    write(storage, 1, step(4, attempt=2), step(5, attempt=2))
    metrics = read_metrics(storage, RUN)
    assert taken(metrics.steps) == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert [(each.number, each.first, each.last, each.began, each.ended) for each in metrics.attempts] == [
        (1, 1, 8, 101.0, 108.0),
        (2, 4, 5, 204.0, 205.0),
    ]


def test_evaluations_of_undone_steps_are_undone(storage: Storage) -> None:
    evaluations = [Record(step=number, time=110.0, attempt=1, validation_loss=1.0) for number in (2, 4)]
    write(storage, 0, *(step(number) for number in range(1, 5)), *evaluations)
    write(storage, 1, step(3, attempt=2))
    assert taken(read_metrics(storage, RUN).evaluations) == [(2, 1)]


def test_step_taken_twice_in_an_attempt_has_its_newest_record(storage: Storage) -> None:
    write(storage, 0, step(1), step(2), step(2, time=500.0))
    assert [record.time for record in read_metrics(storage, RUN).steps] == [101.0, 500.0]


def test_newest_step_is_the_last_that_was_taken(storage: Storage) -> None:
    write(storage, 0, step(1), step(2), step(3), step(2, time=500.0))
    newest = read_metrics(storage, RUN).newest_step
    assert newest is not None
    assert (newest.step, newest.time) == (2, 500.0)


def test_notice_is_no_step_and_is_never_undone(storage: Storage) -> None:
    notice = Record(step=2, time=103.0, attempt=1, notice_seconds=1.5)
    write(storage, 0, step(1), step(2), notice)
    write(storage, 1, step(2, attempt=2))
    metrics = read_metrics(storage, RUN)
    assert metrics.notices == [notice]
    assert taken(metrics.steps) == [(1, 1), (2, 2)]


def test_lines_of_another_version_are_counted_and_an_unfinished_line_is_not(storage: Storage) -> None:
    write(storage, 0, step(1), more=b'{"step": "two"}\n\n{"step": 3, "tim')
    metrics = read_metrics(storage, RUN)
    assert (taken(metrics.steps), metrics.unreadable) == ([(1, 1)], 1)


def test_read_metrics_of_a_number_of_files_reads_the_newest(storage: Storage) -> None:
    for number in range(3):
        write(storage, number, step(number + 1))
    assert taken(read_metrics(storage, RUN, files=1).steps) == [(3, 1)]
    assert taken(read_metrics(storage, RUN, files=2).steps) == [(2, 1), (3, 1)]
    assert read_metrics(storage, "another-run", files=1).newest_step is None


def test_unchanged_file_is_not_read_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    write(storage, 0, step(1))
    reader = MetricsReader(storage, RUN)
    reader.read(storage.list(paths.metrics(RUN)))
    monkeypatch.setattr(storage, "read_generation", lambda _: pytest.fail("it was read again"))
    reader.read(storage.list(paths.metrics(RUN)))
    assert taken(reader.steps) == [(1, 1)]


records_of_a_run = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 4), st.sampled_from(["step", "evaluation", "notice", "unreadable"])),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(records_of_a_run, st.lists(st.integers(1, 7)), st.integers(1, 3), st.data())
def test_reading_growing_files_and_reading_whole_files_agree(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[int, int, str]],
    pauses: list[int],
    members: int,
    data: st.DataObject,
) -> None:
    """A watch reads while several members append; a report reads everything at the end."""
    storage = open_storage(str(tmp_path_factory.mktemp("bucket")))
    watch = MetricsReader(storage, RUN)
    files = [b""] * members
    looks = set(pauses)
    for moment, (number, attempt, kind) in enumerate(records):
        value = {"step": "loss", "evaluation": "validation_loss", "notice": "notice_seconds"}.get(kind)
        record = Record(step=number, time=float(moment), attempt=attempt, **({value: 1.0} if value else {}))
        member = data.draw(st.integers(0, members - 1))
        files[member] += line(record) if value else b'{"step": "?"}\n'
        path = paths.metrics_file(RUN, 1, f"worker-{member}", 0, 0)
        half_a_line = line(record)[:9] if moment in looks else b""
        storage.write(path, files[member] + half_a_line)
        if moment in looks:
            watch.read(storage.list(paths.metrics(RUN)))
            storage.write(path, files[member])
    watch.read(storage.list(paths.metrics(RUN)))
    whole = read_metrics(storage, RUN)
    for name in ("steps", "evaluations", "notices", "attempts", "newest_step", "unreadable"):
        assert getattr(watch, name) == getattr(whole, name), name
