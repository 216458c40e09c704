"""Download a run's model. It appears complete and verified, or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from scripts.support.common import UserError, progress_bar
from trainer.contract import paths
from trainer.runs.records import Status
from trainer.storage import manifest
from trainer.storage.base import ByteProgress, Storage, explain, new_file


def fetched(storage: Storage, run: str, to: Path | None = None) -> Path:
    """Return the folder `to` (default: models/<run>), after downloading a run's model into it if necessary.

    Raise UserError as download() does.
    """
    return download(storage, run, to or Path("models") / run)[0]


def download(storage: Storage, run: str, to: Path) -> tuple[Path, bool]:
    """Download a run's model into the folder `to`. Return the folder, and whether the model was there already.

    The folder appears when all files are complete and verified. The files of an interrupted download are kept next to
    it, and are used again if they verify. Raise UserError if there is no complete model, or the folder cannot be
    written.
    """
    data, files = _remote_manifest(storage, run)
    try:
        if _is_whole(to, data, files):
            return to, True
        _refuse_other(to)
        total = sum(entry["size"] for entry in files.values())
        with _partial_folder(to) as folder, progress_bar(f"downloading {run}", total) as progress:
            for name, entry in files.items():
                if manifest.verify(folder / name, entry):
                    progress(entry["size"])
                    continue
                _fetch(storage, paths.model_file(run, name), folder / name, entry, progress)
            with new_file(folder / paths.MANIFEST) as file:
                file.write(data)
            # Remove files of an interrupted download of another export of this model.
            for path in [p for p in folder.rglob("*") if p.is_file()]:
                if path != folder / paths.MANIFEST and path.relative_to(folder).as_posix() not in files:
                    path.unlink()
            folder.rename(to)
    except OSError as error:
        raise UserError(str(explain(error, f"write {to}"))) from error
    return to, False


def _remote_manifest(storage: Storage, run: str) -> tuple[bytes, dict[str, manifest.File]]:
    try:
        data = storage.read(paths.model_manifest(run))
    except FileNotFoundError:
        raise UserError(f"{run} has no model yet: {_state(storage, run)}") from None
    try:
        files: dict[str, manifest.File] = manifest.parse(data)["files"]
    except ValueError as error:
        raise UserError(f"the model of {run} cannot be used: {error}; export it again") from None
    sizes = {entry.path: entry.size for entry in storage.list(paths.model(run))}
    for name, entry in files.items():
        size = sizes.get(paths.model_file(run, name))
        if size != entry["size"]:
            problem = "is missing" if size is None else f"has {size:,} bytes instead of {entry['size']:,}"
            raise UserError(f"the model of {run} is incomplete: {name} {problem} in {storage.url}; export it again")
    return data, files


def _state(storage: Storage, run: str) -> str:
    """Return the state of a run without a model, and what to do."""
    try:
        status = Status.model_validate_json(storage.read(paths.status(run)))
    except FileNotFoundError:
        return "it has not started; `python -m scripts.watch` follows it"
    except ValidationError:
        return "its status.json cannot be read"
    why = f" ({status.reason})" if status.reason else ""
    where = f"it is {status.state} at step {status.step:,}{why}"
    if status.taken_back:
        return where
    if status.state in ("FAILED", "STOPPED"):
        return f"{where}; raise gpt2-training:launch by one and run `pulumi up` to continue it"
    return f"{where}; `python -m scripts.watch` follows it"


def _fetch(storage: Storage, path: str, target: Path, entry: manifest.File, progress: ByteProgress) -> None:
    try:
        storage.download(path, target, progress)
    except FileNotFoundError:
        raise UserError(f"{storage.url}/{path} was deleted during the download; run it again") from None
    if not manifest.verify(target, entry):
        target.unlink()
        raise UserError(f"{storage.url}/{path} is not what its manifest says (its sha256 differs); export it again")


def _is_whole(folder: Path, data: bytes, files: dict[str, manifest.File]) -> bool:
    """Return whether a folder contains exactly this model. Other files in it do not matter."""
    local_manifest = folder / paths.MANIFEST
    return (
        local_manifest.is_file()
        and local_manifest.read_bytes() == data
        and all(manifest.verify(folder / name, entry) for name, entry in files.items())
    )


def _refuse_other(to: Path) -> None:
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"--to {to}: there is a file or link of this name; give another folder")
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to}: there is something else in this folder; remove it or give another folder")


@contextmanager
def _partial_folder(to: Path) -> Iterator[Path]:
    """Yield a folder next to `to` for incomplete files. Raise UserError if another process uses it."""
    folder = to.absolute().parent / f".{to.absolute().name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--to {to}: another download into this folder is running; wait for it") from None
        for leftover in folder.rglob(".*.part"):
            leftover.unlink()
        yield folder
    finally:
        os.close(descriptor)
