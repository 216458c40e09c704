"""Read and write <text>.lock.json, which is committed instead of a large text; scripts.upload_data writes it."""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from trainer.contract.errors import InputError
from trainer.contract.options import Strict
from trainer.storage.base import explain, new_file

# The rule of each key in words, for errors that would else show a regular expression.
MUST = {
    "url": "must be the text's address, gs://bucket/object",
    "sha256": "must be 64 hexadecimal digits",
    "size": "must be the text's bytes, a whole number from 1",
}


class DataLock(Strict):
    """The address, hash and size of a text in a bucket. The text itself need not be on this machine."""

    url: str = Field(pattern=r"^gs://[a-z0-9][a-z0-9._-]+/[^\s][^\n]*$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # the hash of the whole text
    size: int = Field(ge=1)  # bytes

    @property
    def fingerprint(self) -> str:
        """The text's fingerprint, as trainer.contract.identity.fingerprint() makes it."""
        return self.sha256[:16]


def lock_path(text: Path) -> Path:
    """Return the path of a text's lock file: my.txt.lock.json in the same folder."""
    return text.with_name(f"{text.name}.lock.json")


def read_lock(text: Path, named: str = "", stack: str = "") -> DataLock | None:
    """Return the lock of a text, None if there is no lock file. Raise InputError for one that cannot be used.

    An error names a command, with the text as the stack file names it (`named`) and the stack.
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
        fault = "is not JSON" if first["type"] == "json_invalid" else "must be url, sha256 and size in one JSON object"
        if key:
            fault = f"{key} is missing" if first["type"] == "missing" else f"{key}: {MUST.get(key, 'unknown key')}"
        raise InputError(f"{path}: {fault}; {_again(text, named, stack)}") from None


def _again(text: Path, named: str, stack: str) -> str:
    """Return the command that writes a lock anew: from the text if it is here, else from its bucket."""
    arguments = f"{named or text} --stack {stack or 'STACK'}" if text.is_file() else "gs://BUCKET/OBJECT"
    return f"`python -m scripts.upload_data {arguments}` writes it anew"


def write_lock(text: Path, lock: DataLock) -> Path:
    """Write a text's lock file, whole or not at all, and return its path. Raise StorageError."""
    path = lock_path(text)
    try:
        with new_file(path) as file:
            file.write((json.dumps(lock.to_json(), indent=2) + "\n").encode())
    except OSError as error:
        raise explain(error, f"write {path}") from error
    return path
