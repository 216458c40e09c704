"""Declare a bucket of `platform: local`, which is a folder, with the text and the run in it.

Destroying these deletes no file: text, checkpoints and models stay. It ends processes, and status.json says so.
"""

import json
import os
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra import lifecycle
from infra.dynamic import Properties, Provider, changed, plain
from infra.local import processes
from trainer.contract import paths
from trainer.contract.identity import fingerprint
from trainer.contract.spec import JobSpec
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage


def folder(url: str) -> Path:
    """Return the folder of a file:// bucket. Raise StorageError for any other."""
    path = open_storage(url).local_path(paths.CURRENT)
    if path is None:
        raise StorageError(f"{url} is not on this machine; platform local wants file://")
    return path.parent


class BucketProvider(Provider):
    def check(self, _olds: Properties, news: Properties) -> CheckResult:
        """Say in one line, before anything is made, if files cannot be written there."""
        target = folder(news["url"])
        nearest = next(path for path in (target, *target.parents) if path.exists())
        if not nearest.is_dir():
            return CheckResult(
                news, [CheckFailure("url", f"{nearest} is a file; move it away: a folder belongs there")]
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            return CheckResult(news, [CheckFailure("url", f"{nearest} cannot be written to; check its owner and mode")])
        return CheckResult(news, [])

    def create(self, props: Properties) -> CreateResult:
        folder(props["url"]).mkdir(parents=True, exist_ok=True)
        return CreateResult(props["url"], {"url": props["url"]})

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        names = changed(olds, news)  # not empty if the checkout was moved
        return DiffResult(changes=bool(names), replaces=sorted(names))

    def read(self, id_: str, props: Properties) -> ReadResult:
        return ReadResult(id_ if folder(props["url"]).is_dir() else "", props)

    def delete(self, _id: str, props: Properties) -> None:
        # This ends processes that no state knows, too: an `up` that was killed may have started some.
        processes.sweep(folder(props["url"]))


class Bucket(Resource, module="local", name="Bucket"):
    """The bucket of a stack."""

    url: pulumi.Output[str]

    def __init__(self, name: str, url: str, opts: pulumi.ResourceOptions | None = None):
        super().__init__(BucketProvider(), name, {"url": url}, opts)


class TextProvider(Provider):
    """The source text in the bucket, addressed by its content: it is written once and never overwrites a file."""

    def create(self, props: Properties) -> CreateResult:
        storage, source = open_storage(props["bucket"]), Path(props["source"])
        if not storage.matches(source, props["path"]):
            storage.upload(source, props["path"])
        copy = storage.local_path(props["path"])
        if copy is not None and fingerprint(copy) != props["fingerprint"]:
            storage.delete(props["path"])
            raise StorageError(f"{source} was changed while it was being copied; run `pulumi up` again")
        return CreateResult(props["path"], plain(props))

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        # The same text from another place is no change.
        names = changed(olds, news) - {"source"}
        return DiffResult(changes=bool(names) or not _there(olds, "path"), replaces=sorted(names))

    def update(self, _id: str, _olds: Properties, news: Properties) -> UpdateResult:
        return UpdateResult(self.create(news).outs)

    def read(self, id_: str, props: Properties) -> ReadResult:
        return ReadResult(id_ if _there(props, "path") else "", props)


class Text(Resource, module="local", name="Text"):
    """The text of a run."""

    def __init__(self, name: str, bucket: str, source: Path, job: JobSpec, opts: pulumi.ResourceOptions | None = None):
        props = {"bucket": bucket, "source": str(source), "path": job.data.path, "fingerprint": job.fingerprint}
        super().__init__(TextProvider(), name, props, opts)


class JobProvider(Provider):
    """The run's job.json, current.json, and its status as far as Pulumi decides it."""

    def create(self, props: Properties) -> CreateResult:
        props = plain(props)
        job = JobSpec.model_validate(props["spec"])
        storage = open_storage(props["bucket"])
        storage.write(props["path"], _json(job.to_json()))
        lifecycle.begin(storage, job.run, job.launch)
        storage.write(paths.CURRENT, _json({"run": job.run, "launch": job.launch}))
        return CreateResult(job.run, props)

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        replaces = changed(olds, news) & {"bucket", "path"}
        return DiffResult(
            changes=bool(changed(olds, news)) or not _there(olds, "path"),
            replaces=sorted(replaces),
        )

    def update(self, _id: str, _olds: Properties, news: Properties) -> UpdateResult:
        return UpdateResult(self.create(news).outs)

    def read(self, id_: str, props: Properties) -> ReadResult:
        return ReadResult(id_ if _there(props, "path") else "", props)

    def delete(self, id_: str, props: Properties) -> None:
        processes.stop(processes.run_mark(folder(props["bucket"]), id_))
        lifecycle.end(open_storage(props["bucket"]), id_, plain(props)["spec"].get("launch", 1))


class Job(Resource, module="local", name="Job"):
    """The declaration of a run."""

    def __init__(self, name: str, bucket: str, job: JobSpec, opts: pulumi.ResourceOptions | None = None):
        # A preview lists every key of a changed object, so defaults are left out here; job.json has them.
        given = job.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        props = {"bucket": bucket, "path": paths.job(job.run), "spec": given}
        super().__init__(JobProvider(), name, props, opts)


def _there(props: Properties, name: str) -> bool:
    path = open_storage(props["bucket"]).local_path(props[name])
    return path is not None and path.is_file()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
