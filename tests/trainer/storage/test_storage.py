"""Both storages keep the same promises; tests of only one of them come after those of both."""

import multiprocessing
import os
import re
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gcs import Answer, Faults
from trainer.storage import google, manifest
from trainer.storage import local as storage_module
from trainer.storage.base import Conflict, Refused, Storage, StorageError, Unavailable
from trainer.storage.factory import open_storage
from trainer.storage.local import FileStorage

MEBIBYTE = 1024 * 1024


@pytest.fixture(params=["file", "gs", "gs-folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage((tmp_path / "a bucket").as_uri())
    bucket = request.getfixturevalue("gcs_bucket")
    return open_storage(bucket if request.param == "gs" else f"{bucket}/a folder/")


def noise(size: int, seed: int = 0) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


# Promises of both storages.


def test_read_returns_the_written_bytes_and_their_generation(storage: Storage) -> None:
    generation = storage.write("runs/r/status.json", b"{}")
    assert storage.read("runs/r/status.json") == b"{}"
    assert storage.read_generation("runs/r/status.json") == (b"{}", generation)


def test_generations_grow_also_after_a_deletion(storage: Storage) -> None:
    generations = [storage.write("x", b"same") for _ in range(5)]
    storage.delete("x")
    generations.append(storage.write("x", b"same"))
    assert generations == sorted(set(generations))


def test_deletion_of_a_generation_leaves_a_newer_one(storage: Storage) -> None:
    first = storage.write("x", b"1")
    second = storage.write("x", b"2")
    storage.delete("x", generation=first)
    assert storage.read_generation("x") == (b"2", second)
    storage.delete("x", generation=second)
    storage.delete("x", generation=second)
    with pytest.raises(FileNotFoundError):
        storage.read("x")


def test_write_with_another_generation_than_the_files_is_a_conflict(storage: Storage) -> None:
    first = storage.write("lease", b"a", if_generation=0)
    with pytest.raises(Conflict):
        storage.write("lease", b"b", if_generation=0)
    second = storage.write("lease", b"c", if_generation=first)
    with pytest.raises(Conflict):
        storage.write("lease", b"d", if_generation=first)
    assert storage.read_generation("lease") == (b"c", second)
    storage.delete("lease")
    with pytest.raises(Conflict):
        storage.write("lease", b"e", if_generation=second)


def test_conditional_writes_at_once_have_one_winner_for_each_generation(storage: Storage) -> None:
    generation = storage.write("lease", b"start")
    for _ in range(3):

        def attempt(name: int, expected: int = generation) -> int | None:
            try:
                return storage.write("lease", str(name).encode(), if_generation=expected)
            except Conflict:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = {name: result for name, result in enumerate(pool.map(attempt, range(8))) if result is not None}
        assert len(won) == 1
        [(name, generation)] = won.items()
        assert storage.read_generation("lease") == (str(name).encode(), generation)


def test_absent_file_is_not_found_and_may_be_deleted(storage: Storage) -> None:
    storage.write("folder/file", b"")
    for path in ("nothing", "folder", "folder/file/below"):
        with pytest.raises(FileNotFoundError, match=re.escape(path)):
            storage.read(path)
        assert storage.size(path) is None
        storage.delete(path)
    assert storage.read("folder/file") == b""
    assert storage.size("folder/file") == 0


def test_failed_download_leaves_no_file(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.download("nothing", tmp_path / "out" / "file")
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))


def test_listing_is_by_folder_and_sorted(storage: Storage) -> None:
    assert storage.list("") == []
    for path in ("runs/a/status.json", "runs/a/metrics/1.jsonl", "runs/ab/status.json", "current.json"):
        storage.write(path, b"12345")
    assert [e.path for e in storage.list("runs/a")] == ["runs/a/metrics/1.jsonl", "runs/a/status.json"]
    assert [e.path for e in storage.list("runs/a/")] == [e.path for e in storage.list("runs/a")]
    assert len(storage.list("")) == 4
    assert storage.list("nowhere") == storage.list("current.json") == []
    entry = storage.list("runs/ab")[0]
    assert (entry.size, entry.generation) == (5, storage.read_generation(entry.path)[1])
    assert abs(entry.updated - time.time()) < 86400  # the value is in seconds since the epoch, not in ms


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", ".", "", "a/", "a\\b", ".lock", "a/.x.1.tmp"])
def test_path_outside_the_bucket_or_to_our_own_files_is_refused(storage: Storage, path: str) -> None:
    for call in (storage.read, storage.delete, lambda p: storage.write(p, b"")):
        with pytest.raises(StorageError, match="is not a path inside a bucket"):
            call(path)


@pytest.mark.parametrize("size", [0, 1, 9 * MEBIBYTE])  # above 8 MiB the library uploads in several requests
def test_files_of_any_size_are_uploaded_and_downloaded_unchanged(
    storage: Storage, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "CHUNK_BYTES", 2 * MEBIBYTE)
    source, target = tmp_path / "source", tmp_path / "new folder" / "target"
    source.write_bytes(noise(size))
    up: list[int] = []
    down: list[int] = []
    generation = storage.upload(source, "data/file", up.append)
    storage.download("data/file", target, down.append)
    assert target.read_bytes() == source.read_bytes()
    assert sum(up) == sum(down) == size
    assert storage.read_generation("data/file")[1] == generation
    assert storage.matches(source, "data/file")
    assert not storage.matches(source, "data/other")
    source.write_bytes(noise(size, seed=1) + b"!")
    assert not storage.matches(source, "data/file")
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_matches_is_false_for_other_content_of_the_same_size(storage: Storage, tmp_path: Path) -> None:
    storage.write("x", b"abc")
    (tmp_path / "y").write_bytes(b"abd")
    assert not storage.matches(tmp_path / "y", "x")


def test_upload_with_another_generation_is_a_conflict(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    storage.upload(source, "x", if_generation=0)
    with pytest.raises(Conflict):
        storage.upload(source, "x", if_generation=0)


def test_upload_of_a_missing_source_names_it(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-source"):
        storage.upload(tmp_path / "no-source", "x")
    assert storage.list("") == []


# Addresses.


@pytest.mark.parametrize("url", ["s3://bucket", "http://host/x", "", "gs://", "gs:///x", "file://folder/x", "file:x"])
def test_address_of_another_kind_is_refused_with_a_remedy(url: str) -> None:
    with pytest.raises(StorageError, match=r"write (gs|file)://"):
        open_storage(url)


@pytest.mark.parametrize("name", ["with space", "100%", "q?a#b", "ünï"])
def test_url_of_a_folder_opens_the_same_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    open_storage(str(folder)).write("x", b"1")
    assert (folder / "x").read_bytes() == b"1"
    storage = open_storage(folder.as_uri())
    assert storage.read("x") == b"1"
    assert storage.url == folder.as_uri()
    assert storage.local_path("x") == folder / "x"


def test_storage_in_a_folder_imports_none_of_googles_packages(tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.storage.factory import open_storage; open_storage(sys.argv[1]).write('x', b'');"
        "print([m for m in sys.modules if m.startswith(('google', 'requests', 'torch'))])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Folders.


def _count_up(root: str, times: int) -> None:
    storage = open_storage(root)
    for _ in range(times):
        while True:
            data, generation = storage.read_generation("counter")
            try:
                storage.write("counter", str(int(data) + 1).encode(), if_generation=generation)
                break
            except Conflict:
                pass


def test_updates_by_several_processes_are_all_kept(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.write("counter", b"0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(str(tmp_path), 40)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert storage.read("counter") == b"160"


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    contents = [bytes([i]) * 300_000 for i in range(3)]
    storage.write("x", contents[0])
    seen: dict[int, bytes] = {}
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            data, generation = storage.read_generation("x")
            assert data in contents
            assert seen.setdefault(generation, data) == data

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for i in range(100):
                storage.write("x", contents[i % 3])
        finally:
            stop.set()
        for reader in readers:
            reader.result()


def test_writes_and_deletions_by_several_threads_leave_an_empty_folder(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)

    def churn(name: int) -> None:
        for _ in range(40):
            storage.write(f"a/b/{name}", b"1")
            storage.delete(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_generations_grow_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FileStorage(tmp_path)
    first = storage.write("x", b"1")
    monkeypatch.setattr(storage_module.time, "time_ns", lambda: 1_000_000_000)
    second = storage.write("x", b"2")
    storage.delete("x")
    assert first < second < storage.write("x", b"3")


def test_generations_grow_where_dates_are_coarse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.utime

    def utime(path: int, *, ns: tuple[int, int]) -> None:
        coarse = ns[0] // 2_000_000_000 * 2_000_000_000
        real(path, ns=(coarse, coarse))

    monkeypatch.setattr(storage_module.os, "utime", utime)
    storage = FileStorage(tmp_path)
    generations = [storage.write("x", b"1") for _ in range(4)]
    assert generations == sorted(set(generations))
    assert storage.read_generation("x")[1] == generations[-1]


def test_file_changed_by_hand_is_a_conflict(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    generation = storage.write("x", b"1")
    (tmp_path / "x").write_bytes(b"by hand")
    with pytest.raises(Conflict):
        storage.write("x", b"2", if_generation=generation)


def test_unfinished_files_are_not_listed_and_are_removed_later(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    code = (
        "import os, sys; from trainer.storage.factory import open_storage; from pathlib import Path\n"
        "open_storage(sys.argv[1]).upload(Path(sys.argv[2]), 'x', lambda n: os.kill(os.getpid(), 9))"
    )
    (tmp_path / "source").write_bytes(b"1" * 100)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "source")], check=False)
    [left] = (tmp_path / "s").glob(".x.*")
    storage = FileStorage(tmp_path / "s")
    assert storage.list("") == []
    storage.write("y", b"")
    assert not left.exists()


def test_unfinished_file_of_a_writer_at_work_is_not_removed(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "s")
    (tmp_path / "source").write_bytes(b"1" * 100)
    storage.upload(tmp_path / "source", "x", lambda n: storage.write("y", b"2") and None)
    assert [e.path for e in storage.list("")] == ["x", "y"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    storage = FileStorage(tmp_path / "s")
    storage.write("inside", b"1")
    (tmp_path / "s" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "s" / "file").symlink_to(tmp_path / "outside" / "secret")
    (tmp_path / "s" / "dangling").symlink_to(tmp_path / "nowhere")
    for path in ("folder/secret", "file", "folder"):
        with pytest.raises(StorageError, match="leads out of"):
            storage.read(path)
        with pytest.raises(StorageError, match="leads out of"):
            storage.write(path, b"2")
    with pytest.raises(StorageError, match="leads out of"):
        storage.list("folder")
    assert [e.path for e in storage.list("")] == ["inside"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_storage_in_a_linked_folder_works(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    FileStorage(tmp_path / "link").write("a/x", b"1")
    assert [e.path for e in FileStorage(tmp_path / "link").list("")] == ["a/x"]


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    FileStorage(tmp_path).write("x", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_on_a_full_disk_is_an_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    storage = FileStorage(tmp_path)
    storage.write("x", b"old")
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return real(descriptor)
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"1")
        return None

    monkeypatch.setattr(storage_module.os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"cannot write .*x: the disk is full; free some space"):
        storage.write("x", b"new")
    with pytest.raises(StorageError, match="the disk is full"):
        storage.download("x", tmp_path / "copy")
    monkeypatch.undo()
    assert storage.read("x") == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "x"]


def test_write_that_is_impossible_is_an_error_of_one_line(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.write("file", b"")
    with pytest.raises(StorageError, match=r"cannot write"):
        storage.write("file/below", b"")
    storage.write("folder/x", b"")
    with pytest.raises(StorageError, match=r"cannot write"):
        storage.write("folder", b"")
    with pytest.raises(StorageError, match=r"cannot write"):
        storage.write("long" * 100, b"")


# Buckets under faults.


def once(action: "list[str]", word: str) -> bool:
    """Return True the first time that this word is asked for."""
    if word in action:
        return False
    action.append(word)
    return True


def test_busy_server_is_asked_again(gcs_bucket: str, gcs_faults: Faults, tmp_path: Path) -> None:
    busy = {"left": 0}

    def before(method: str, path: str) -> int | None:
        busy["left"] -= 1
        return 503 if busy["left"] >= 0 else None

    gcs_faults.before = before
    storage = open_storage(gcs_bucket)
    for call in (
        lambda: storage.write("x", b"1"),
        lambda: storage.read("x"),
        lambda: storage.list(""),
        lambda: storage.download("x", tmp_path / "x"),
        lambda: storage.matches(tmp_path / "x", "x"),
        lambda: storage.delete("x"),
    ):
        busy["left"] = 3
        call()
        assert busy["left"] < 0
    assert open_storage(gcs_bucket).list("") == []


def test_server_that_does_not_answer_is_an_error_of_one_line(
    gcs_bucket: str, gcs_faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.3))
    gcs_faults.before = lambda method, path: 503
    storage = open_storage(gcs_bucket)
    for call in (lambda: storage.write("x", b"1"), lambda: storage.read("x"), lambda: storage.list("")):
        with pytest.raises(Unavailable, match=r"does not answer .*; check the network") as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="does not answer"):
        open_storage(gcs_bucket).read("x")


@pytest.mark.parametrize("size", [10, 9 * MEBIBYTE])
def test_conditional_write_whose_answer_is_lost_is_no_conflict(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path, size: int
) -> None:
    lost: list[str] = []

    def after(method: str, path: str, answer: Answer) -> None:
        if path.startswith("/upload") and answer.status == 200 and b'"generation"' in answer.body and once(lost, "x"):
            answer.status, answer.body = 503, b""

    gcs_faults.after = after
    storage = open_storage(gcs_bucket)
    (tmp_path / "source").write_bytes(noise(size))
    generation = storage.upload(tmp_path / "source", "x", if_generation=0)
    assert lost
    assert storage.read_generation("x") == (noise(size), generation)
    with pytest.raises(Conflict):
        storage.upload(tmp_path / "source", "x", if_generation=0)


def test_damage_during_a_download_is_detected(gcs_bucket: str, gcs_faults: Faults, tmp_path: Path) -> None:
    storage = open_storage(gcs_bucket)
    storage.write("x", b"0123456789")

    def flip(method: str, path: str, answer: Answer) -> None:
        if answer.body == b"0123456789":
            answer.body = b"0123456780"

    gcs_faults.after = flip
    (tmp_path / "target").write_bytes(b"before")
    for call in (lambda: storage.read("x"), lambda: storage.download("x", tmp_path / "target")):
        with pytest.raises(StorageError, match=r"x arrived damaged .*; run it again"):
            call()
    assert (tmp_path / "target").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["target"]


@pytest.mark.parametrize("damaged", [False, True])
def test_download_that_broke_is_resumed_and_checked_as_a_whole(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path, damaged: bool
) -> None:
    content = noise(3 * MEBIBYTE)
    (tmp_path / "source").write_bytes(content)
    storage = open_storage(gcs_bucket)
    storage.upload(tmp_path / "source", "x")
    broken: list[str] = []

    def cut(method: str, path: str, answer: Answer) -> None:
        if "alt=media" in path and once(broken, "cut"):
            answer.cut_after = 1 * MEBIBYTE
        elif answer.status == 206 and damaged:
            broken.append("206")
            answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1])

    gcs_faults.after = cut
    done: list[int] = []
    if damaged:
        with pytest.raises(StorageError, match="damaged"):
            storage.download("x", tmp_path / "target")
        assert "206" in broken
        assert not (tmp_path / "target").exists()
    else:
        storage.download("x", tmp_path / "target", done.append)
        assert broken
        assert (tmp_path / "target").read_bytes() == content
        assert sum(done) == len(content)


def test_damage_during_an_upload_is_detected(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(method: str, path: str, answer: Answer) -> None:
        if path.startswith("/upload"):
            answer.body = re.sub(rb'"crc32c":\s*"[^"]*"', b'"crc32c":"AAAAAA=="', answer.body)

    gcs_faults.after = wrong
    (tmp_path / "source").write_bytes(noise(9 * MEBIBYTE))
    with pytest.raises(StorageError, match="damaged"):
        open_storage(gcs_bucket).upload(tmp_path / "source", "x")


def test_upload_is_resumed_after_a_busy_server(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "CHUNK_BYTES", 2 * MEBIBYTE)
    (tmp_path / "source").write_bytes(noise(9 * MEBIBYTE))
    puts: list[str] = []

    def before(method: str, path: str) -> int | None:
        if method == "PUT":
            puts.append(path)
        return 503 if len(puts) == 3 and method == "PUT" else None

    gcs_faults.before = before
    done: list[int] = []
    storage = open_storage(gcs_bucket)
    storage.upload(tmp_path / "source", "x", done.append)
    assert storage.read("x") == noise(9 * MEBIBYTE)
    assert sum(done) == 9 * MEBIBYTE  # bytes that were sent twice count once


def test_repeated_upload_after_a_stop_sends_only_the_missing_parts(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "PART_BYTES", MEBIBYTE)
    monkeypatch.setattr(google, "STREAMS", 1)
    source = tmp_path / "source"
    source.write_bytes(noise(5 * MEBIBYTE + 7))
    storage = open_storage(gcs_bucket)
    sent: list[int] = []

    def stop_after_two(count: int) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(count)

    with pytest.raises(KeyboardInterrupt):
        storage.upload(source, "data/x", stop_after_two, restartable=True)
    assert len(storage.list("data")) == 2
    assert not storage.matches(source, "data/x")

    gcs_faults.requests.clear()
    done: list[int] = []
    generation = storage.upload(source, "data/x", done.append, restartable=True)
    assert sum(request.startswith("POST /upload") for request in gcs_faults.requests) == 4
    assert sum(done) == 5 * MEBIBYTE + 7
    assert storage.read_generation("data/x") == (source.read_bytes(), generation)
    assert [e.path for e in storage.list("")] == ["data/x"]  # the parts are gone


def test_upload_does_not_use_parts_of_another_file(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "PART_BYTES", MEBIBYTE)
    source = tmp_path / "source"
    source.write_bytes(noise(3 * MEBIBYTE))
    storage = open_storage(gcs_bucket)
    storage.write("x.part-00-of-03", noise(MEBIBYTE, seed=5))
    storage.upload(source, "x", restartable=True)
    assert storage.read("x") == source.read_bytes()
    assert [e.path for e in storage.list("")] == ["x"]


def test_impossible_bucket_name_is_refused(gcs_bucket: str) -> None:
    with pytest.raises(StorageError, match=r"gs://-x: Bucket names must"):
        open_storage("gs://-x")


def test_google_storage_asks_for_objects_and_never_for_the_bucket(gcs_bucket: str, gcs_faults: Faults) -> None:
    """The accounts of a run may use objects, but not read bucket metadata."""
    storage = open_storage(gcs_bucket)
    storage.write("x", b"1")
    storage.list("")
    assert len(gcs_faults.requests) == 2
    assert all("/o" in request.split("?")[0] for request in gcs_faults.requests)


def test_missing_bucket_is_an_error_with_its_name(gcs_bucket: str, tmp_path: Path) -> None:
    storage = open_storage("gs://no-such-bucket")
    (tmp_path / "x").write_bytes(b"")
    for call in (
        lambda: storage.write("x", b""),
        lambda: storage.list(""),
        lambda: storage.upload(tmp_path / "x", "x"),
    ):
        with pytest.raises(StorageError, match=r"there is no bucket gs://no-such-bucket; check the name"):
            call()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "gcloud auth application-default login"), (403, "needs roles/storage.objectUser")]
)
def test_missing_permission_says_which_role_to_grant(
    gcs_bucket: str, gcs_faults: Faults, status: int, words: str
) -> None:
    storage = open_storage(gcs_bucket)
    gcs_faults.before = lambda method, path: status
    for call in (lambda: storage.write("x", b""), lambda: storage.read("x"), lambda: storage.list("")):
        with pytest.raises(StorageError, match=words) as caught:
            call()
        assert isinstance(caught.value, Refused) == (status == 403)
        assert "\n" not in str(caught.value)


def test_missing_credentials_say_how_to_log_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no-key.json"))
    with pytest.raises(StorageError, match=r"no valid Google credentials; run `gcloud auth application-default login`"):
        open_storage("gs://bucket")


def test_download_onto_a_full_disk_is_an_error(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    storage = open_storage(gcs_bucket)
    storage.write("x", b"1")
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115  (the storage closes it)
    monkeypatch.setattr(Path, "open", lambda self, mode: full)
    with pytest.raises(StorageError, match=r"cannot write .*target: the disk is full"):
        storage.download("x", tmp_path / "target")


# Manifests.


def test_manifest_describes_and_proves_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").write_bytes(b"")
    written = manifest.write_manifest(tmp_path, step=7)
    assert list(written["files"]) == ["a", "sub/b"]
    assert written["step"] == 7
    assert written["files"]["a"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert manifest.parse((tmp_path / "manifest.json").read_bytes()) == written
    assert manifest.verify_manifest(tmp_path) == []
    (tmp_path / "a").write_bytes(b"abd")
    (tmp_path / "sub" / "b").unlink()
    assert manifest.verify_manifest(tmp_path) == ["a is missing or damaged", "sub/b is missing or damaged"]
    (tmp_path / "manifest.json").unlink()
    assert manifest.verify_manifest(tmp_path) == ["manifest.json is missing"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {"../x": {"size": 1, "sha256": "0"}}}',
        b'{"files": {"/x": {"size": 1, "sha256": "0"}}}',
        b'{"files": {"x": {"size": "1", "sha256": "0"}}}',
        b'{"files": {"x": {"size": 1}}}',
        b'{"files": {"x": null}}',
    ],
)
def test_invalid_manifest_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^manifest\.json .*$"):
        manifest.parse(data)
