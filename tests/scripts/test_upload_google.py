"""upload_data and prepare_data for a stack on Google Cloud: its data bucket, the lock and the vocabulary."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from infra import load
from infra.inputs.data_lock import DataLock, read_lock, write_lock
from scripts import prepare_data, upload_data
from scripts.support import buckets, common
from scripts.support.common import UserError, stack_bucket
from tests.scripts.google import FakeGoogle, project
from tests.scripts.test_transfer import CHECKOUT, NOT_TEXT
from trainer.contract.errors import InputError
from trainer.contract.identity import fingerprint
from trainer.data import tokenizer as vocabularies
from trainer.storage.factory import open_storage

DATA = "test-project-dev-gpt2-data"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (common, upload_data):
        monkeypatch.setattr(module, "CHECKOUT", project(tmp_path))
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def emulator(gcs_address: str, monkeypatch: pytest.MonkeyPatch) -> gcs.Client:
    """Start a storage server without the stack's buckets."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{gcs_address}")
    client = gcs.Client(project="test", credentials=AnonymousCredentials())
    if (old := client.lookup_bucket(DATA)) is not None:
        old.delete(force=True)
    return client


def test_bucket_of_a_google_stack_follows_from_its_name_and_project(checkout: Path) -> None:
    assert stack_bucket("dev") == "gs://test-project-dev-gpt2"


def test_first_upload_makes_the_bucket_and_the_lock(
    checkout: Path, emulator: gcs.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    text = checkout / "data" / "my.txt"
    text.write_text("Once upon a time, ünï 😀\n" * 200)
    assert upload_data.main([str(text), "--stack", "dev"]) == 0
    out = capsys.readouterr().out.splitlines()
    target = f"data/{fingerprint(text)}/my.txt"
    assert out[0] == f"made gs://{DATA} in us-central1; `pulumi up --stack dev` takes it over"
    assert out[1].startswith(f"uploaded: gs://{DATA}/{target} (")
    assert out[2] == "wrote data/my.txt.lock.json: commit it, `pulumi up` reads it in place of the text"
    assert out[-1] == "  gpt2-training:data: {path: data/my.txt}"
    lock = read_lock(text)
    assert lock is not None
    assert lock.url == f"gs://{DATA}/{target}"
    assert lock.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert lock.size == text.stat().st_size
    assert open_storage(f"gs://{DATA}").read(target) == text.read_bytes()
    assert upload_data.main([str(text), "--stack", "dev"]) == 0
    assert capsys.readouterr().out.startswith(f"already there: gs://{DATA}/{target} (")
    assert read_lock(text) == lock


def test_upload_of_a_missing_file_makes_no_bucket(checkout: Path, emulator: gcs.Client) -> None:
    with pytest.raises(InputError, match="check the path"):
        upload_data.main([str(checkout / "nothing.txt"), "--stack", "dev"])
    assert emulator.lookup_bucket(DATA) is None


def test_bucket_is_made_as_the_stack_declares_it(
    google: FakeGoogle, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
    google.on("storage", "POST", "b", {"name": DATA})
    assert buckets.ensure_bucket(load.from_file("dev", checkout))
    asked = google.calls[-1]
    assert asked.query["project"] == ["test-project"]
    assert asked.body == {
        "name": DATA,
        "location": "US-CENTRAL1",
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": True},
            "publicAccessPrevention": "enforced",
        },
        "versioning": {"enabled": True},
        "softDeletePolicy": {"retentionDurationSeconds": 0, "effectiveTime": None},
        "lifecycle": {
            "rule": [
                {"action": {"type": "Delete"}, "condition": {"numNewerVersions": 3}},
                {"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": 7}},
                {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 1}},
            ]
        },
        "labels": {"gpt2-stack": "dev", "goog-pulumi-provisioned": "true"},
    }


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, r"no permission; this account needs roles/storage\.admin on project test-project"),
        (409, r"another project has a bucket of this name; rename the stack"),
        (401, r"no valid Google credentials; run `gcloud auth application-default login`"),
        (400, r"Google's own words"),
    ],
)
def test_bucket_that_cannot_be_made_is_one_line(
    google: FakeGoogle, checkout: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
    google.on("storage", "POST", "b", {"error": {"message": "Google's own words"}}, status)
    with pytest.raises(UserError, match=f"^cannot make gs://{DATA}: .*{words}") as error:
        buckets.ensure_bucket(load.from_file("dev", checkout))
    assert "\n" not in str(error.value)


def test_bucket_of_another_project_says_to_rename_the_stack(
    google: FakeGoogle, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google.url)
    denied = "tester does not have storage.buckets.get access to the Google Cloud Storage bucket."
    google.on("storage", "GET", f"b/{DATA}", {"error": {"message": denied}}, 403)
    with pytest.raises(
        UserError, match=r"with both, the bucket is another project's: rename the stack \(Google says: "
    ):
        buckets.ensure_bucket(load.from_file("dev", checkout))


def test_invalid_key_file_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(checkout / "none.json"))
    said = r"^cannot make gs://.*: GOOGLE_APPLICATION_CREDENTIALS names .*none\.json, which cannot be read \(No such"
    with pytest.raises(UserError, match=said):
        buckets.ensure_bucket(load.from_file("dev", checkout))


