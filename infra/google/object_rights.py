"""Limit the rights of an account on a bucket to the objects that it needs, by an IAM condition on their names.

Google compares a condition with `projects/_/buckets/BUCKET/objects/PATH` when an object is asked for, and passes the
prefix of a listing as an attribute of its own. Every role that is granted here may also list: to an account that may
not, Google answers 403 instead of 404 for a missing object, which a trainer could not tell from a missing grant.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pulumi
from pulumi_gcp import storage

from infra.inputs import docker
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec, Role

READ, WRITE = "roles/storage.objectViewer", "roles/storage.objectUser"
TITLES = {READ: "objects that it may read", WRITE: "objects that it may write"}
LISTED = 'api.getAttribute("storage.googleapis.com/objectListPrefix", "")'


@dataclass(frozen=True)
class Objects:
    """Objects of one bucket: everything below folders, and single files, less the exceptions."""

    folders: tuple[str, ...] = ()  # without a slash at the end
    files: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # files below `folders`, and folders with a slash at the end
    without_named: tuple[str, ...] = ()  # names of files, in whichever folder

    def condition(self, bucket: str, *, listed: bool) -> str:
        """Return the IAM condition in CEL, which holds for these objects alone.

        Args:
            bucket: the bucket's name.
            listed: it also holds for a listing of one of the folders.
        """
        root = f"projects/_/buckets/{bucket}/objects/"
        below = [f"resource.name.startsWith({_text(f'{root}{folder}/')})" for folder in self.folders]
        left_out = [
            f"!resource.name.startsWith({_text(root + path)})"
            if path.endswith("/")
            else f"resource.name != {_text(root + path)}"
            for path in self.without
        ]
        left_out += [f"!resource.name.endsWith({_text(f'/{name}')})" for name in self.without_named]
        held = [*below, *(f"resource.name == {_text(root + path)}" for path in self.files)]
        if left_out:
            held = [" && ".join([held[0] if len(held) == 1 else f"({' || '.join(held)})", *left_out])]
        lists = [f"{LISTED}.startsWith({_text(f'{folder}/')})" for folder in self.folders] if listed else []
        return " || ".join([*held, *lists])


@dataclass(frozen=True)
class Right:
    """What an account may do with objects of a bucket."""

    bucket: str  # gs://NAME
    role: str  # READ or WRITE
    objects: Objects


def machine_rights(config: StackConfig, job: JobSpec, role: Role) -> Iterator[Right]:
    """Yield the rights that the machines of a role need for a run, at most one for each bucket and role of Google's.

    A machine reads and writes below its run. Only Pulumi writes the run's job.json and, with the controller, its
    launches. The master alone writes the job.json of a sweep's trial and the wish to end, reads the text, and makes its
    tokens, which trainers read. Every machine may have to fetch Docker.
    """
    run, trains = paths.run(job.run), role != "ps"
    tokens = (paths.tokens(job.fingerprint, job.data.tokens_key()),) if trains else ()
    launches = f"{paths.launches(job.run)}/"
    if role == "master":
        written = Objects(folders=(run, *tokens), without=(launches, paths.job(job.run)))
    else:
        written = Objects(folders=(run,), without=(launches, f"{paths.ends(job.run)}/"), without_named=(paths.JOB,))
    yield Right(config.bucket, WRITE, written)
    needed = list(_inputs(job, role))
    if docker.needs_archive(config):
        needed.append((config.data_bucket, docker.PATH))
    for bucket in (config.bucket, config.data_bucket):
        folders = [path.removesuffix("/") for url, path in needed if url == bucket and path.endswith("/")]
        files = [path for url, path in needed if url == bucket and not path.endswith("/")]
        if bucket == config.bucket:
            folders = [run, *tokens, *folders]
            files += [paths.CURRENT] if role == "master" else []
        if folders or files:
            yield Right(bucket, READ, Objects(tuple(dict.fromkeys(folders)), tuple(dict.fromkeys(files))))


def controller_rights(config: StackConfig, job: JobSpec) -> Iterator[Right]:
    """Yield the rights that the controller needs.

    It reads the records of a launch, and writes where the run is and that its time is over.
    """
    run, launch = job.run, job.launch
    written = (paths.placement(run, launch), paths.end(run, launch))
    yield Right(config.bucket, WRITE, Objects(files=written))
    records = (paths.CURRENT, paths.launch(run, launch), *written)
    yield Right(config.bucket, READ, Objects(files=records))


def grant(
    name: str, bucket: storage.Bucket, right: Right, member: pulumi.Input[str], opts: pulumi.ResourceOptions
) -> None:
    """Declare that an account has a right.

    Another condition is another grant. Pulumi makes it first and deletes the old one at the end of the `up`: machines
    of the run before keep theirs until they are gone, and those of the new run find theirs.

    Args:
        name: of the resource.
        bucket: the bucket of `right`.
        right: the right.
        member: the account, as IAM names it.
        opts: the parent.
    """
    storage.BucketIAMMember(
        name,
        bucket=bucket.name,
        role=right.role,
        member=member,
        condition={
            "title": TITLES[right.role],  # the same for each run, as another title is another grant, too
            "expression": right.objects.condition(right.bucket.removeprefix("gs://"), listed=right.role == READ),
        },
        opts=opts,
    )


def _inputs(job: JobSpec, role: Role) -> Iterator[tuple[str, str]]:
    """Yield (gs://BUCKET, path) of the inputs that a role's machines read; a folder's path ends with a slash."""
    urls: list[str] = []
    if role == "master":
        urls += [job.data.path, f"{job.data.vocabulary_path or ''}/"]
    if role != "ps":
        urls.append(f"{(job.model.initialize or '').rstrip('/')}/")
    for url in urls:
        if url.startswith("gs://"):
            bucket, _, path = url.removeprefix("gs://").partition("/")
            yield f"gs://{bucket}", path


def _text(value: str) -> str:
    """Return a text as CEL writes it."""
    return json.dumps(value, ensure_ascii=False)
