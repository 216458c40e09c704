"""Make a stack's data bucket on Google Cloud, and read an object of any bucket."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage as gcs

from infra.google.retained import as_json, bucket_settings, stack_labels
from infra.stack.config import StackConfig
from scripts.support.common import UserError
from trainer.contract.errors import first_line
from trainer.gcloud.login import LOGIN, key_file_problem

CHUNK_BYTES = 16 * 1024 * 1024


def ensure_bucket(config: StackConfig) -> bool:
    """Make a stack's data bucket unless it exists, and return whether it was made.

    It gets the settings and labels that the stack declares, so that `pulumi up`, which adopts it later, has nothing to
    change. Raise UserError if it cannot be made.
    """
    url, project = config.data_bucket, config.project
    settings = bucket_settings(config.region)
    # To somebody else's bucket Google answers 403, which says nothing about whose it is.
    remedy = (
        f"this account needs roles/storage.admin on project {project}, which needs billing; with both, the bucket is"
        " another project's: rename the stack"
    )
    with _for_people(f"make {url}", remedy):
        client = gcs.Client(project=project)
        if client.lookup_bucket(url.removeprefix("gs://")) is not None:
            return False
        bucket = client.bucket(url.removeprefix("gs://"))
        bucket.iam_configuration.uniform_bucket_level_access_enabled = settings["uniform_bucket_level_access"]
        bucket.iam_configuration.public_access_prevention = settings["public_access_prevention"]
        bucket.versioning_enabled = settings["versioning"]["enabled"]
        bucket.soft_delete_policy.retention_duration_seconds = settings["soft_delete_policy"][
            "retention_duration_seconds"
        ]
        bucket.lifecycle_rules = as_json(settings["lifecycle_rules"])
        bucket.labels = stack_labels(config.stack)
        client.create_bucket(bucket, location=settings["location"])
        return True


def read_object(url: str) -> tuple[int, Iterator[bytes]]:
    """Return the size of the object gs://bucket/name and its content in pieces. Its checksum is verified at the end.

    Raise UserError, here or while reading, if the object cannot be read or is damaged.
    """
    bucket, _, name = url.removeprefix("gs://").partition("/")
    with _for_people(f"read {url}", _reader(bucket)):
        blob = gcs.Client(project=None).bucket(bucket).get_blob(name)
    if blob is None:
        raise UserError(f"{url} is not there; `gcloud storage ls gs://{bucket}` shows what is")
    return int(blob.size), _pieces(url, blob)


def _pieces(url: str, blob: gcs.Blob) -> Iterator[bytes]:
    total = 0
    generation = int(blob.generation)
    with (
        _for_people(f"read {url}", _reader(blob.bucket.name)),
        blob.open("rb", chunk_size=CHUNK_BYTES, raw_download=True, if_generation_match=generation) as stream,
    ):
        while piece := stream.read(CHUNK_BYTES):
            total = google_crc32c.extend(total, piece)
            yield piece
    if blob.crc32c != base64.b64encode(total.to_bytes(4, "big")).decode():
        raise UserError(f"{url} arrived damaged or changed meanwhile (its crc32c differs); run it again")


def _reader(bucket: str) -> str:
    return f"this account needs roles/storage.objectViewer on gs://{bucket}"


@contextmanager
def _for_people(doing: str, rights: str) -> Iterator[None]:
    """Raise Google's errors as a UserError of one line."""
    try:
        yield
    except (auth.DefaultCredentialsError, auth.RefreshError, api.Unauthorized):
        why = key_file_problem() or f"no valid Google credentials; {LOGIN}"
        raise UserError(f"cannot {doing}: {why}") from None
    except api.Conflict:
        raise UserError(f"cannot {doing}: another project has a bucket of this name; rename the stack") from None
    except api.PreconditionFailed:
        raise UserError(f"cannot {doing}: it changed meanwhile; wait until nothing writes it and run again") from None
    except api.Forbidden as error:
        raise UserError(f"cannot {doing}: no permission; {rights} (Google says: {first_line(error)})") from None
    except (api.GoogleAPICallError, api.RetryError, auth.GoogleAuthError, requests.RequestException) as error:
        raise UserError(f"cannot {doing}: {first_line(error)}") from None
