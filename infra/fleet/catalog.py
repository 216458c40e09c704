"""List the machine types and GPUs of Google Compute Engine that a run may use, and the zones that have them.

Sources: Google's pages "GPU machine types" and "GPU regions and zones", dstack's gpuhunt (limits of N1 with GPUs) and
SkyPilot's catalog (zones), read in 2026-11. The tables know nothing of quotas and capacity; `scripts.preflight` asks
Google about both.
"""

from dataclasses import dataclass

# Memory of N1 machines, GB for each vCPU.
_N1 = {"standard": 3.75, "highmem": 6.5, "highcpu": 0.9}
_N1_SIZES = (1, 2, 4, 8, 16, 32, 64, 96)


@dataclass(frozen=True)
class MachineType:
    """A machine type, and the GPUs that are built into it. N1 has none built in; its GPUs are attached."""

    name: str
    vcpus: int
    memory_gb: float
    accelerator: str = ""
    accelerators: int = 0

    @property
    def family(self) -> str:
        return self.name.split("-")[0]

    @property
    def gbps(self) -> float | None:
        """Return the most Gbit/s that an N1 machine sends: 2 for each vCPU, 32 in all. None for other families."""
        return min(2.0 * self.vcpus, 32.0) if self.family == "n1" else None


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


def _n1() -> list[MachineType]:
    machines = []
    for kind, per_vcpu in _N1.items():
        for vcpus in _N1_SIZES:
            if vcpus > 1 or kind == "standard":
                memory = {("standard", 96): 360.0, ("highmem", 96): 624.0, ("highcpu", 96): 86.4}.get(
                    (kind, vcpus), vcpus * per_vcpu
                )
                machines.append(MachineType(f"n1-{kind}-{vcpus}", vcpus, memory))
    return machines


MACHINE_TYPES: dict[str, MachineType] = {
    machine.name: machine
    for machine in [
        *_n1(),
        *(MachineType(f"g2-standard-{n}", n, 4.0 * n, "nvidia-l4", 1) for n in (4, 8, 12, 16, 32)),
        MachineType("g2-standard-24", 24, 96, "nvidia-l4", 2),
        MachineType("g2-standard-48", 48, 192, "nvidia-l4", 4),
        MachineType("g2-standard-96", 96, 384, "nvidia-l4", 8),
        *(MachineType(f"a2-highgpu-{n}g", 12 * n, 85.0 * n, "nvidia-tesla-a100", n) for n in (1, 2, 4, 8)),
        MachineType("a2-megagpu-16g", 96, 1360, "nvidia-tesla-a100", 16),
        *(MachineType(f"a2-ultragpu-{n}g", 12 * n, 170.0 * n, "nvidia-a100-80gb", n) for n in (1, 2, 4, 8)),
        *(MachineType(f"a3-highgpu-{n}g", 26 * n, 234.0 * n, "nvidia-h100-80gb", n) for n in (1, 2, 4, 8)),
        MachineType("a3-megagpu-8g", 208, 1872, "nvidia-h100-mega-80gb", 8),
    ]
}
ACCELERATORS: dict[str, GpuModel] = {
    accelerator.name: accelerator
    for accelerator in [
        GpuModel("nvidia-tesla-t4", "T4", 7.5, 16, {1: (48, 312), 2: (48, 312), 4: (96, 624)}),
        GpuModel("nvidia-tesla-v100", "V100", 7.0, 16, {1: (12, 78), 2: (24, 156), 4: (48, 312), 8: (96, 624)}),
        GpuModel("nvidia-tesla-p100", "P100", 6.0, 16, {1: (16, 104), 2: (32, 208), 4: (96, 624)}),
        GpuModel("nvidia-tesla-p4", "P4", 6.1, 8, {1: (24, 156), 2: (48, 312), 4: (96, 624)}),
        GpuModel("nvidia-l4", "L4", 8.9, 24, {}),
        GpuModel("nvidia-tesla-a100", "A100", 8.0, 40, {}),
        GpuModel("nvidia-a100-80gb", "A100_80GB", 8.0, 80, {}),
        GpuModel("nvidia-h100-80gb", "H100", 9.0, 80, {}),
        GpuModel("nvidia-h100-mega-80gb", "H100_MEGA", 9.0, 80, {}),
    ]
}
# The lowest that torch's CUDA 13 wheels are compiled for. On an older GPU our container starts and finds no kernels.
LEAST_COMPUTE_CAPABILITY = 7.5
# For each region the letters of the zones that have a GPU model. All zones of these regions have N1 machines ("").
# Other regions may have GPUs too: for them the stack file names the zones, and scripts.preflight asks Google.
ZONES: dict[str, dict[str, str]] = {
    "us-central1": {
        "": "abcf",
        "nvidia-tesla-t4": "abcf",
        "nvidia-tesla-v100": "abcf",
        "nvidia-tesla-p100": "cf",
        "nvidia-tesla-p4": "ac",
        "nvidia-l4": "abc",
        "nvidia-tesla-a100": "abcf",
        "nvidia-a100-80gb": "ac",
        "nvidia-h100-80gb": "abc",
        "nvidia-h100-mega-80gb": "abc",
    },
}


def known_zones(region: str, accelerator: str) -> list[str] | None:
    """Return the zones of a region that have a GPU model ("" for none); None if this table lacks the region."""
    if region not in ZONES:
        return None
    return [f"{region}-{letter}" for letter in ZONES[region].get(accelerator, "")]


def machine_label(machine_type: str, accelerator: str, accelerators: int) -> str:
    """Return a machine in words, for example "n1-highmem-16 + 1 x nvidia-tesla-t4"."""
    return f"{machine_type} + {accelerators} x {accelerator}" if accelerators else machine_type
