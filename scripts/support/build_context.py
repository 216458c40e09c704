"""Pack the trainer's folder as a build context for Docker. The same files always give the same bytes."""

import gzip
import io
import tarfile
from pathlib import Path

from trainer.contract.identity import code_files


def pack(folder: Path) -> bytes:
    """Return a .tar.gz of the files that code_hash() hashes, without times, owners or modes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in code_files(folder):
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
