"""Describe this computer: cores, GPUs, processor."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path


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


def gpus() -> int:
    """Return the number of NVIDIA GPUs that the driver reports. Asking torch instead would take seconds."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
