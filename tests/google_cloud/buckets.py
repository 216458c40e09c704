"""Buckets and objects. They are in fake-gcs-server, so that the trainer, the scripts and Pulumi see the same bytes."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tests.google_cloud import names
from tests.google_cloud.cloud import Behaviour, Cloud
from tests.google_cloud.errors import CloudError

Json = dict[str, Any]
BUCKET = "gcp:storage/bucket:Bucket"
OBJECT = "gcp:storage/bucketObject:BucketObject"
ASSET = {"4dabf18193072939515e22adb298388d": "c44067f5952c0a294b673a41bacd8c17"}


class Storage:
    """The few calls of the JSON API that the stand-in cloud makes itself."""

    def __init__(self, url: str) -> None:
        self._host = url.removeprefix("http://").rstrip("/")

    def request(self, verb: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            connection.request(verb, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, verb: str, path: str, body: Json | None = None) -> Json | None:
        """Return the answer as JSON; None for 404."""
        status, content = self.request(verb, path, json.dumps(body).encode() if body is not None else b"")
        if status == 404:
            return None
        if status >= 300:
            raise CloudError(status, "backendError", content.decode(errors="replace")[:200])
        found: Json = json.loads(content) if content else {}
        return found

    def bucket(self, name: str) -> Json | None:
        return self.json("GET", f"/storage/v1/b/{name}")

    def objects(self, bucket: str, prefix: str = "", versions: bool = False) -> list[Json] | None:
        """Return the bucket's objects; None where the bucket is missing."""
        items: list[Json] = []
        query = {"prefix": prefix, "versions": str(versions).lower()}
        while True:
            page = self.json("GET", f"/storage/v1/b/{bucket}/o?{urlencode(query)}")
            if page is None:
                return None
            items += page.get("items") or []
            if not page.get("nextPageToken"):
                return items
            query["pageToken"] = page["nextPageToken"]

    def content(self, bucket: str, name: str) -> bytes | None:
        status, content = self.request("GET", f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")
        return content if status == 200 else None


class Bucket(Behaviour):
    def __init__(self, cloud: Cloud, token: str) -> None:
        super().__init__(cloud, token)
        self.storage = Storage(cloud.storage)

    def check_create(self, props: Json) -> None:
        if self.storage.bucket(props["name"]) is not None:
            raise CloudError(409, "conflict", f"The bucket {props['name']} exists already; names are unique worldwide.")

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        body: Json = {"name": id, "location": props["location"]}
        if props.get("versioning"):
            body["versioning"] = {"enabled": bool(props["versioning"].get("enabled"))}
        self.storage.json("POST", f"/storage/v1/b?project={props['project']}", body)
        return {}

    def read(self, id: str, state: Json) -> Json | None:  # noqa: A002
        found = self.storage.bucket(id)
        if found is None:
            return None
        if state:
            return state
        made: Json = {"name": id, "url": f"gs://{id}", names.PARTIAL: True}
        if (found.get("versioning") or {}).get("enabled"):
            made["versioning"] = {"enabled": True}
        return made

    def check_delete(self, id: str, state: Json) -> None:  # noqa: A002
        if not state.get("forceDestroy") and self.storage.objects(id):
            raise CloudError(
                409,
                "conflict",
                f"Error trying to delete bucket {id} containing objects without `force_destroy` set to true",
            )

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        for item in self.storage.objects(id, versions=True) or []:
            path = f"/storage/v1/b/{id}/o/{quote(item['name'], safe='')}"
            self.storage.json("DELETE", f"{path}?generation={item['generation']}")
        self.storage.json("DELETE", f"/storage/v1/b/{id}")


class Object(Behaviour):
    def __init__(self, cloud: Cloud, token: str) -> None:
        super().__init__(cloud, token)
        self.storage = Storage(cloud.storage)

    def check_create(self, props: Json) -> None:
        if (props.get("source") is None) == (props.get("content") is None):
            raise CloudError(400, "required", "an object needs either source or content")
        if self.storage.bucket(props["bucket"]) is None:
            raise CloudError(404, "notFound", f"The specified bucket does not exist: {props['bucket']}.")

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        query = urlencode({"uploadType": "media", "name": props["name"]})
        kind = props.get("contentType") or "text/plain; charset=utf-8"
        path = f"/upload/storage/v1/b/{props['bucket']}/o?{query}"
        status, content = self.storage.request("POST", path, _bytes(props), kind)
        if status != 200:
            raise CloudError(status, "backendError", content.decode(errors="replace")[:200])
        made = json.loads(content)
        return _outputs(made)

    def read(self, id: str, state: Json) -> Json | None:  # noqa: A002
        if not state:
            return None
        found = self.storage.json("GET", f"/storage/v1/b/{state['bucket']}/o/{quote(state['name'], safe='')}")
        if found is None:
            return None
        if found["md5Hash"] == state.get("md5hash"):
            return {**state, **_outputs(found)}
        data = self.storage.content(state["bucket"], state["name"]) or b""  # another program wrote it
        text = data.decode(errors="replace")
        changed: Json = (
            {"content": text}
            if "content" in state
            else {"source": {**ASSET, "hash": hashlib.sha256(data).hexdigest(), "text": text}}
        )
        return {**state, **changed, **_outputs(found)}

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        return self.create(id, news)

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        self.storage.json("DELETE", f"/storage/v1/b/{state['bucket']}/o/{quote(state['name'], safe='')}")


def _bytes(props: Json) -> bytes:
    if props.get("content") is not None:
        return str(props["content"]).encode()
    source = props["source"]
    if "text" in source:
        return str(source["text"]).encode()
    if "path" in source:
        return Path(source["path"]).read_bytes()
    raise CloudError(400, "invalid", "source must be a file or a string; the stand-in cloud fetches nothing")


def _outputs(found: Json) -> Json:
    return {
        "md5hash": found["md5Hash"],
        "md5hexhash": base64.b64decode(found["md5Hash"]).hex(),
        "crc32c": found.get("crc32c", ""),
        "generation": int(found.get("generation", 0)),
    }


def register(cloud: Cloud) -> None:
    storage = Storage(cloud.storage)
    cloud.behaviours[BUCKET] = Bucket(cloud, BUCKET)
    cloud.behaviours[OBJECT] = Object(cloud, OBJECT)

    def get_buckets(args: Json) -> Json:
        page = storage.json("GET", f"/storage/v1/b?project={args['project']}") or {}
        prefix = args.get("prefix") or ""
        every = sorted(b["name"] for b in page.get("items") or [])
        # Tests share the server: a bucket is the project's if the registry has it, or by its name.
        ours = {r.id for r in cloud.find(BUCKET, project=args["project"])}
        mine = [n for n in every if n.startswith(prefix) and (n in ours or n.startswith(args["project"]))]
        buckets = [{"name": n, "labels": {}, "location": "", "selfLink": "", "storageClass": "STANDARD"} for n in mine]
        return {"id": f"projects/{args['project']}/buckets", "buckets": buckets, **_given(args, "prefix", "project")}

    def get_bucket_objects(args: Json) -> Json:
        found = storage.objects(args["bucket"], args.get("prefix") or "")
        if found is None:
            raise CloudError(404, "notFound", f"The specified bucket does not exist: {args['bucket']}.")
        items = [
            {
                "name": o["name"],
                "contentType": o.get("contentType", ""),
                "mediaLink": o.get("mediaLink", ""),
                "selfLink": o.get("selfLink", ""),
                "storageClass": o.get("storageClass", "STANDARD"),
            }
            for o in found
        ]
        return {"id": args["bucket"], "bucketObjects": items, **_given(args, "bucket", "prefix", "matchGlob")}

    def get_bucket_object_content(args: Json) -> Json:
        data = storage.content(args["bucket"], args["name"])
        if data is None:
            raise CloudError(404, "notFound", f"No such object: {args['bucket']}/{args['name']}")
        return {
            "id": f"{args['bucket']}-{args['name']}",
            "content": data.decode(errors="replace"),
            "contentBase64": base64.b64encode(data).decode(),
            **_given(args, "bucket", "name"),
        }

    cloud.invokes["gcp:storage/getBuckets:getBuckets"] = get_buckets
    cloud.invokes["gcp:storage/getBucketObjects:getBucketObjects"] = get_bucket_objects
    cloud.invokes["gcp:storage/getBucketObjectContent:getBucketObjectContent"] = get_bucket_object_content


def _given(args: Json, *keys: str) -> Json:
    return {k: args[k] for k in keys if k in args}
