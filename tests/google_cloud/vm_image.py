"""What is on the disk of a VM when it boots: the commands and folders of its image, of three kinds.

- "cos", Container-Optimized OS: Docker; no driver before `cos-extensions` has installed one, /root read-only, no
  NVIDIA toolkit;
- "ubuntu": Docker and NVIDIA's driver and toolkit, which Docker does not know yet;
- "deep-learning", Deep Learning VM: driver and toolkit, and no Docker.

A command that an image lacks is not found: PATH leads to folders of the disk alone.
"""

import hashlib
import io
import shutil
import sys
import tarfile
from pathlib import Path

BIN = Path(__file__).parent / "bin"
KINDS = {  # the commands of each kind that the stand-in plays
    "cos": ("docker", "cos-extensions", "iptables", "mount"),
    "ubuntu": ("docker", "nvidia-ctk", "nvidia-smi"),
    "deep-learning": ("nvidia-ctk", "nvidia-smi"),
}
EVERYWHERE = ("systemctl", "systemd-run")
# Real commands that Container-Optimized OS has too; it has no Python, no apt and no gcloud.
REAL = (
    "bash cat chmod cp curl date env grep gzip head id ln ls mkdir mktemp mv nice rm sed setsid sh sha256sum sleep sort"
)
REAL += " tail tar touch tr true uname wc"
SYSTEM_PYTHON = str(Path(sys.base_prefix, "bin", "python3"))  # not of PATH, where it may be a script of pyenv


def kind_of(image: str) -> str:
    """Return the kind of an image by its address, projects/PROJECT/global/images/family/FAMILY."""
    if "cos-cloud" in image:
        return "cos"
    return "ubuntu" if "ubuntu-os-" in image else "deep-learning"


def furnish(disk: Path, kind: str) -> str:
    """Lay out a disk; return the PATH of its commands."""
    for folder in ("dev", "etc/systemd/system", "root", "run/systemd/system", "usr/bin", "usr/local/bin", "var/tmp"):
        (disk / folder).mkdir(parents=True)
    for name in REAL.split():
        if found := shutil.which(name):
            (disk / "usr/bin" / name).symlink_to(found)
    for name in (*KINDS[kind], *EVERYWHERE):
        _write(disk / "usr/bin" / name, launcher(name))
    if "docker" in KINDS[kind]:
        (disk / "run/docker.sock").touch()  # the daemon runs
    return f"{disk}/usr/local/bin:{disk}/usr/bin"


def launcher(name: str) -> str:
    """Return a script that runs one of the commands in bin/, of which a machine's PATH shows nothing."""
    interpreter = SYSTEM_PYTHON if (BIN / name).read_text().startswith("#!/usr/bin/env python3") else "/bin/sh"
    return f'#!/bin/sh\nexec {interpreter} {BIN / name} "$@"\n'


def docker_archive(path: Path) -> str:
    """Write what Docker's static build is on the stand-in, and return its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"docker": launcher("docker"), "dockerd": "#!/bin/sh\n"}.items():
            member = tarfile.TarInfo(f"docker/{name}")
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
