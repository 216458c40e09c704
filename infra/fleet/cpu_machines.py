"""List the families of CPU machines: their sizes, memory, bandwidth and quotas.

Sources: Cyclenerd/google-cloud-pricing-cost-calculator (build/gcp.yml, 2026-08-20) for vCPUs and memory,
Cyclenerd/google-cloud-compute-machine-types (instances/series, 2026-03-22) for bandwidths, both of which copy Google's
page "General-purpose machine family"; names of quotas from public projects that read them in 2026-10.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import floor
from typing import Literal

Disk = Literal["pd-balanced", "hyperdisk-balanced"]
VM_FAMILY_CPUS = "CPUS_PER_VM_FAMILY"  # newer families share this quota, with the family as a dimension


@dataclass(frozen=True)
class CpuFamily:
    """A family of machines without GPUs.

    gbps: for each number of vCPUs, the most Gbit/s that such a machine sends, without Tier_1 networking.
    memory: GB for each vCPU, by kind. Google rounds down to whole GB; exceptions are in EXCEPTIONS.
    quota: Compute Engine's name of the quota of its vCPUs.
    disk: the type of boot disk; C4, C4D and N4 take Hyperdisk alone.
    """

    name: str
    gbps: dict[int, float]
    memory: dict[str, float]
    quota: str
    disk: Disk = "pd-balanced"

    def sizes(self) -> Iterator[tuple[str, int, float, float]]:
        """Yield each machine type's name, vCPUs, GB and Gbit/s."""
        for kind, each in self.memory.items():
            for vcpus, gbps in self.gbps.items():
                name = f"{self.name}-{kind}-{vcpus}"
                if name not in MISSING:
                    gigabytes = vcpus * each if self.name == "n1" else floor(vcpus * each)
                    yield name, vcpus, EXCEPTIONS.get(name, gigabytes), gbps


_N1_VCPUS = (1, 2, 4, 8, 16, 32, 64, 96)
_N2 = {2: 10.0, 4: 10.0, 8: 16.0, **dict.fromkeys((16, 32, 48, 64, 80, 96, 128), 32.0)}
CPU_FAMILIES: dict[str, CpuFamily] = {
    family.name: family
    for family in [
        # N1 and E2 share a quota.
        CpuFamily(
            "n1",
            {vcpus: min(2.0 * vcpus, 32.0) for vcpus in _N1_VCPUS},
            {"standard": 3.75, "highmem": 6.5, "highcpu": 0.9},
            "CPUS",
        ),
        CpuFamily("e2", {2: 4, 4: 8, 8: 16, 16: 16, 32: 16}, {"standard": 4, "highmem": 8, "highcpu": 1}, "CPUS"),
        CpuFamily("n2", _N2, {"standard": 4, "highmem": 8, "highcpu": 1}, "N2_CPUS"),
        CpuFamily("n2d", {**_N2, 224: 32}, {"standard": 4, "highmem": 8, "highcpu": 1}, "N2D_CPUS"),
        CpuFamily(
            "c3",
            {4: 23, 8: 23, 22: 23, 44: 32, 88: 62, 176: 100},
            {"standard": 4, "highmem": 8, "highcpu": 2},
            "C3_CPUS",
        ),
        CpuFamily(
            "c3d",
            {4: 20, 8: 20, 16: 20, 30: 20, 60: 40, 90: 60, 180: 100, 360: 100},
            {"standard": 4, "highmem": 8, "highcpu": 59 / 30},
            VM_FAMILY_CPUS,
        ),
        CpuFamily(
            "c4",
            {2: 10, 4: 10, 8: 23, 16: 23, 24: 23, 32: 23, 48: 34, 96: 67, 144: 100, 192: 100, 288: 100},
            {"standard": 3.75, "highmem": 7.75, "highcpu": 2},
            VM_FAMILY_CPUS,
            "hyperdisk-balanced",
        ),
        CpuFamily(
            "c4d",
            {2: 10, 4: 20, 8: 20, 16: 20, 32: 23, 48: 34, 64: 45, 96: 67, 192: 100, 384: 100},
            {"standard": 3.875, "highmem": 7.875, "highcpu": 1.875},
            VM_FAMILY_CPUS,
            "hyperdisk-balanced",
        ),
        CpuFamily(
            "n4",
            {2: 10, 4: 10, 8: 16, 16: 32, 32: 32, 48: 32, 64: 45, 80: 50},
            {"standard": 4, "highmem": 8, "highcpu": 2},
            VM_FAMILY_CPUS,
            "hyperdisk-balanced",
        ),
    ]
}
EXCEPTIONS = {
    "n1-standard-96": 360.0,
    "n1-highmem-96": 624.0,
    "n1-highcpu-96": 86.4,
    "n2-highmem-128": 864.0,
    "c3d-highcpu-4": 8.0,
    "c3d-highcpu-8": 16.0,
    "c3d-highcpu-16": 32.0,
    "c3d-highcpu-60": 118.0,
    "c3d-highcpu-180": 354.0,
    "c3d-highcpu-360": 708.0,
}
# Sizes that a kind of machine does not have.
MISSING = {
    *("n1-highmem-1", "n1-highcpu-1", "e2-highmem-32", "n2-highcpu-128"),
    *("n2d-highmem-128", "n2d-highmem-224"),
}
