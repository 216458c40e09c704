"""Fetch the checkpoint that a run starts from: a folder, a run of a bucket, or a model of the hub."""

from pathlib import Path

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.wording import few
from trainer.data.prepared import cache_folder
from trainer.storage import manifest as manifests
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage


def fetch_folder(source: str) -> str:
    """`source` itself if it is a folder or a hub id; a gs:// folder is downloaded to the cache first.

    Raises InputError if it is not there, or is a run's model that is not whole.
    """
    if not source.startswith("gs://"):
        folder = Path(source).expanduser()
        if folder.is_dir() or source.startswith(("/", ".", "~")):
            if not (folder / "config.json").is_file():  # transformers would take GPT-2's own dimensions for granted
                raise InputError(f"model.initialize: {source} has no config.json; give a checkpoint's folder")
            return str(folder)
        return source
    bucket, _, prefix = source.removeprefix("gs://").partition("/")
    storage, target = open_storage(f"gs://{bucket}"), cache_folder() / "models" / bucket / prefix
    entries = storage.list(prefix)
    if not entries:
        raise InputError(f"model.initialize: nothing lies at {source}; {_others(storage, prefix)}")
    for entry in entries:
        storage.download(entry.path, target / entry.path[len(prefix) :].lstrip("/"))
    # Written last: what a run exports is there with it.
    if _is_of_run(prefix) and (wrong := manifests.verify_manifest(target)):
        raise InputError(f"model.initialize: the model at {source} is not whole ({wrong[0]}); wait for its run to end")
    return str(target)


def _is_of_run(prefix: str) -> bool:
    return paths.run_of_model(f"{prefix.rstrip('/')}/{paths.MANIFEST}") is not None


def _others(storage: Storage, prefix: str) -> str:
    """What to do if a run's model is not there: the finished runs beside it, if any."""
    if not _is_of_run(prefix):
        return "give the address of a checkpoint's folder"
    newest = sorted(storage.list(paths.RUNS), key=lambda entry: -entry.updated)
    runs = [run for entry in newest if (run := paths.run_of_model(entry.path))]
    return f"finished runs there: {few(runs, 'older ones')}"