@pytest.mark.usefixtures("nobody")
def test_missing_login_is_one_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    (checkout / "data" / "my.txt").write_text("text")
    with pytest.raises(UserError, match=r"no valid Google credentials; run `gcloud auth application-default login`"):
        upload_data.main([str(checkout / "data" / "my.txt"), "--stack", "dev"])


# A text that is in a bucket already.


def test_text_in_a_bucket_is_read_once_and_gets_a_lock(
    checkout: Path, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(buckets, "CHUNK_BYTES", 256 * 1024)
    content = ("Once upon a time, ünï 中 😀\n" * 30_000).encode()  # some characters cross the borders of pieces
    open_storage(gcs_bucket).write("texts/o.txt", content)
    assert upload_data.main([f"{gcs_bucket}/texts/o.txt"]) == 0
    out = capsys.readouterr().out
    assert "wrote data/o.txt.lock.json: commit it" in out
    assert out.endswith("  gpt2-training:data: {path: data/o.txt}\n")
    lock = read_lock(checkout / "data" / "o.txt")
    assert lock is not None
    assert lock.url == f"{gcs_bucket}/texts/o.txt"
    assert (lock.sha256, lock.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert not (checkout / "data" / "o.txt").exists()


@pytest.mark.parametrize(("content", "words"), [case for case in NOT_TEXT if case[0]])
def test_object_that_is_no_text_gets_no_lock(checkout: Path, gcs_bucket: str, content: bytes, words: str) -> None:
    open_storage(gcs_bucket).write("o.txt", content)
    with pytest.raises(InputError, match=rf"o\.txt: {words}"):
        upload_data.main([f"{gcs_bucket}/o.txt"])
    assert list((checkout / "data").iterdir()) == []


def test_address_without_an_object_is_refused(checkout: Path, gcs_bucket: str) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt is not there; `gcloud storage ls gs://"):
        upload_data.main([f"{gcs_bucket}/nothing.txt"])
    for address in ("gs://bucket", "gs://bucket/", "gs://bucket/folder/"):
        with pytest.raises(UserError, match="give the address of one text, gs://bucket/object"):
            upload_data.main([address])
    open_storage(gcs_bucket).write("empty.txt", b"")
    with pytest.raises(UserError, match="the object is empty"):
        upload_data.main([f"{gcs_bucket}/empty.txt"])


def test_text_that_changes_while_it_is_read_is_refused(gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "CHUNK_BYTES", 256 * 1024)
    bucket = open_storage(gcs_bucket)
    bucket.write("o.txt", b"a" * 1_000_000)
    _, pieces = buckets.read_object(f"{gcs_bucket}/o.txt")
    next(pieces)
    bucket.write("o.txt", b"b" * 1_000_000)
    # Google refuses the second piece; fake-gcs-server returns it, and the checksum of the whole is wrong.
    with pytest.raises(UserError, match=r"it changed meanwhile|or changed meanwhile \(its crc32c differs\)"):
        list(pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_text_in_small_pieces_is_checked_as_a_whole(size: int) -> None:
    data = "aé中😀z".encode()
    check = upload_data.TextCheck("x")
    for start in range(0, len(data), size):
        check.write(data[start : start + size])
    assert check.finish() == hashlib.sha256(data).hexdigest()

    bad = upload_data.TextCheck("x")
    for piece in (b"a", b"\xc3", b"\xa9", b"\xf0", b"\x9f"):
        bad.write(piece)
    with pytest.raises(InputError, match=r"x: not UTF-8 at byte 3 \(0xf0\)"):
        bad.write(b"abc")


# prepare_data.


def small_vocabulary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Make two small files and let them pass for GPT-2's."""
    trained = json.loads(vocabularies.train(["once upon a time " * 50], 300).to_str())["model"]
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in trained["merges"]]
    listed = json.dumps([sorted(trained["vocab"], key=trained["vocab"].__getitem__), merges])
    monkeypatch.setattr(vocabularies, "GPT2_SHA256", hashlib.sha256(listed.encode()).hexdigest())
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    files = {"vocab.json": json.dumps(trained["vocab"]).encode(), "merges.txt": f"#version: 0.2\n{lines}".encode()}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def test_prepare_data_fetches_the_vocabulary_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"
    files = small_vocabulary(hub, monkeypatch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, **_: str(hub / name))
    (checkout / "data" / "my.txt").write_text("Once upon a time. " * 5000)
    (checkout / "trainer").mkdir()
    assert prepare_data.main(["--stack", "dev"]) == 0
    folder = checkout / "data" / "gpt2-vocabulary"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert "GPT-2's vocabulary from openai-community/gpt2" in capsys.readouterr().out

    def unreachable(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked again")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    assert prepare_data.main(["--stack", "dev"]) == 0
    assert "kept" in capsys.readouterr().out
    (folder / "merges.txt").write_bytes(b"")
    with pytest.raises(InputError, match="are not GPT-2's"):
        prepare_data.main(["--stack", "dev"])


@pytest.mark.parametrize("path", ["data/default.txt", "data/sentiment.jsonl"])
def test_prepare_data_writes_no_text_that_has_a_lock(checkout: Path, path: str) -> None:
    form = {"format": "pairs"} if path.endswith("jsonl") else {}
    project(checkout, data={"path": path, "tokenizer": "train", "vocabularySize": 300, **form})
    write_lock(checkout / path, DataLock(url="gs://acme/text", sha256="0" * 64, size=10**6))
    prepare_data.main(["--stack", "dev"])
    assert not (checkout / path).exists()


@pytest.mark.parametrize(("content", "said"), [(None, "there is no file data/my.txt"), ("short", "is too small")])
def test_prepare_data_refuses_a_text_that_cannot_be_trained_on(checkout: Path, content: str | None, said: str) -> None:
    given: dict[str, Any] = {"data": {"path": "data/my.txt", "tokenizer": "train", "vocabularySize": 300}}
    project(checkout, **given)
    if content is not None:
        (checkout / "data" / "my.txt").write_text(content)
    with pytest.raises(UserError, match=f"^gpt2-training:data.path: .*{said}"):
        prepare_data.main(["--stack", "dev"])


NO_NETWORK = """
import socket, sys, time
from pathlib import Path
from scripts.prepare_data import fetch_vocabulary
from trainer.contract.errors import InputError
asked = []
def refuse(address, *_, **__):
    asked.append(address)
    raise OSError("no network here")
socket.create_connection, time.sleep = refuse, lambda seconds: None
try:
    fetch_vocabulary(Path(sys.argv[1]))
except InputError as error:
    print(len(asked), error)
"""


def test_unreachable_hub_is_asked_only_once(tmp_path: Path) -> None:
    """The hub's library would ask seven times, with pauses that grow."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", NO_NETWORK, str(tmp_path / "vocabulary")]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    asked, _, said = done.stdout.partition(" ")
    assert int(asked) <= 2  # the library itself makes one call more
    assert said.startswith(
        "data.tokenizer gpt2: the hub cannot give its vocabulary (no network here): check the network"
    )


def test_prepare_data_without_a_hub_names_the_key_to_set(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setattr("huggingface_hub.get_session", unreachable)
    with pytest.raises(InputError, match=r"the hub cannot give its vocabulary .* set data\.vocabularyPath"):
        prepare_data.main(["--stack", "dev"])
    assert not (checkout / "data" / "gpt2-vocabulary").exists()


def test_prepare_data_writes_the_default_text_and_tokenizes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data": {"path": "data/default.txt", "tokenizer": "train", "vocabularySize": 300}}
    monkeypatch.setattr(common, "CHECKOUT", project(tmp_path, **given))
    (tmp_path / "trainer").mkdir()
    assert prepare_data.main(["--stack", "dev"]) == 0
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == ["data/default.txt"]
