"""Docker for virtual machines whose image has none: its static build, put into the machines' bucket.

A machine without internet can install no package. `scripts.prepare_data` fetches the archive once, `pulumi up` puts it
into the bucket, and boot.sh checks and unpacks it.
"""

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
    """Return that the archive is missing, if the machines need it, without the project's name."""
    if not needs_archive(config) or archive_file(config).is_file():
        return None
    return (
        f"machines.imageFamily: {config.file.machines.image_family} may have no Docker, and machines without internet"
        f" cannot fetch it; run `python -m scripts.prepare_data --stack {config.stack}`"
    )
