"""Describe a folder in its manifest.json: its files with sizes and hashes. Written last, it marks the folder as whole.

{"files": {"model.safetensors": {"size": 123, "sha256": "…"}, …}, any further keys}
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

from trainer.contract.paths import MANIFEST
from trainer.storage.base import StorageError, chunks, is_internal, new_file, path_parts


class File(TypedDict):
    size: int  # bytes
    sha256: str  # hexadecimal


def describe(path: Path) -> File:
    """Return the entry of one file. Raise OSError if it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in chunks(file, None):  # large pieces, because a thread waits for its turn after each
            digest.update(chunk)
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def verify(path: Path, entry: File) -> bool:
    """Return whether the file is there and is the one that the entry describes."""
    return path.is_file() and path.stat().st_size == entry["size"] and describe(path)["sha256"] == entry["sha256"]


def write_manifest(folder: Path, **further: Any) -> dict[str, Any]:
    """Describe all files below a folder in its manifest.json, with the `further` keys, and return the manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST and not is_internal(p.name))
    manifest = {**further, "files": {p.relative_to(folder).as_posix(): describe(p) for p in files}}
    with new_file(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=2).encode() + b"\n")
    return manifest


def parse(data: bytes) -> dict[str, Any]:
    """Return a manifest from its bytes.

    Raise ValueError, in one line, if they are no manifest or name a file outside of its folder.
    """
    try:
        manifest: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is not JSON ({error})") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f'{MANIFEST} has no "files"')
    for name, entry in files.items():
        try:
            path_parts(name)
        except StorageError as error:
            raise ValueError(f"{MANIFEST} names {name!r}, which is not a file inside of the folder") from error
        if not isinstance(entry, dict) or type(entry.get("size")) is not int or type(entry.get("sha256")) is not str:
            raise ValueError(f"{MANIFEST} gives no size and sha256 for {name!r}")
    return manifest


def verify_manifest(folder: Path) -> list[str]:
    """Return what is wrong with a folder, a line each: a manifest that is missing, files that are not as it says."""
    try:
        manifest = parse((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except ValueError as error:
        return [str(error)]
    return [
        f"{name} is missing or damaged" for name, entry in manifest["files"].items() if not verify(folder / name, entry)
    ]
