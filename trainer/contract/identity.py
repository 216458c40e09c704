"""The name of a run, and the hashes that it is made of."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from trainer.contract.options import Data, Hyperparameters, Model, Parallel
from trainer.contract.sweep_options import Sweep


def run_id(
    model: Model,
    data: Data,
    fingerprint: str,
    hyperparameters: Hyperparameters,
    parallel: Parallel,
    code: str,
    sweep: Sweep | None = None,
) -> str:
    """Return the run's name: the model's name and a hash of all that changes the result.

    The hash leaves out the path of the text, the number of machines, how often the run is evaluated, and the launch.
    """
    parameters = hyperparameters.to_json()
    for key in ("microBatchSize", "recompute"):  # they change the order of a sum, not what is computed
        parameters.pop(key, None)
    identity = {
        "model": model.to_json(),
        "data": [fingerprint, data.tokens_key()],
        "hyperparameters": parameters,
        "talk": [parallel.wire, parallel.synchronization, parallel.every],
        "code": code,
        **({"sweep": sweep.to_json()} if sweep else {}),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{model.name}-{digest[:8]}"


def fingerprint(path: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's bytes: the name of its folder under data/."""
    return sha256_of(path)[:16]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_files(folder: Path = Path(__file__).parents[1]) -> list[Path]:
    """Return the files that make the image, sorted: those that builders copy into it, Dockerfile and .dockerignore.

    This is .dockerignore's rule: Python modules, HTML pages and requirements.txt. A file whose name has no dot is taken
    too, as no pattern of .dockerignore tells it from a folder. Nothing hidden is taken, no __pycache__, and nothing
    inside a folder whose name has a dot.
    """

    def taken(path: Path) -> bool:
        *folders, name = path.relative_to(folder).parts
        if not folders and name in ("requirements.txt", ".dockerignore"):
            return True
        if any("." in part or part == "__pycache__" for part in folders) or name.startswith("."):
            return False
        return "." not in name or path.suffix in (".py", ".html")

    return sorted(path for path in folder.rglob("*") if taken(path) and path.is_file())


def code_hash(folder: Path = Path(__file__).parents[1]) -> str:
    """Return a hash of the names and contents of code_files(), never of modes or times.

    Line ends count as one kind: a checkout on Windows is the same code.
    """
    files = code_files(folder)
    return _hash((path.relative_to(folder), path.read_bytes().replace(b"\r\n", b"\n")) for path in files)


def hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Return the first 16 hex digits of a SHA-256 of some files' names below `folder` and their contents."""
    return _hash((path.relative_to(folder), path.read_bytes()) for path in files)


def _hash(files: Iterable[tuple[Path, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files):
        for part in (name.as_posix().encode(), content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]
