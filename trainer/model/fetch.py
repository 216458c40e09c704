"""Fetch the checkpoint that a run starts from: a folder, a run of a bucket, or a model of the hub."""

from pathlib import Path

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.wording import few
from trainer.data.prepared import cache_folder
from trainer.storage import manifest as manifests
from trainer.storage.base import Refused, Storage
from trainer.storage.factory import open_storage


def fetch_folder(source: str) -> str:
    """Return `source` itself if it is a folder or a hub id. Download a gs:// folder and return its copy in the cache.

    Raise InputError if there is no such folder, or if it is a run's model that is not complete.
    """
    if not source.startswith("gs://"):
        folder = Path(source).expanduser()
        if folder.is_dir() or source.startswith(("/", ".", "~")):
            if not (folder / "config.json").is_file():  # transformers would assume GPT-2's own dimensions
                raise InputError(f"model.initialize: {source} has no config.json; give a checkpoint's folder")
            return str(folder)
        return source
    bucket, _, prefix = source.removeprefix("gs://").partition("/")
    storage, target = open_storage(f"gs://{bucket}"), cache_folder() / "models" / bucket / prefix
    entries = storage.list(prefix)
    if not entries:
        raise InputError(f"model.initialize: there is nothing at {source}; {_remedy(storage, prefix)}")
    for entry in entries:
        storage.download(entry.path, target / entry.path[len(prefix) :].lstrip("/"))
    # A run writes the manifest last, so a model without a valid one is not complete.
    if _is_of_run(prefix) and (wrong := manifests.verify_manifest(target)):
        raise InputError(f"model.initialize: the model at {source} is not whole ({wrong[0]}); wait for its run to end")
    return str(target)


def _is_of_run(prefix: str) -> bool:
    return paths.run_of_model(f"{prefix.rstrip('/')}/{paths.MANIFEST}") is not None


def _remedy(storage: Storage, prefix: str) -> str:
    """Return what to do if there is no checkpoint at `prefix`. For a run's model, name the bucket's finished runs."""
    if not _is_of_run(prefix):
        return "give the address of a checkpoint's folder"
    try:
        newest = sorted(storage.list(paths.RUNS), key=lambda entry: -entry.updated)
    except Refused:  # a machine on Google Cloud may list that one model alone
        return "give the address of a finished run"
    runs = [run for entry in newest if (run := paths.run_of_model(entry.path))]
    return f"finished runs there: {few(runs, 'older ones')}"
