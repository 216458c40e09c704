"""Use a bucket of Google Cloud Storage, or the emulator that STORAGE_EMULATOR_HOST names, by google-cloud-storage."""

import base64
import io
import os
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage as gcs
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from trainer.contract.errors import first_line
from trainer.gcloud.login import LOGIN
from trainer.storage.base import (
    ByteProgress,
    Conflict,
    Entries,
    Entry,
    NoBucket,
    Refused,
    StorageError,
    Unavailable,
    explain,
    is_internal,
    new_file,
    path_parts,
)

RETRY = DEFAULT_RETRY.with_timeout(120)  # seconds for each request, with pauses that grow
TIMEOUT = (10, 60)  # seconds to connect, seconds of silence
CHUNK_BYTES = 16 * 1024 * 1024  # of a resumable upload: at most so much is sent again after a connection broke
PART_BYTES = 64 * 1024 * 1024  # of a restartable upload: at most so much of a stream is sent again after a kill
PARTS = 32  # the most that a compose request takes
STREAMS = 4  # parts that are sent at the same time
WRITER = "writer"  # metadata key: which write made an object
# The library would ask for the bucket's location in the background, to label traces that nobody collects. Our accounts
# may not look at buckets, so each client would leave a refusal in the audit log.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")


class GoogleStorage:
    """A bucket, or a folder in a bucket, as a trainer.storage.base.Storage."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.url = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        with self._for_people("open"):
            self._client = gcs.Client(project=None)  # objects need no project
            try:
                self._bucket = self._client.bucket(bucket)  # no request: storage.objectUser may not look at buckets
            except ValueError as error:
                raise StorageError(f"gs://{bucket}: {error}") from error

    def read(self, path: str) -> bytes:
        return self.read_generation(path)[0]

    def read_generation(self, path: str) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        generation = self._fetch(path, buffer, None)
        return buffer.getvalue(), generation

    def write(self, path: str, data: bytes, *, if_generation: int | None = None) -> int:
        with self._for_people("write", path):
            return self._put(path, io.BytesIO(data), len(data), if_generation)

    def size(self, path: str) -> int | None:
        with self._for_people("read", path):
            blob = self._bucket.get_blob(self._name(path), timeout=TIMEOUT, retry=RETRY)
        return blob.size if blob else None

    def list(self, prefix: str) -> Entries:
        folder = "/".join([*path_parts(prefix.rstrip("/")), ""]) if prefix.rstrip("/") else ""
        entries: Entries = []
        with self._for_people("list"):
            blobs = self._client.list_blobs(
                self._bucket,
                prefix=self._prefix + folder,
                fields="items(name,size,generation,updated),nextPageToken",
                timeout=TIMEOUT,
                retry=RETRY,
            )
            for blob in blobs:
                path = blob.name.removeprefix(self._prefix)
                if not path.endswith("/") and not is_internal(
                    path.rsplit("/", 1)[-1]
                ):  # an empty folder that the console made
                    entries.append(Entry(path, blob.size, int(blob.generation), blob.updated.timestamp()))
        return sorted(entries, key=lambda entry: entry.path)

    def delete(self, path: str, *, generation: int | None = None) -> None:
        try:
            with self._for_people("delete", path):
                blob = self._bucket.blob(self._name(path), generation=generation)
                blob.delete(timeout=TIMEOUT, retry=RETRY)
        except FileNotFoundError:
            pass

    def upload(
        self,
        source: Path,
        path: str,
        progress: ByteProgress | None = None,
        *,
        if_generation: int | None = None,
        restartable: bool = False,
    ) -> int:
        size = source.stat().st_size
        with self._for_people("write", path):
            if restartable and size > PART_BYTES:
                return self._put_parts(source, path, size, progress, if_generation)
            with _Slice(source, 0, size, progress) as stream:
                return self._put(path, stream, size, if_generation)

    def download(self, path: str, target: Path, progress: ByteProgress | None = None) -> None:
        try:
            with new_file(target) as file:
                self._fetch(path, file, progress)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explain(error, f"write {target}") from error

    def matches(self, source: Path, path: str) -> bool:
        with self._for_people("read", path):
            blob = self._bucket.get_blob(self._name(path), timeout=TIMEOUT, retry=RETRY)
        if blob is None or blob.size != source.stat().st_size:
            return False
        return bool(blob.crc32c == _crc32c(source, 0, blob.size))

    def local_path(self, path: str) -> Path | None:
        return None

    def _name(self, path: str) -> str:
        return self._prefix + "/".join(path_parts(path))

    def _blob(self, path: str) -> Any:
        return self._bucket.blob(self._name(path))

    def _put(self, path: str, stream: Any, size: int, if_generation: int | None) -> int:
        blob = self._bucket.blob(self._name(path), chunk_size=CHUNK_BYTES)
        writer = uuid.uuid4().hex
        blob.metadata = {WRITER: writer}
        try:
            blob.upload_from_file(
                stream,
                size=size,
                if_generation_match=if_generation,
                checksum="crc32c",
                timeout=TIMEOUT,
                retry=RETRY,
            )
        except api.PreconditionFailed as error:
            # If an answer was lost on the way, the library's second try meets the object that its first try made.
            stored = self._bucket.get_blob(blob.name, timeout=TIMEOUT, retry=RETRY)
            if stored is None or (stored.metadata or {}).get(WRITER) != writer:
                raise Conflict(f"{self.url}/{path} has not the generation {if_generation}") from error
            return int(stored.generation)
        return int(blob.generation)

    def _put_parts(
        self, source: Path, path: str, size: int, progress: ByteProgress | None, expected: int | None
    ) -> int:
        """Upload parts as objects beside `path`, several at once, then let the bucket join them; return the generation.

        Parts that an earlier call left are used if their checksum is right. expected: the generation to replace.
        """
        mebibyte = 1024 * 1024
        length = max(PART_BYTES, -(-size // PARTS // mebibyte) * mebibyte)
        starts = range(0, size, length)
        names = [f"{self._name(path)}.part-{i:02d}-of-{len(starts):02d}" for i in range(len(starts))]
        blobs = self._client.list_blobs(self._bucket, prefix=f"{self._name(path)}.part-", timeout=TIMEOUT, retry=RETRY)
        present = {blob.name: blob for blob in blobs}
        stop = threading.Event()

        def send(name: str, start: int) -> Any:
            count = min(length, size - start)
            old = present.get(name)
            if old is not None and old.size == count and old.crc32c == _crc32c(source, start, count):
                if progress is not None:
                    progress(count)
                return old
            blob = self._bucket.blob(name, chunk_size=CHUNK_BYTES)
            with _Slice(source, start, count, progress, stop) as stream:
                blob.upload_from_file(stream, size=count, checksum="crc32c", timeout=TIMEOUT, retry=RETRY)
            return blob

        with ThreadPoolExecutor(STREAMS) as pool:
            sent = [pool.submit(send, name, start) for name, start in zip(names, starts, strict=True)]
            try:
                for future in wait(sent, return_when=FIRST_EXCEPTION).done:
                    future.result()  # raises the error of a part, while others are still being sent
                parts = [future.result() for future in sent]
            except BaseException:  # Ctrl-C too: do not wait until whole parts are sent
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        blob = self._blob(path)
        try:
            blob.compose(parts, if_generation_match=expected, timeout=TIMEOUT, retry=RETRY)
        except api.NotFound as error:
            raise StorageError(
                f"another upload of {self.url}/{path} took the parts of this one; run it again"
            ) from error
        if blob.size != size or blob.crc32c != _crc32c(source, 0, size):
            blob.delete(if_generation_match=int(blob.generation), timeout=TIMEOUT, retry=RETRY)
            raise StorageError(f"{source} changed while it was uploaded; wait until nothing writes it and run again")
        old = {name: blob for name, blob in present.items() if re.search(r"\.part-\d\d-of-\d\d$", name)}
        every = list({**old, **dict(zip(names, parts, strict=True))}.values())
        # With their generations the parts are gone for good; without, the bucket would keep them as old versions.
        self._bucket.delete_blobs(
            every, on_error=lambda _: None, preserve_generation=True, timeout=TIMEOUT, retry=RETRY
        )
        return int(blob.generation)

    def _fetch(self, path: str, file: BinaryIO, progress: ByteProgress | None) -> int:
        """Copy an object into a file and return its generation. Raise StorageError if the checksum is wrong."""
        blob = self._blob(path)
        sink = _Sink(file, progress)
        with self._for_people("read", path):
            blob.download_to_file(sink, raw_download=True, checksum="crc32c", timeout=TIMEOUT, retry=RETRY)
            # The library does not check a download that it had to resume (status 206), so the whole is checked here.
            if blob.crc32c is None:
                blob.reload(if_generation_match=int(blob.generation), timeout=TIMEOUT, retry=RETRY)
        if blob.crc32c != sink.checksum():
            raise self._damaged(path)
        return int(blob.generation)

    def _damaged(self, path: str) -> StorageError:
        return StorageError(f"{self.url}/{path} arrived damaged (its crc32c differs); run it again")

    @contextmanager
    def _for_people(self, verb: str, path: str = "") -> Iterator[None]:
        """Raise Google's errors as those of trainer.storage.base. verb: such as "read"."""
        where = f"{self.url}/{path}".rstrip("/")
        bucket = "/".join(self.url.split("/")[:3])
        try:
            yield
        except api.NotFound as error:
            if verb in ("read", "delete") and "bucket" not in error.message.lower().replace(bucket[5:].lower(), ""):
                raise FileNotFoundError(f"{where} is not there") from error
            raise NoBucket(
                f"cannot {verb} {where}: there is no bucket {bucket}; check the name, or run `pulumi up`"
            ) from error
        except (auth.DefaultCredentialsError, auth.RefreshError, api.Unauthorized) as error:
            raise StorageError(f"cannot {verb} {where}: no valid Google credentials; {LOGIN}") from error
        except api.Forbidden as error:
            raise Refused(
                f"cannot {verb} {where}: no permission; this account needs roles/storage.objectUser on {bucket}"
                f" (Google says: {first_line(error)})"
            ) from error
        except api.PreconditionFailed as error:
            raise Conflict(f"{where} has another generation") from error
        except DataCorruption as error:
            raise self._damaged(path) from error
        except (api.RetryError, api.ServerError, api.TooManyRequests, auth.TransportError) as error:
            raise _unreachable(verb, where, error) from error
        except (requests.RequestException, ConnectionError) as error:
            raise _unreachable(verb, where, error) from error
        except api.GoogleAPICallError as error:
            raise StorageError(f"cannot {verb} {where}: {first_line(error)}") from error
        except auth.GoogleAuthError as error:
            raise StorageError(f"cannot {verb} {where}: {first_line(error)}; {LOGIN}") from error


