"""<text>.lock.json: what a large text is and where it lies, committed in its place. Written by scripts.upload_data."""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from trainer.contract.errors import InputError
from trainer.contract.spec import Strict
from trainer.storage.base import explain, new_file

# What each key must be, in place of a regular expression.
MUST = {
    "url": "must be the text's address, gs://bucket/object",
    "sha256": "must be 64 hexadecimal digits",
    "size": "must be the text's bytes, a whole number from 1",
}


class DataLock(Strict):
    """A text in a bucket. The text itself need not be on this machine."""

    url: str = Field(pattern=r"^gs://[a-z0-9][a-z0-9._-]+/[^\s][^\n]*$")  # the object
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the whole text
    size: int = Field(ge=1)  # bytes

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the text: trainer.contract.identity.fingerprint()."""
        return self.sha256[:16]


def lock_path(text: Path) -> Path:
    """`my.txt` -> `my.txt.lock.json`, beside it."""
    return text.with_name(f"{text.name}.lock.json")


def read_lock(text: Path, named: str = "", stack: str = "") -> DataLock | None:
    """The lock of a text, None if there is no such file. Raises InputError for one that cannot be used.

    named, stack: how the stack file calls the text, and the stack, for the command that an error tells.
    """
    path = lock_path(text)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check it, or {_again(text, named, stack)}"
        ) from None
    try:
        return DataLock.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        words = "is not JSON" if first["type"] == "json_invalid" else "must be url, sha256 and size in one JSON object"
        if key:
            words = f"{key} is missing" if first["type"] == "missing" else f"{key}: {MUST.get(key, 'unknown key')}"
        raise InputError(f"{path}: {words}; {_again(text, named, stack)}") from None


def _again(text: Path, named: str, stack: str) -> str:
    """The command that writes a lock anew: from the text if it is here, else from where it lies."""
    what = f"{named or text} --stack {stack or 'STACK'}" if text.is_file() else "gs://BUCKET/OBJECT"
    return f"`python -m scripts.upload_data {what}` writes it anew"


def write_lock(text: Path, lock: DataLock) -> Path:
    """Writes the lock beside the text, whole or not at all; returns its path. Raises StorageError."""
    path = lock_path(text)
    try:
        with new_file(path) as file:
            file.write((json.dumps(lock.to_json(), indent=2) + "\n").encode())
    except OSError as error:
        raise explain(error, f"write {path}") from error
    return path
