"""Open the storage that an address names."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainer.storage.base import Storage, StorageError
from trainer.storage.local import FileStorage


def open_storage(url: str) -> Storage:
    """Open "gs://bucket", "gs://bucket/folder", "file:///folder" or a plain folder path.

    Nothing is created before the first write. Raise StorageError for any other address, and without credentials.
    """
    if url.startswith("gs://"):
        from trainer.storage.google import GoogleStorage  # 0.2 s of imports that a folder does not need

        bucket, _, prefix = url.removeprefix("gs://").partition("/")
        if not bucket:
            raise StorageError(f"{url!r} names no bucket; write gs://bucket")
        return GoogleStorage(bucket, prefix.strip("/"))
    if url.startswith("file:"):
        parts = urlsplit(url.replace("?", "%3F").replace("#", "%23"))  # legal in a folder's name
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StorageError(f"{url!r} is not an absolute folder; write file:///folder (three slashes)")
        return FileStorage(Path(unquote(parts.path)))
    if "://" in url or not url:
        raise StorageError(f"{url!r} is no storage; write gs://bucket, file:///folder or the path of a folder")
    return FileStorage(Path(url).expanduser())
