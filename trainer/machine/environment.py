"""Describe this machine: its processor, memory, GPUs, network and software."""

import fcntl
import os
import platform
import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

SMI_PATIENCE = 20.0  # seconds: without its daemon, NVIDIA's driver takes a few to wake up


def environment(devices: str = "") -> dict[str, str]:
    """Return what is known of this machine, in words.

    The keys are `system`, `cpu`, `cores`, `memory`, `gpu`, `driver`, `python`, `torch`, `image` and `zone`. Of several
    machines on one computer each has a part of its GPUs: `devices`, as CUDA_VISIBLE_DEVICES names them; empty for all.
    """
    values = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": str(cores()),
        "memory": _memory(),
        **_gpus(devices),
        "python": platform.python_version(),
        "torch": _torch(),
        "image": os.environ.get("GPT2_TRAINING_IMAGE", ""),  # boot.sh knows it, and the zone
        "zone": os.environ.get("GPT2_TRAINING_ZONE", ""),
    }
    return {name: value for name, value in values.items() if value}


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    return platform.processor()


def cores() -> int:
    """Return how many cores this machine's processes may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Return the memory of the machine, or its container's limit."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return ""
    with suppress(OSError, ValueError):  # "max" where there is no limit
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return f"{size / 2**30:.1f} GiB"


def _gpus(devices: str) -> dict[str, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, "--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    chosen = devices.split(",")
    names = [
        name
        for index, uuid, name, _ in rows
        if not devices or index in chosen or any(device and uuid.startswith(device) for device in chosen)
    ]
    if not names:
        return {}
    counted = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    return {"gpu": counted, "driver": rows[0][3]}


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def interface_of(address: str) -> str | None:
    """Return the network interface that has this IPv4 address; None where the system does not say (not Linux).

    A machine has several: Docker adds its own.
    """
    if address.startswith("127."):
        return "lo"
    get_address = 0x8915  # SIOCGIFADDR
    for _, name in socket.if_nameindex():
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe, get_address, struct.pack("256s", name.encode()))
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def memory_mb(pid: int) -> int | None:
    """Return the resident memory of a process and its children in MiB; None where the system does not say (not Linux).

    The children are the other processes of a machine that has several. Memory that they share is counted for each.
    """
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    with suppress(OSError, IndexError, ValueError):  # a child may end at any moment
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pages += int(Path(f"/proc/{child}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024**2
