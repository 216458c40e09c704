"""List the machine types and GPUs of Google Compute Engine that a run may use, and how Google gives them out.

Sources, read in 2026-11: Google's pages "Accelerator-optimized machine family", "GPU machine types" and "GPU network
bandwidth" in public copies of 2026-04, dstack's gpuhunt (limits of N1 with GPUs). cpu_machines.py and zones.py have
sources of their own. The tables know nothing of quotas and capacity; `scripts.preflight` asks Google about both.
"""

from dataclasses import dataclass
from typing import Literal

from infra.fleet.cpu_machines import CPU_FAMILIES, Disk
from infra.fleet.zones import GPU_ZONES, REGIONS

# How Google gives a machine out. A reservation is capacity that somebody ordered beforehand.
Way = Literal["on demand", "Spot", "flex-start", "reservation"]
ANY_WAY: tuple[Way, ...] = ("on demand", "Spot", "flex-start", "reservation")
# What several machines of a type have between them. "one NIC": more is possible with network cards that are not
# declared here. "RDMA": their bandwidth needs a network for RDMA, which is not built here.
Links = Literal["gVNIC", "one NIC", "RDMA"]
ONE_GVNIC = 200.0  # Gbit/s, the most that one gVNIC carries, as far as sources tell


@dataclass(frozen=True)
class MachineType:
    """A machine type, and the GPUs that are built into it. N1 has none built in; its GPUs are attached.

    gbps: the most Gbit/s that it sends by the one network interface that it gets here; 0 if unknown.
    ssd_gb: of the local SSDs that come with it. They need no declaration; boot.sh makes them the trainer's /tmp.
    """

    name: str
    vcpus: int
    memory_gb: float
    accelerator: str = ""
    accelerators: int = 0
    gbps: float = 0
    ssd_gb: int = 0
    disk: Disk = "pd-balanced"
    ways: tuple[Way, ...] = ANY_WAY
    links: Links = "gVNIC"

    @property
    def family(self) -> str:
        return self.name.split("-")[0]

    @property
    def takes_gpus(self) -> bool:
        """Return whether GPUs can be attached to it."""
        return self.family == "n1"

    @property
    def compact(self) -> bool:
        """Return whether a compact placement policy is possible. Google's page does not list the others."""
        return self.family not in ("n1", "e2", "n4")


@dataclass(frozen=True)
class GpuModel:
    """A GPU model.

    quota: the part of its quota's name in NVIDIA_<quota>_GPUS. memory_gb: of one GPU.
    most: for each number of GPUs that an N1 machine may have attached, the most vCPUs and GB of that machine.
    """

    name: str
    quota: str
    compute_capability: float
    memory_gb: int
    most: dict[int, tuple[int, int]]

    @property
    def attachable(self) -> bool:
        return bool(self.most)


