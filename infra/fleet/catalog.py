"""Machine types and accelerators of Google Compute Engine that a run may use, and where they are.

Sources: Google's pages "GPU machine types" and "GPU regions and zones", dstack's gpuhunt (maxima of N1 with GPUs) and
SkyPilot's catalog (zones), read in 2026-11. The table cannot know of quotas and capacity: `scripts/preflight` asks.
"""

from dataclasses import dataclass

# Memory of N1, GB for each vCPU.
_N1 = {"standard": 3.75, "highmem": 6.5, "highcpu": 0.9}
_N1_SIZES = (1, 2, 4, 8, 16, 32, 64, 96)


@dataclass(frozen=True)
class MachineType:
    name: str
    vcpus: int
    memory_gb: float
    accelerator: str = ""  # built in; N1 gets its own attached
    accelerators: int = 0

    @property
    def family(self) -> str:
        return self.name.split("-")[0]

    @property
    def gbps(self) -> float | None:
        """Gbit/s that it sends at most: of N1, 2 for each vCPU and 32 in all. None where this table does not know."""
        return min(2.0 * self.vcpus, 32.0) if self.family == "n1" else None


@dataclass(frozen=True)
class Accelerator:
    """A GPU model. `most`: for each number of them that one N1 machine may have, its most vCPUs and GB."""

    name: str
    quota: str  # as in quotas: NVIDIA_<quota>_GPUS
    compute_capability: float
    memory_gb: int  # of one
    most: dict[int, tuple[int, int]]

    @property
    def attachable(self) -> bool:
        return bool(self.most)


def _n1() -> list[MachineType]:
    found = []
    for kind, per_vcpu in _N1.items():
        for vcpus in _N1_SIZES:
            if vcpus > 1 or kind == "standard":
                memory = {("standard", 96): 360.0, ("highmem", 96): 624.0, ("highcpu", 96): 86.4}.get(
                    (kind, vcpus), vcpus * per_vcpu
                )
                found.append(MachineType(f"n1-{kind}-{vcpus}", vcpus, memory))
    return found


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
ACCELERATORS: dict[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in [
        Accelerator("nvidia-tesla-t4", "T4", 7.5, 16, {1: (48, 312), 2: (48, 312), 4: (96, 624)}),
        Accelerator("nvidia-tesla-v100", "V100", 7.0, 16, {1: (12, 78), 2: (24, 156), 4: (48, 312), 8: (96, 624)}),
        Accelerator("nvidia-tesla-p100", "P100", 6.0, 16, {1: (16, 104), 2: (32, 208), 4: (96, 624)}),
        Accelerator("nvidia-tesla-p4", "P4", 6.1, 8, {1: (24, 156), 2: (48, 312), 4: (96, 624)}),
        Accelerator("nvidia-l4", "L4", 8.9, 24, {}),
        Accelerator("nvidia-tesla-a100", "A100", 8.0, 40, {}),
        Accelerator("nvidia-a100-80gb", "A100_80GB", 8.0, 80, {}),
        Accelerator("nvidia-h100-80gb", "H100", 9.0, 80, {}),
        Accelerator("nvidia-h100-mega-80gb", "H100_MEGA", 9.0, 80, {}),
    ]
}
# What torch's CUDA 13 wheels still compile for: below it a container of ours starts and finds no kernel.
LEAST_COMPUTE_CAPABILITY = 7.5
# Letters of the zones that have an accelerator; N1 itself is in all zones of these regions. A region that is not here
# may have them all the same: then the stack file names the zones, and preflight asks Google.
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
    """The zones of a region that have an accelerator ("" for none); None if this table does not know the region."""
    if region not in ZONES:
        return None
    return [f"{region}-{letter}" for letter in ZONES[region].get(accelerator, "")]
