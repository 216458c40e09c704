"""Docker for virtual machines whose image has none: its static build, put into the machines' bucket.

A machine without internet can install no package. `scripts.prepare_data` fetches the archive once, `pulumi up` puts it
into the bucket, and boot.sh checks and unpacks it.
"""

import hashlib
from functools import cache
from pathlib import Path

from infra.fleet.boot_image import has_docker
from infra.stack.config import StackConfig

ARCHIVE = "docker-29.9.0.tgz"
ADDRESS = f"https://download.docker.com/linux/static/stable/x86_64/{ARCHIVE}"
# Docker publishes no checksum of its static builds. Two projects that know nothing of each other pin this one, as
# read in 2026-11. It was never compared with the file itself.
SHA256 = "33e1ab8b63d14bca449f7a3d30d7f6aa669daa544e60a86b17fec87f61afe2b4"
PATH = f"docker/{ARCHIVE}"  # in the data bucket


def archive_file(config: StackConfig) -> Path:
    """Return where the archive is in the checkout, once `scripts.prepare_data` has fetched it."""
    return config.root / "data" / ARCHIVE


def needs_archive(config: StackConfig) -> bool:
    """Return whether a stack on Google Cloud has to bring Docker to its machines."""
    return not has_docker(config.file.machines.image_family)


def archive_problem(config: StackConfig) -> str | None:
    """Return that the archive is missing or damaged, if the machines need it, without the project's name."""
    if not needs_archive(config):
        return None
    archive, fix = archive_file(config), f"run `python -m scripts.prepare_data --stack {config.stack}`"
    if not archive.is_file():
        return (
            f"machines.imageFamily: {config.file.machines.image_family} may have no Docker, and machines without"
            f" internet cannot fetch it; {fix}"
        )
    if not is_intact(archive):
        return f"machines.imageFamily: {archive} is damaged: its sha256 is not the pinned one; {fix} to fetch it again"
    return None


def is_intact(archive: Path) -> bool:
    """Return whether a file is the pinned archive."""
    state = archive.stat()
    return _sha256(archive, state.st_size, state.st_mtime_ns) == SHA256


@cache
def _sha256(file: Path, _size: int, _modified: int) -> str:
    """Hash a file once, as 80 MB take a while, and again only if it has another size or date."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
