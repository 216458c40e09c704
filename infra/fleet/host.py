"""Describe this computer: cores, GPUs, processor."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_GPU = re.compile(r"^GPU \d+: (?P<model>.*?) \(UUID: (?P<uuid>[^)]+)\)", re.MULTILINE)


def host_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def host_label() -> str:
    """Return this computer in words: its processor and the cores that this process may use."""
    return f"{_processor()}, {host_cores()} cores"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(names, "unknown processor").split())


@dataclass(frozen=True)
class HostGpu:
    """A GPU of this computer that the trainers of a local stack may use."""

    device: str  # as CUDA_VISIBLE_DEVICES names it
    model: str  # for example "NVIDIA H100 80GB HBM3"; empty if the shell names it by an index that may mean another one


@cache
def host_gpus() -> tuple[HostGpu, ...]:
    """Return the NVIDIA GPUs that the driver reports and the shell's CUDA_VISIBLE_DEVICES leaves.

    To ask torch instead would take seconds. The answer is kept, as the driver's tool may take a second, too.
    """
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    every = [HostGpu(*found.group("uuid", "model")) for found in _GPU.finditer(listed)]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(every)
    # An index counts CUDA's order, the fastest GPU first, which is the driver's only where all are of one model or the
    # shell says so.
    same_order = len({gpu.model for gpu in every}) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    gpus: list[HostGpu] = []
    for device in map(str.strip, chosen.split(",")):
        if device.isdigit() and int(device) < len(every):
            gpus.append(HostGpu(device, every[int(device)].model if same_order else ""))
        elif device.startswith(("GPU-", "MIG-")) and f"(UUID: {device}" in listed:
            model = next((gpu.model for gpu in every if gpu.device.startswith(device)), "")
            gpus.append(HostGpu(device, model))
        else:  # CUDA ignores the first device that does not exist, and all behind it
            break
    return tuple(gpus)
