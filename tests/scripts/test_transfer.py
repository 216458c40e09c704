"""upload_data and download_model as people call them, with a folder and with a bucket."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scripts import download_model, upload_data
from scripts.support import common, downloading
from scripts.support.common import UserError, find_run, progress_bar, stack_bucket
from tests.gcs import Answer, Faults
from trainer.contract.errors import InputError
from trainer.contract.identity import fingerprint
from trainer.runs.records import Status
from trainer.storage import base, manifest
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

MODEL = {"model.safetensors": b"weights" * 1000, "config.json": b"{}", "empty.txt": b"", "sub/tokenizer.json": b"[]"}
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(params=["file", "gs"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = (tmp_path / "the bucket").as_uri() if request.param == "file" else request.getfixturevalue("gcs_bucket")
    return open_storage(url)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "my-data.txt"
    path.write_text("Once upon a time, ünï 😀\n" * 200)
    return path


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it is typed, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{module}", *arguments],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        check=False,
    )


def put_model(bucket: Storage, run: str = "gpt2-1", files: dict[str, bytes] = MODEL) -> None:
    entries = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    for name, data in files.items():
        bucket.write(f"runs/{run}/model/{name}", data)
    bucket.write(f"runs/{run}/model/manifest.json", json.dumps({"files": entries}).encode())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# upload_data.


def test_upload_prints_the_address_and_the_keys_to_write(bucket: Storage, text: Path) -> None:
    target = f"data/{fingerprint(text)}/my-data.txt"
    first = run("upload_data", str(text), "--bucket", bucket.url)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"uploaded: {bucket.url}/{target} ")
    assert f"gpt2-training:data: {{path: {text}}}" in first.stdout
    data, generation = bucket.read_generation(target)
    assert data == text.read_bytes()
    second = run("upload_data", str(text), "--bucket", bucket.url)
    assert second.stdout.startswith(f"already there: {bucket.url}/{target} ")
    assert bucket.read_generation(target)[1] == generation  # nothing was written


def test_upload_mends_a_damaged_copy(bucket: Storage, text: Path) -> None:
    first = upload_data.upload(bucket, text)
    bucket.write(first.target, b"x" * text.stat().st_size)
    assert upload_data.upload(bucket, text) == first
    assert not first.there
    assert bucket.read(first.target) == text.read_bytes()


NOT_TEXT: list[tuple[bytes, str]] = [
    (b"", r"the file is empty: give a file with text"),
    (b"abc\xff", r"not UTF-8 at byte 3 \(0xff\): convert the file, for example with `iconv -f LATIN1"),
    (b"cut short \xf0\x9f\x98", r"not UTF-8 at byte 10 \(0xf0\)"),
    (b"a\0b", r"byte 1 is zero, so this is no text file"),
    ("text".encode("utf-16"), r"this is UTF-16, not UTF-8: .*iconv -f UTF-16"),
    (b"\x1f\x8b\x08", r"this is compressed: gunzip it"),
]


@pytest.mark.parametrize(("content", "words"), NOT_TEXT)
def test_upload_of_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    bucket = open_storage(str(tmp_path / "bucket"))
    with pytest.raises(InputError, match=rf"data\.txt: {words}"):
        upload_data.upload(bucket, path)
    assert bucket.list("") == []


def test_upload_of_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    with pytest.raises(InputError, match="No such file"):
        upload_data.upload(bucket, tmp_path / "nothing")
    with pytest.raises(InputError, match="this is a folder"):
        upload_data.upload(bucket, tmp_path)


def test_upload_of_a_file_that_changes_meanwhile_is_not_kept(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))

    def appending(path: Path) -> str:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with path.open("a") as file:
            file.write("more")
        return digest

    monkeypatch.setattr(upload_data, "sha256_of", appending)
    with pytest.raises(UserError, match="changed while it was uploaded"):
        upload_data.upload(bucket, text)
    assert bucket.list("") == []


# download_model.


def test_download_fetches_and_verifies_the_model_and_prints_how_to_load_it(bucket: Storage, tmp_path: Path) -> None:
    put_model(bucket)
    bucket.write("current.json", b'{"run": "gpt2-1", "launch": 1}')
    to = tmp_path / "new" / "model"
    first = run("download_model", "--bucket", bucket.url, "--to", str(to))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"downloaded and verified: {to} (")
    assert f"pipeline(\"text-generation\", '{to}')" in first.stdout
    assert manifest.verify_manifest(to) == []
    assert {name: data for name, data in contents(to).items() if name != "manifest.json"} == MODEL
    assert [p.name for p in to.parent.iterdir()] == ["model"]
    (to / "notes.txt").write_text("mine")
    second = run("download_model", "--run", f"{bucket.url}/runs/gpt2-1/", "--to", str(to))
    assert second.stdout.startswith(f"already there: {to} (")


def test_download_without_a_folder_takes_one_named_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    put_model(bucket)
    monkeypatch.chdir(tmp_path)
    assert download_model.main(["--bucket", str(tmp_path / "bucket"), "--run", "gpt2-1"]) == 0
    assert manifest.verify_manifest(tmp_path / "models" / "gpt2-1") == []
    assert downloading.fetched(bucket, "gpt2-1") == Path("models/gpt2-1")


def test_download_of_a_sweeps_trial_takes_its_own_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    put_model(bucket, "gpt2-1/trials/3")
    for wanted in (
        ["--bucket", bucket.url, "--run", "gpt2-1/trials/3"],
        ["--run", f"{bucket.url}/runs/gpt2-1/trials/3"],
    ):
        assert download_model.main([*wanted, "--to", str(tmp_path / "to")]) == 0
    with pytest.raises(SystemExit):
        download_model.main(["--run", "gpt2-1/trials/x"])
    assert "--run: gpt2-1/trials/x: write a run's id" in capsys.readouterr().err


def test_download_into_another_models_folder_is_refused(tmp_path: Path) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    put_model(bucket)
    to = tmp_path / "to"
    to.mkdir()
    downloading.download(bucket, "gpt2-1", to)  # an empty folder is no obstacle
    (to / "config.json").write_bytes(b"{ }")
    before = contents(to)
    with pytest.raises(UserError, match=r"something else in this folder; remove it or give another"):
        downloading.download(bucket, "gpt2-1", to)
    assert contents(to) == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file or link of this name"):
        downloading.download(bucket, "gpt2-1", tmp_path / "file")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "it has not started"),
        (Status(state="RUNNING", step=1500, updated=0), r"it is RUNNING at step 1,500; .*scripts\.watch"),
        (
            Status(state="FAILED", step=3, reason="the disk is full", updated=0),
            r"FAILED at step 3 \(the disk is full\)",
        ),
    ],
)
def test_download_of_a_run_without_a_model_gives_its_state(tmp_path: Path, status: Status | None, words: str) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    if status is not None:
        bucket.write("runs/gpt2-1/status.json", json.dumps(status.to_json()).encode())
    with pytest.raises(UserError, match=f"gpt2-1 has no model yet: .*{words}"):
        downloading.download(bucket, "gpt2-1", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def _lose(bucket: Storage) -> None:
    bucket.delete("runs/gpt2-1/model/config.json")


def _shorten(bucket: Storage) -> None:
    bucket.write("runs/gpt2-1/model/model.safetensors", b"weights")


def _tamper(bucket: Storage) -> None:
    bucket.write("runs/gpt2-1/model/config.json", b"[]")


def _escape(bucket: Storage) -> None:
    bucket.write("runs/gpt2-1/model/manifest.json", b'{"files": {"../../x": {"size": 1, "sha256": "0"}}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_lose, "is incomplete: config.json is missing"),
        (_shorten, "is incomplete: model.safetensors has 7 bytes instead of 7,000"),
        (_tamper, r"config\.json is not what its manifest says \(its sha256 differs\)"),
        (_escape, r"names '\.\./\.\./x', which is not a file inside of the folder"),
    ],
)
def test_download_of_a_damaged_model_is_refused(
    bucket: Storage, tmp_path: Path, damage: Callable[[Storage], None], words: str
) -> None:
    put_model(bucket)
    damage(bucket)
    with pytest.raises(UserError, match=words):
        downloading.download(bucket, "gpt2-1", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_download_after_an_interruption_fetches_only_the_rest(
    gcs_bucket: str, gcs_faults: Faults, tmp_path: Path
) -> None:
    bucket = open_storage(gcs_bucket)
    put_model(bucket)

    def refuse(method: str, path: str) -> int | None:
        return 403 if "tokenizer.json" in path and "alt=media" in path else None

    gcs_faults.before = refuse
    with pytest.raises(base.StorageError, match="no permission"):
        downloading.download(bucket, "gpt2-1", tmp_path / "to")
    assert not (tmp_path / "to").exists()
    put_model(bucket, files={name: MODEL[name] for name in ("model.safetensors", "sub/tokenizer.json")})
    gcs_faults.before = lambda method, path: None
    gcs_faults.requests.clear()
    downloading.download(bucket, "gpt2-1", tmp_path / "to")
    fetched = [r for r in gcs_faults.requests if "alt=media" in r]
    assert len(fetched) == 2  # the two files are the manifest and tokenizer.json
    assert sorted(contents(tmp_path / "to")) == ["manifest.json", "model.safetensors", "sub/tokenizer.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["to"]


def test_download_into_a_folder_of_another_download_is_refused(tmp_path: Path) -> None:
    bucket = open_storage(str(tmp_path / "bucket"))
    put_model(bucket)
    with (
        downloading._partial_folder(tmp_path / "to"),
        pytest.raises(UserError, match=r"another download into this folder is running"),
    ):
        downloading.download(bucket, "gpt2-1", tmp_path / "to")


# Both commands.


def test_errors_of_the_commands_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for answer in (
        run("upload_data", str(tmp_path / "nothing"), "--bucket", str(tmp_path)),
        run("download_model", "--bucket", str(tmp_path)),
        run("download_model", "--bucket", "s3://bucket"),
        run("download_model", "--stack", "no-such-stack"),
    ):
        assert answer.returncode == 2
        assert answer.stdout == ""
        assert answer.stderr.startswith("error: ")
        assert answer.stderr.count("\n") == 1


def test_ctrl_c_ends_a_command_with_one_line_and_exit_code_130(gcs_bucket: str, gcs_faults: Faults, text: Path) -> None:
    code = (
        "import sys; from scripts import upload_data; from scripts.support.common import run_main;"
        "run_main(lambda: upload_data.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(text), "--bucket", gcs_bucket], stderr=subprocess.PIPE, text=True, cwd=CHECKOUT
    )

    def interrupt(method: str, path: str, answer: Answer) -> None:
        if len(gcs_faults.requests) == 1:
            process.send_signal(signal.SIGINT)
        answer.status = 503  # with this answer it would continue to ask

    gcs_faults.after = interrupt
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


COMMANDS = [
    "bootstrap",
    "build_image",
    "download_model",
    "estimate",
    "evaluate",
    "generate",
    "preflight",
    "prepare_data",
    "report",
    "review",
    "serve",
    "ssh",
    "upload_data",
    "watch",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_of_a_command_imports_no_large_library(module: str) -> None:
    answer = run(module, "--help")
    assert answer.returncode == 0
    assert "--stack" in answer.stdout
    heavy = ["torch", "pulumi_gcp", "google.cloud.storage"]
    code = f"import sys, scripts.{module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["upload_data", "download_model", "generate", "watch"])
def test_commands_for_a_local_stack_import_none_of_googles_packages(module: str) -> None:
    code = f"import sys, scripts.{module}; sys.exit(any(name.startswith('google.') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False).returncode == 0


def test_bucket_of_a_stack_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.local.yaml").write_text("config:\n  gpt2-training:platform: local\n")
    (tmp_path / "Pulumi.bare.yaml").write_text("config: {launch: 1}\n")
    (tmp_path / "Pulumi.dev.yaml").write_text("config:\n  gpt2-training:platform: google\n  gcp:project: my-project\n")
    (tmp_path / "Pulumi.new.yaml").write_text("config:\n  gpt2-training:platform: google\n")
    (tmp_path / "Pulumi.broken.yaml").write_text("config: {\n")
    assert stack_bucket("local", tmp_path) == (tmp_path / "artifacts" / "local").as_uri()
    assert stack_bucket("bare", tmp_path) == (tmp_path / "artifacts" / "bare").as_uri()
    assert stack_bucket("dev", tmp_path) == "gs://my-project-dev-gpt2"
    with pytest.raises(
        UserError, match=r"--stack new: gcp:project: missing; run `pulumi config set gcp:project .*new`$"
    ):
        stack_bucket("new", tmp_path)
    with pytest.raises(UserError, match=r"Pulumi\.broken\.yaml cannot be read"):
        stack_bucket("broken", tmp_path)
    with pytest.raises(UserError, match=r"stack \.\./x: there is no .*; there are: bare, broken, dev, local, new"):
        stack_bucket("../x", tmp_path)


def test_find_run_takes_the_declared_run_or_the_given_one(tmp_path: Path) -> None:
    bucket = open_storage(str(tmp_path))
    with pytest.raises(UserError, match=r"no run in .* yet; `pulumi up`"):
        find_run(bucket, None)
    bucket.write("runs/old/job.json", b"{}")
    bucket.write("runs/new/job.json", b"{}")
    assert find_run(bucket, None) == "new"
    bucket.write("runs/old/status.json", b"{}")
    assert find_run(bucket, None) == "old"
    bucket.write("current.json", b'{"run": "new", "launch": 1}')
    assert find_run(bucket, None) == "new"
    assert find_run(bucket, "old") == "old"
    with pytest.raises(UserError, match=r"no run x in .*; runs there: old, new"):
        find_run(bucket, "x")
    bucket.write("current.json", b"{")
    with pytest.raises(UserError, match=r"current\.json"):
        find_run(bucket, None)


def test_progress_in_a_log_is_a_line_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with progress_bar("uploading", 3_000_000, Console(file=log)) as progress:
        for _ in range(30):
            now[0] += 1
            progress(100_000)
    assert log.getvalue().splitlines() == [f"uploading: {n}.0 MB of 3.0 MB" for n in (1, 2, 3)]


def test_progress_on_a_terminal_is_a_bar() -> None:
    out = io.StringIO()
    with progress_bar("uploading", 100, Console(file=out, force_terminal=True, width=100)) as progress:
        progress(100)
    assert "uploading" in out.getvalue()
    assert "100/100 bytes" in out.getvalue()
