"""The tables of machines: they agree with each other, and have the figures that Google's pages have."""

import pytest

from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES, TOO_OLD, known_zones
from infra.fleet.cpu_machines import CPU_FAMILIES, EXCEPTIONS, MISSING
from infra.fleet.zones import GPU_ZONES, REGIONS
from infra.sizing.speed import CORES, GPUS


def test_tables_name_the_same_gpus_and_families() -> None:
    assert set(GPU_ZONES) == set(ACCELERATORS) == set(GPUS)
    assert {machine.accelerator for machine in MACHINE_TYPES.values()} - {""} <= set(ACCELERATORS)
    assert set(CORES) == set(CPU_FAMILIES)
    assert not set(TOO_OLD) & set(ACCELERATORS)
    assert set(EXCEPTIONS) <= set(MACHINE_TYPES)
    assert not set(MISSING) & set(MACHINE_TYPES)


def test_zones_of_a_gpu_are_zones_of_their_region() -> None:
    for model, regions in GPU_ZONES.items():
        for region, letters in regions.items():
            assert letters, (model, region)
            assert set(letters) <= set(REGIONS[region]), (model, region)


@pytest.mark.parametrize(
    ("name", "vcpus", "memory", "gbps"),
    [
        ("n1-highmem-16", 16, 104, 32),
        ("e2-highmem-8", 8, 64, 16),
        ("n2-highmem-128", 128, 864, 32),
        ("n2d-standard-224", 224, 896, 32),
        ("c3-standard-176", 176, 704, 100),
        ("c3d-highcpu-360", 360, 708, 100),
        ("c4-highmem-2", 2, 15, 10),
        ("c4-standard-144", 144, 540, 100),
        ("c4d-highcpu-4", 4, 7, 20),
        ("c4d-highmem-8", 8, 63, 20),
        ("n4-standard-80", 80, 320, 50),
        ("g4-standard-384", 384, 1440, 200),
        ("a3-highgpu-2g", 52, 468, 50),
        ("a4-highgpu-8g", 224, 3968, 200),
    ],
)
def test_machine_type_has_the_figures_of_its_page(name: str, vcpus: int, memory: float, gbps: float) -> None:
    machine = MACHINE_TYPES[name]
    assert (machine.vcpus, machine.memory_gb, machine.gbps) == (vcpus, memory, gbps)


def test_machines_boot_from_the_disks_that_google_takes() -> None:
    hyperdisk = {m.name.rpartition("-")[0] for m in MACHINE_TYPES.values() if m.disk == "hyperdisk-balanced"}
    kinds = ("standard", "highmem", "highcpu")
    only = {"g4-standard", "a3-ultragpu", "a4-highgpu"}
    assert hyperdisk == only | {f"{family}-{kind}" for family in ("c4", "c4d", "n4") for kind in kinds}


def test_every_machine_sends_at_a_known_speed() -> None:
    assert all(machine.gbps > 0 for machine in MACHINE_TYPES.values())
    assert max(machine.gbps for machine in MACHINE_TYPES.values()) == 200  # one network interface


def test_known_zones_of_a_region_without_the_gpu_are_none_and_of_an_unknown_region_unknown() -> None:
    assert known_zones("us-central1", "nvidia-b200") == ["us-central1-b"]
    assert known_zones("us-west1", "nvidia-b200") == []
    assert known_zones("us-west1", "") == ["us-west1-a", "us-west1-b", "us-west1-c"]
    assert known_zones("europe-north1", "nvidia-b200") is None
