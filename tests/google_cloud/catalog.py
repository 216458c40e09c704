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
# Of each family and kind of CPU machines: the memory of one vCPU, of which Google gives whole GB but for N1.
MEMORY_GB = {
    "n1-standard": 3.75,
    "n1-highmem": 6.5,
    "n1-highcpu": 0.9,
    **{f"{family}-standard": 4.0 for family in ("e2", "n2", "n2d", "n4", "c3", "c3d")},
    **{f"{family}-highmem": 8.0 for family in ("e2", "n2", "n2d", "n4", "c3", "c3d")},
    "e2-highcpu": 1.0,
    "n2-highcpu": 1.0,
    "n2d-highcpu": 1.0,
    "n4-highcpu": 2.0,
    "c3-highcpu": 2.0,
    "c4-standard": 3.75,
    "c4-highmem": 7.75,
    "c4-highcpu": 2.0,
    "c4d-standard": 3.875,
    "c4d-highmem": 7.875,
    "c4d-highcpu": 1.875,
}
CPUS = {
    "n1": (1, 2, 4, 8, 16, 32, 64, 96),
    "e2": (2, 4, 8, 16, 32),
    "n2": (2, 4, 8, 16, 32, 48, 64, 80, 96, 128),
    "n2d": (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 224),
    "n4": (2, 4, 8, 16, 32, 48, 64, 80),
    "c3": (4, 8, 22, 44, 88, 176),
    "c3d": (4, 8, 16, 30, 60, 90, 180, 360),
    "c4": (2, 4, 8, 16, 24, 32, 48, 96, 144, 192, 288),
    "c4d": (2, 4, 8, 16, 32, 48, 64, 96, 192, 384),
}
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
    "a3-highgpu-2g": (52, 468, "nvidia-h100-80gb", 2),
    "a3-highgpu-4g": (104, 936, "nvidia-h100-80gb", 4),
    "a3-highgpu-8g": (208, 1872, "nvidia-h100-80gb", 8),
    "a3-megagpu-8g": (208, 1872, "nvidia-h100-mega-80gb", 8),
    "a3-ultragpu-8g": (224, 2952, "nvidia-h200-141gb", 8),
    "a4-highgpu-8g": (224, 3968, "nvidia-b200", 8),
    "g4-standard-48": (48, 180, "nvidia-rtx-pro-6000", 1),
    "g4-standard-96": (96, 360, "nvidia-rtx-pro-6000", 2),
    "g4-standard-192": (192, 720, "nvidia-rtx-pro-6000", 4),
    "g4-standard-384": (384, 1440, "nvidia-rtx-pro-6000", 8),
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
    "nvidia-h100-mega-80gb": {"us-central1-a", "us-central1-b", "us-central1-c", "europe-west4-b", "europe-west4-c"},
    "nvidia-h200-141gb": {"us-central1-b", "us-west1-c", "europe-west1-b", "europe-west4-a"},
    "nvidia-b200": {"us-central1-b", "us-east1-b", "europe-west4-b"},
    "nvidia-rtx-pro-6000": {
        *("us-central1-b", "us-central1-f", "us-east1-b", "us-west1-b", "us-west1-c", "europe-west1-c"),
        *("europe-west4-a", "europe-west4-b", "europe-west4-c"),
    },
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
    *("CPUS", "PREEMPTIBLE_CPUS", "N2_CPUS", "N2D_CPUS", "C3_CPUS", "A2_CPUS", "E2_CPUS", "INSTANCES"),
    *("DISKS_TOTAL_GB", "SSD_TOTAL_GB", "HDB_TOTAL_GB", "IN_USE_ADDRESSES"),
    *("NVIDIA_T4_GPUS", "NVIDIA_V100_GPUS", "NVIDIA_P100_GPUS", "NVIDIA_P4_GPUS", "NVIDIA_L4_GPUS"),
    *("NVIDIA_A100_GPUS", "NVIDIA_A100_80GB_GPUS"),
    *("PREEMPTIBLE_NVIDIA_T4_GPUS", "PREEMPTIBLE_NVIDIA_V100_GPUS", "PREEMPTIBLE_NVIDIA_P100_GPUS"),
    *("PREEMPTIBLE_NVIDIA_P4_GPUS", "PREEMPTIBLE_NVIDIA_L4_GPUS", "PREEMPTIBLE_NVIDIA_A100_GPUS"),
    "PREEMPTIBLE_NVIDIA_A100_80GB_GPUS",
)
# These GPUs have a quota with the family as a dimension, on demand; and one of their own for Spot and flex-start.
QUOTA_FAMILIES = ("H100", "H100_MEGA", "H200", "B200", "RTX_PRO_6000")
CPU_QUOTA_FAMILIES = ("C3D", "C4", "C4D", "N4")  # their vCPUs likewise
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
    kind, _, size = name.rpartition("-")
    family = name.partition("-")[0]
    if kind not in MEMORY_GB or not re.fullmatch(r"\d+", size) or int(size) not in CPUS[family]:
        return None
    memory = int(size) * MEMORY_GB[kind]
    return int(size), memory if family == "n1" else float(int(memory)), "", 0


def machines(zone: str) -> list[str]:
    names = [*BUILT_IN, *(f"{family}-{size}" for family in MEMORY_GB for size in CPUS[family.partition("-")[0]])]
    return [name for name in names if machine(name, zone)]


def quotas_of(machine_type: str, zone: str, accelerators: dict[str, int], spot: bool) -> dict[str, float]:
    """Return the quotas that one VM takes."""
    known = machine(machine_type, zone)
    assert known, f"{machine_type} in {zone}"
    cpus, _, accelerator, count = known
    wanted = {**accelerators, **({accelerator: count} if accelerator else {})}
    prefix = "PREEMPTIBLE_" if spot else ""
    needs: dict[str, float] = {}
    if not accelerator:  # with GPUs built in, no quota of CPUs is needed
        family = machine_type.partition("-")[0].upper()
        own = f"CPUS_PER_VM_FAMILY({family})" if family in CPU_QUOTA_FAMILIES else f"{family}_CPUS"
        needs["PREEMPTIBLE_CPUS" if spot else "CPUS" if family in ("N1", "E2") else own] = cpus
        needs["CPUS_ALL_REGIONS"] = cpus
    for kind, number in wanted.items():
        model = re.sub("^(TESLA_)?", "", kind.removeprefix("nvidia-").upper().replace("-", "_"))
        metric = f"{prefix}NVIDIA_{NEWER.get(model, model)}_GPUS"
        needs[metric] = number
        needs["GPUS_ALL_REGIONS"] = needs.get("GPUS_ALL_REGIONS", 0) + number
    return needs


NEWER = {"H100_80GB": "H100", "H100_MEGA_80GB": "H100_MEGA", "H200_141GB": "H200"}
