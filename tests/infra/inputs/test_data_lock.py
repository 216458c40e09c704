"""Wait until Pulumi's state is complete and only this machine is being created, so that Pulumi writes no more."""

import hashlib
import json
from pathlib import Path

import pytest

from infra.inputs.data_lock import DataLock, lock_path, read_lock, write_lock
from trainer.contract.errors import InputError
from trainer.contract.identity import fingerprint
from trainer.storage.base import StorageError

LOCK = {"url": "gs://p-dev-gpt2-data/data/0/my.txt", "sha256": "ab" * 32, "size": 7}


def test_lock_gives_the_fingerprint_and_size_of_its_text(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("Once upon a time")
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    lock = DataLock(url=LOCK["url"], sha256=digest, size=16)
    path = write_lock(text, lock)
    assert path == lock_path(text) == tmp_path / "my.txt.lock.json"
    text.unlink()  # the text itself is not needed
    found = read_lock(text)
    assert found == lock
    text.write_text("Once upon a time")
    assert found.fingerprint == fingerprint(text)
    assert json.loads(path.read_text()) == {"url": LOCK["url"], "sha256": digest, "size": 16}


def test_read_lock_without_a_lock_returns_none(tmp_path: Path) -> None:
    assert read_lock(tmp_path / "my.txt") is None
    assert read_lock(tmp_path / "no folder" / "my.txt") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON;"),
        ("[]", "must be url, sha256 and size in one JSON object;"),
        ("{}", "url is missing;"),
        (json.dumps(LOCK | {"size": 0}), "size: must be the text's bytes, a whole number from 1;"),
        (json.dumps(LOCK | {"sha256": "AB"}), "sha256: must be 64 hexadecimal digits;"),
        (json.dumps(LOCK | {"url": "https://example.com/x"}), "url: must be the text's address, gs://bucket/object;"),
        (json.dumps(LOCK | {"url": "gs://bucket"}), "url: must be the text's address"),
        (json.dumps(LOCK | {"extra": 1}), "extra: unknown key;"),
        ("\xff", "is not JSON;"),
    ],
)
def test_broken_lock_is_one_line_that_says_how_to_mend_it(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "my.txt.lock.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as found:
        read_lock(tmp_path / "my.txt")
    line = str(found.value)
    assert line.startswith(f"{path}: {words}")
    assert line.endswith("`python -m scripts.upload_data gs://BUCKET/OBJECT` writes it anew")
    assert "\n" not in line
    text = tmp_path / "my.txt"
    text.write_text("x")
    with pytest.raises(InputError, match=f"upload_data {text} --stack STACK` writes it anew"):
        read_lock(text)
    with pytest.raises(InputError, match=r"upload_data data/my\.txt --stack dev` writes it anew"):
        read_lock(text, "data/my.txt", "dev")


def test_lock_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.txt.lock.json").mkdir()
    with pytest.raises(InputError, match=r"my\.txt\.lock\.json: cannot be read \(Is a directory\)"):
        read_lock(tmp_path / "my.txt")
    with pytest.raises(StorageError, match=r"cannot write .*my\.txt\.lock\.json"):
        write_lock(tmp_path / "my.txt", DataLock.model_validate(LOCK))
