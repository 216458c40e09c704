"""What this machine has: cores, GPUs, memory."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path


def host_cores() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@cache
def this_machine() -> str:
    """The processor here, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join(next(names, "unknown processor").split())


def gpus() -> int:
    """How many NVIDIA GPUs this machine has, as its driver says: torch would take seconds to be asked."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
