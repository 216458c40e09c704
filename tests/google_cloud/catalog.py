"""The stand-in cloud's offer: zones, machine types, accelerators, image families, quotas.

It is a small part of the real tables, with sources in Google's documentation on GPUs, regions and Deep Learning VM
images.
"""

import re

ZONES = {
    "us-central1": ("a", "b", "c", "f"),
    "us-east1": ("b", "c", "d"),
    "us-west1": ("a", "b", "c"),
    "europe-west1": ("b", "c", "d"),
    "europe-west4": ("a", "b", "c"),
}
MEMORY_GB = {"n1-standard": 3.75, "n1-highmem": 6.5, "n1-highcpu": 0.9}  # the memory of one vCPU
N1_CPUS = (1, 2, 4, 8, 16, 32, 64, 96)
BUILT_IN = {  # each machine type with its vCPUs, GB, accelerator and count
    "g2-standard-4": (4, 16, "nvidia-l4", 1),
    "g2-standard-8": (8, 32, "nvidia-l4", 1),
    "g2-standard-12": (12, 48, "nvidia-l4", 1),
    "g2-standard-16": (16, 64, "nvidia-l4", 1),
    "g2-standard-24": (24, 96, "nvidia-l4", 2),
    "g2-standard-32": (32, 128, "nvidia-l4", 1),
    "g2-standard-48": (48, 192, "nvidia-l4", 4),
    "g2-standard-96": (96, 384, "nvidia-l4", 8),
    "a2-highgpu-1g": (12, 85, "nvidia-tesla-a100", 1),
    "a2-highgpu-2g": (24, 170, "nvidia-tesla-a100", 2),
    "a2-highgpu-4g": (48, 340, "nvidia-tesla-a100", 4),
    "a2-highgpu-8g": (96, 680, "nvidia-tesla-a100", 8),
    "a2-ultragpu-1g": (12, 170, "nvidia-a100-80gb", 1),
    "a2-ultragpu-8g": (96, 1360, "nvidia-a100-80gb", 8),
    "a3-highgpu-1g": (26, 234, "nvidia-h100-80gb", 1),
    "a3-highgpu-8g": (208, 1872, "nvidia-h100-80gb", 8),
}
ACCELERATORS = {  # each accelerator with its zones
    "nvidia-tesla-t4": {
        *("us-central1-a", "us-central1-b", "us-central1-c", "us-central1-f", "us-east1-c", "us-east1-d"),
        *("us-west1-a", "us-west1-b", "europe-west1-b", "europe-west1-c", "europe-west1-d"),
        *("europe-west4-a", "europe-west4-b", "europe-west4-c"),
    },
    "nvidia-tesla-v100": {
        *("us-central1-a", "us-central1-b", "us-central1-c", "us-central1-f", "us-west1-a", "us-west1-b"),
        *("europe-west4-a", "europe-west4-b", "europe-west4-c"),
    },
    "nvidia-tesla-p100": {
        *("us-central1-c", "us-central1-f", "us-east1-b", "us-east1-c", "us-west1-a", "us-west1-b"),
        *("europe-west1-b", "europe-west1-d", "europe-west4-a"),
    },
    "nvidia-tesla-p4": {"us-central1-a", "us-central1-c", "europe-west4-b", "europe-west4-c"},
    "nvidia-l4": {
        *("us-central1-a", "us-central1-b", "us-central1-c", "us-east1-b", "us-east1-c", "us-east1-d"),
        *("us-west1-a", "us-west1-b", "us-west1-c", "europe-west1-b", "europe-west1-c"),
        *("europe-west4-a", "europe-west4-b", "europe-west4-c"),
    },
    "nvidia-tesla-a100": {
        *("us-central1-a", "us-central1-b", "us-central1-c", "us-central1-f", "us-east1-b", "us-west1-b"),
        *("europe-west4-a", "europe-west4-b"),
    },
    "nvidia-a100-80gb": {"us-central1-a", "us-central1-c", "europe-west4-a"},
    "nvidia-h100-80gb": {"us-central1-a", "us-central1-b", "us-central1-c", "us-west1-a", "europe-west4-b"},
}
FAMILIES = {  # each project with its families, each of one image
    "deeplearning-platform-release": (
        "common-cu129-ubuntu-2204-nvidia-580",
        "common-cu129-ubuntu-2404-nvidia-580",
        "pytorch-2-9-cu129-ubuntu-2204-nvidia-580",
        "pytorch-2-9-cu129-ubuntu-2404-nvidia-580",
    ),
    "ubuntu-os-cloud": ("ubuntu-2204-lts", "ubuntu-2404-lts-amd64"),
    "ubuntu-os-accelerator-images": ("ubuntu-accelerator-2204-amd64-with-nvidia-580",),
    "debian-cloud": ("debian-12", "debian-13"),
    "cos-cloud": ("cos-stable", "cos-121-lts", "cos-125-lts", "cos-129-lts", "cos-133-lts"),
}
PLENTY = 1000.0
REGION_QUOTAS = (
    *("CPUS", "PREEMPTIBLE_CPUS", "A2_CPUS", "INSTANCES", "DISKS_TOTAL_GB", "SSD_TOTAL_GB", "IN_USE_ADDRESSES"),
    *("NVIDIA_T4_GPUS", "NVIDIA_V100_GPUS", "NVIDIA_P100_GPUS", "NVIDIA_P4_GPUS", "NVIDIA_L4_GPUS"),
    *("NVIDIA_A100_GPUS", "NVIDIA_A100_80GB_GPUS"),
    *("PREEMPTIBLE_NVIDIA_T4_GPUS", "PREEMPTIBLE_NVIDIA_V100_GPUS", "PREEMPTIBLE_NVIDIA_P100_GPUS"),
    *("PREEMPTIBLE_NVIDIA_P4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_A100_GPUS"),
    "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS",
)
QUOTA_FAMILIES = ("H100", "H100_MEGA", "H200", "B200")  # these GPUs have a quota with the family as a dimension
PROJECT_QUOTAS = ("GPUS_ALL_REGIONS", "CPUS_ALL_REGIONS")