def _gpu_machines() -> list[MachineType]:
    """Return the machine types with GPUs built in."""
    l4, a100, a100_80, h100 = "nvidia-l4", "nvidia-tesla-a100", "nvidia-a100-80gb", "nvidia-h100-80gb"
    g2 = ((4, 1, 10), (8, 1, 16), (12, 1, 16), (16, 1, 32), (32, 1, 32), (24, 2, 32), (48, 4, 50), (96, 8, 100))
    a2 = ((1, 24), (2, 32), (4, 50), (8, 100))
    g4 = ((48, 1, 50), (96, 2, 100), (192, 4, 200), (384, 8, ONE_GVNIC))  # the largest has a second card
    parts: tuple[Way, ...] = ("Spot", "flex-start")
    largest: tuple[Way, ...] = ("Spot", "flex-start", "reservation")
    hyperdisk: Disk = "hyperdisk-balanced"
    return [
        *(MachineType(f"g2-standard-{n}", n, 4.0 * n, l4, gpus, gbps) for n, gpus, gbps in g2),
        *(
            MachineType(f"g4-standard-{n}", n, 3.75 * n, "nvidia-rtx-pro-6000", gpus, gbps, disk=hyperdisk)
            for n, gpus, gbps in g4
        ),
        *(MachineType(f"a2-highgpu-{n}g", 12 * n, 85.0 * n, a100, n, gbps) for n, gbps in a2),
        MachineType("a2-megagpu-16g", 96, 1360, a100, 16, 100),
        *(MachineType(f"a2-ultragpu-{n}g", 12 * n, 170.0 * n, a100_80, n, gbps, 375 * n) for n, gbps in a2),
        *(
            MachineType(f"a3-highgpu-{n}g", 26 * n, 234.0 * n, h100, n, gbps, 750 * n, ways=parts)
            for n, gbps in ((1, 25), (2, 50), (4, 100))
        ),
        MachineType("a3-highgpu-8g", 208, 1872, h100, 8, ONE_GVNIC, 6000, links="one NIC"),
        MachineType("a3-megagpu-8g", 208, 1872, "nvidia-h100-mega-80gb", 8, ONE_GVNIC, 6000, links="one NIC"),
        MachineType("a3-ultragpu-8g", 224, 2952, "nvidia-h200-141gb", 8, ONE_GVNIC, 12000, hyperdisk, largest, "RDMA"),
        MachineType("a4-highgpu-8g", 224, 3968, "nvidia-b200", 8, ONE_GVNIC, 12000, hyperdisk, largest, "RDMA"),
    ]


MACHINE_TYPES: dict[str, MachineType] = {
    machine.name: machine
    for machine in [
        *(
            MachineType(name, vcpus, gigabytes, gbps=gbps, disk=family.disk)
            for family in CPU_FAMILIES.values()
            for name, vcpus, gigabytes, gbps in family.sizes()
        ),
        *_gpu_machines(),
    ]
}
ACCELERATORS: dict[str, GpuModel] = {
    accelerator.name: accelerator
    for accelerator in [
        GpuModel("nvidia-tesla-t4", "T4", 7.5, 16, {1: (48, 312), 2: (48, 312), 4: (96, 624)}),
        GpuModel("nvidia-l4", "L4", 8.9, 24, {}),
        GpuModel("nvidia-rtx-pro-6000", "RTX_PRO_6000", 12.0, 96, {}),
        GpuModel("nvidia-tesla-a100", "A100", 8.0, 40, {}),
        GpuModel("nvidia-a100-80gb", "A100_80GB", 8.0, 80, {}),
        GpuModel("nvidia-h100-80gb", "H100", 9.0, 80, {}),
        GpuModel("nvidia-h100-mega-80gb", "H100_MEGA", 9.0, 80, {}),
        GpuModel("nvidia-h200-141gb", "H200", 9.0, 141, {}),
        GpuModel("nvidia-b200", "B200", 10.0, 180, {}),
    ]
}
# The lowest that torch's CUDA 13 wheels are compiled for.
LEAST_COMPUTE_CAPABILITY = 7.5
# GPUs that Google still attaches to N1, with their compute capability: an older one has no kernels here.
TOO_OLD = {"nvidia-tesla-v100": 7.0, "nvidia-tesla-p100": 6.0, "nvidia-tesla-p4": 6.1, "nvidia-tesla-k80": 3.7}


def known_zones(region: str, accelerator: str) -> list[str] | None:
    """Return the zones of a region that have a GPU model ("" for none); None if the table lacks the region."""
    if region not in REGIONS:
        return None
    letters = GPU_ZONES.get(accelerator, {}).get(region, "") if accelerator else REGIONS[region]
    return [f"{region}-{letter}" for letter in letters]


def machine_label(machine_type: str, accelerator: str, accelerators: int) -> str:
    """Return a machine in words, for example "n1-highmem-16 + 1 x nvidia-tesla-t4"."""
    return f"{machine_type} + {accelerators} x {accelerator}" if accelerators else machine_type
