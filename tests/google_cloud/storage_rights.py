"""Which rights on which objects a request to Cloud Storage's JSON API needs.

Sources: the methods' pages below docs.cloud.google.com/storage/docs/json_api/v1/objects, "Required permissions".
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PATH = re.compile(
    r"(?:/download|/upload)?(?:/resumable)?/storage/v1/b/(?P<bucket>[^/]+)(?P<objects>/o(?:/(?P<rest>.+))?)?/?"
)
LIST_PREFIX = "storage.googleapis.com/objectListPrefix"
CHANGES = {"DELETE": "delete", "PATCH": "update", "PUT": "update"}


@dataclass(frozen=True)
class Right:
    """A permission that a request needs."""

    permission: str
    resource: str  # buckets/NAME or buckets/NAME/objects/PATH
    attributes: dict[str, str] = field(default_factory=dict)  # of the API, for conditions


@dataclass(frozen=True)
class Request:
    """A request as the proxy gets it."""

    verb: str
    target: str  # path and query
    content_type: str = ""
    body: bytes = b""


def rights(request: Request) -> list[Right] | None:
    """Return the rights that a request needs; None for a path that storage does not have.

    `if_overwritten` and `if_missing` tell what else the stored object decides.
    """
    match, query = _match(request)
    if match is None:
        return None
    bucket, rest = f"buckets/{match['bucket']}", match["rest"]
    if not match["objects"]:
        return [Right("storage.buckets.get", bucket)]
    if query.get("upload_id"):  # the address of a resumable upload is itself the right to continue it
        return []
    if request.verb == "POST":
        return [Right("storage.objects.create", f"{bucket}/objects/{written(request)}"), *_sources(request, bucket)]
    if rest is None:
        prefix = query.get("prefix")
        return [Right("storage.objects.list", bucket, {LIST_PREFIX: prefix} if prefix else {})]
    return [Right(f"storage.objects.{CHANGES.get(request.verb, 'get')}", f"{bucket}/objects/{unquote(rest)}")]


def written(request: Request) -> str | None:
    """Return the path of the object that a request makes or replaces; None if it does neither."""
    match, query = _match(request)
    if match is None or request.verb != "POST" or query.get("upload_id"):
        return None
    rest = match["rest"]
    if rest is not None and "/" in rest:  # DESTINATION/compose, SOURCE/rewriteTo/b/BUCKET/o/DESTINATION
        return unquote(rest.rpartition("/o/")[2] if "/rewriteTo/" in rest else rest.rpartition("/")[0])
    return query.get("name") or str(_metadata(request).get("name", ""))


def bucket_of(request: Request) -> str:
    match, _ = _match(request)
    return match["bucket"] if match else ""


def if_overwritten(request: Request) -> Right:
    """Return the right that a write needs besides, if the object exists."""
    return Right("storage.objects.delete", f"buckets/{bucket_of(request)}/objects/{written(request)}")


def if_missing(right: Right) -> Right:
    """Return the right without which storage answers 403 instead of 404 for an object."""
    return Right("storage.objects.list", right.resource)


def _sources(request: Request, bucket: str) -> Iterator[Right]:
    """Yield the rights on the objects that a compose request joins."""
    for source in _metadata(request).get("sourceObjects", []):
        yield Right("storage.objects.get", f"{bucket}/objects/{source['name']}")


def _match(request: Request) -> tuple["re.Match[str] | None", dict[str, str]]:
    parts = urlsplit(request.target)
    return PATH.fullmatch(parts.path), {key: values[-1] for key, values in parse_qs(parts.query).items()}


def _metadata(request: Request) -> dict[str, Any]:
    """Return the JSON object that describes the upload: the body, or its first part."""
    content = request.body
    if request.content_type.startswith("multipart/"):
        content = content.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0]
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
