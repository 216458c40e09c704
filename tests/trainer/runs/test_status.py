"""status.json: which writers may change it, and that no change is lost."""

import threading
from pathlib import Path

import pytest

from trainer.runs.records import FINAL_STATES, Status
from trainer.runs.status import Fenced, StatusWriter, is_over, read_status, update_status
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage
from trainer.storage.local import FileStorage

RUN = "a-run"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def now(storage: Storage) -> Status:
    status = read_status(storage, RUN)
    assert status is not None
    return status


def test_update_without_a_status_creates_it(storage: Storage) -> None:
    assert read_status(storage, RUN) is None
    assert is_over(storage, RUN, 1) is None
    assert update_status(storage, RUN, 1, state="STARTING").state == "STARTING"
    assert now(storage).launch == 1


def test_update_keeps_the_other_fields(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="RUNNING", step=7, attempt=1, started=100.0)
    update_status(storage, RUN, 1, step=8)
    status = now(storage)
    assert (status.state, status.step, status.attempt, status.started) == ("RUNNING", 8, 1, 100.0)


def test_reason_is_removed_when_the_state_changes(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="RECOVERING", reason="a member was lost")
    update_status(storage, RUN, 1, step=3)
    assert now(storage).reason == "a member was lost"
    update_status(storage, RUN, 1, state="RUNNING")
    assert now(storage).reason == ""


def test_started_time_is_that_of_the_first_leader(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="RUNNING", started=100.0)
    update_status(storage, RUN, 1, state="RUNNING", started=200.0)  # another leader took over
    assert now(storage).started == 100.0


def test_update_by_an_older_attempt_is_fenced(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="RUNNING", step=10, attempt=2)
    with pytest.raises(Fenced, match="attempt 2"):
        update_status(storage, RUN, 1, state="RUNNING", step=11, attempt=1)
    assert now(storage).step == 10
    assert update_status(storage, RUN, 1, step=12, attempt=2).step == 12
    assert update_status(storage, RUN, 1, step=12, attempt=3).attempt == 3


def test_update_by_an_older_launch_is_fenced(storage: Storage) -> None:
    update_status(storage, RUN, 2, state="RUNNING", step=10, attempt=2)
    with pytest.raises(Fenced, match="launch 2"):
        update_status(storage, RUN, 1, state="FAILED", attempt=9)
    assert now(storage).state == "RUNNING"


@pytest.mark.parametrize("final", sorted(FINAL_STATES))
def test_update_of_an_ended_run_is_fenced(storage: Storage, final: str) -> None:
    update_status(storage, RUN, 1, state=final, reason="so it is", finished=1.0)
    with pytest.raises(Fenced, match=final.lower()):
        update_status(storage, RUN, 1, state="RUNNING", attempt=9)
    status = is_over(storage, RUN, 1)
    assert status is not None
    assert (status.state, status.reason) == (final, "so it is")


@pytest.mark.parametrize("final", ["FAILED", "STOPPED"])
def test_update_by_a_raised_launch_starts_an_ended_run_again(storage: Storage, final: str) -> None:
    update_status(storage, RUN, 1, state="RUNNING", step=50, attempt=3, started=1.0)
    update_status(storage, RUN, 1, state=final, reason="so it is", finished=2.0)
    assert is_over(storage, RUN, 2) is None
    update_status(storage, RUN, 2, state="STARTING")
    status = now(storage)
    assert (status.state, status.launch, status.step, status.attempt) == ("STARTING", 2, 50, 3)
    assert (status.reason, status.started, status.finished) == ("", None, None)


def test_update_of_a_succeeded_run_is_fenced_for_every_launch(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="SUCCEEDED")
    with pytest.raises(Fenced):
        update_status(storage, RUN, 2, state="STARTING")
    assert is_over(storage, RUN, 2) is not None


def test_updates_at_the_same_time_are_all_kept(storage: Storage) -> None:
    """Each thread changes a field of its own, many times; a lost update would leave an old value."""
    fields = ["step", "started", "finished", "attempt"]
    update_status(storage, RUN, 1, state="RUNNING", started=0.0)
    errors: list[BaseException] = []

    def change(field: str) -> None:
        try:
            for value in range(1, 21):
                update_status(storage, RUN, 1, **{field: value})
                if field != "started":
                    assert getattr(now(storage), field) == value
        except BaseException as error:  # the test shows the error, not the thread
            errors.append(error)

    threads = [threading.Thread(target=change, args=(field,)) for field in fields]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    status = now(storage)
    assert (status.step, status.finished, status.attempt) == (20, 20.0, 20)


# -- the writer in the background --------------------------------------------------------------------------------------


def test_status_is_written_by_the_leader_alone(storage: Storage) -> None:
    writers = [StatusWriter(storage, RUN, 1, print) for _ in range(2)]
    writers[0].set(leads=True, state="RUNNING", step=5)
    writers[1].set(leads=False, state="RUNNING", step=6)
    for writer in writers:
        writer.close()
    assert now(storage).step == 5


def test_fenced_writer_gives_the_reason(storage: Storage) -> None:
    update_status(storage, RUN, 1, state="RUNNING", attempt=2)
    writer = StatusWriter(storage, RUN, 1, print)
    writer.set(leads=True, state="RUNNING", attempt=1, step=5)
    writer.close()
    assert "attempt 2 is newer" in writer.fenced
    assert now(storage).step == 0


class Away(FileStorage):
    """A bucket that refuses the first writes."""

    refuse = 1

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        if self.refuse:
            self.refuse -= 1
            raise StorageError("cannot write: the disk is full; free some space")
        return super().write(path, data, if_generation=if_generation)


def test_status_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    storage, said = Away(tmp_path), []
    told = threading.Event()

    def log(line: str) -> None:
        said.append(line)
        told.set()

    writer = StatusWriter(storage, RUN, 1, log)
    writer.set(leads=True, state="RUNNING", step=5, attempt=1)
    assert told.wait(30)
    writer.set(step=6)
    writer.close()
    assert said == ["the status could not be written (cannot write: the disk is full; free some space); trying again"]
    assert (now(storage).step, now(storage).attempt) == (6, 1)