class _Sink:
    """A file to download into, which reports progress and computes the checksum."""

    def __init__(self, file: BinaryIO, progress: ByteProgress | None) -> None:
        self._file = file
        self._progress = progress
        self._sum = 0

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._sum = google_crc32c.extend(self._sum, data)
        if self._progress is not None:
            self._progress(len(data))
        return len(data)

    def checksum(self) -> str:
        return _as_google_writes(self._sum)


class _Slice:
    """A range of a file to upload, which reports bytes when they are read for the first time."""

    def __init__(
        self, source: Path, start: int, count: int, progress: ByteProgress | None, stop: threading.Event | None = None
    ) -> None:
        self._file = source.open("rb")
        self._start, self._count, self._progress, self._stop = start, count, progress, stop
        self._counted = 0
        self._file.seek(start)

    def __enter__(self) -> "_Slice":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int) -> int:
        return self._file.seek(self._start + offset) - self._start

    def read(self, size: int = -1) -> bytes:
        if self._stop is not None and self._stop.is_set():
            raise StorageError("the upload was stopped")
        left = self._count - self.tell()
        data = self._file.read(left if size < 0 else min(size, left))
        if self.tell() > self._counted:  # a second try reads the same bytes again
            if self._progress is not None:
                self._progress(self.tell() - self._counted)
            self._counted = self.tell()
        return data


def _crc32c(path: Path, start: int, count: int) -> str:
    total = 0
    with _Slice(path, start, count, None) as file:
        while data := file.read(1024 * 1024):
            total = google_crc32c.extend(total, data)
    return _as_google_writes(total)


def _as_google_writes(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def _unreachable(verb: str, where: str, error: Exception) -> Unavailable:
    cause = getattr(error, "cause", None) or error
    return Unavailable(
        f"cannot {verb} {where}: Google Cloud Storage does not answer ({first_line(cause)});"
        " check the network and run again"
    )