def zones() -> list[str]:
    return [f"{region}-{letter}" for region, letters in ZONES.items() for letter in letters]


def region_of(zone: str) -> str:
    return zone.rpartition("-")[0]


def machine(name: str, zone: str) -> tuple[int, float, str, int] | None:
    """Return vCPUs, GB, built-in accelerator and its count; None where the zone has no such machine type."""
    if zone not in zones():
        return None
    if name in BUILT_IN:
        cpus, memory, accelerator, count = BUILT_IN[name]
        return (cpus, memory, accelerator, count) if zone in ACCELERATORS[accelerator] else None
    family, _, size = name.rpartition("-")
    if family not in MEMORY_GB or not re.fullmatch(r"\d+", size) or int(size) not in N1_CPUS:
        return None
    return int(size), int(size) * MEMORY_GB[family], "", 0


def machines(zone: str) -> list[str]:
    names = [*BUILT_IN, *(f"{family}-{size}" for family in MEMORY_GB for size in N1_CPUS)]
    return [name for name in names if machine(name, zone)]


def quotas_of(machine_type: str, zone: str, accelerators: dict[str, int], spot: bool) -> dict[str, float]:
    """Return the quotas that one VM takes."""
    known = machine(machine_type, zone)
    assert known, f"{machine_type} in {zone}"
    cpus, _, accelerator, count = known
    wanted = {**accelerators, **({accelerator: count} if accelerator else {})}
    prefix = "PREEMPTIBLE_" if spot else ""
    needs: dict[str, float] = {f"{prefix}CPUS": cpus, "CPUS_ALL_REGIONS": cpus}
    for kind, number in wanted.items():
        metric = f"{prefix}{kind.upper().replace('-', '_').replace('NVIDIA_TESLA_', 'NVIDIA_')}_GPUS"
        if metric in REGION_QUOTAS:  # newer kinds are only in Cloud Quotas
            needs[metric] = number
        needs["GPUS_ALL_REGIONS"] = needs.get("GPUS_ALL_REGIONS", 0) + number
    return needs
