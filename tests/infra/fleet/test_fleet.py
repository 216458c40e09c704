"""infra.fleet.fleet: the machines of a stack, from its file and this computer."""

from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.fleet import fleet, prices
from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.stack.config import StackConfig
from infra.stack.keys import StackFile
from tests.infra.google_graph import make_root, read, stack_values


def on_google(machines: dict[str, Any], training: dict[str, Any] | None = None, **keys: Any) -> Fleet:
    """Return the machines of a stack with a master and two workers, without a check of the file's other rules."""
    values = {
        "platform": "google",
        "trainingInput": {
            "masterType": "n1-highmem-16",
            "workerType": "n1-standard-8",
            "workerCount": 2,
            **(training or {}),
        },
        "model": {"size": "gpt2"},
        "data": {"path": "text.txt", "tokenizer": "gpt2"},
        "machines": machines,
        **keys,
    }
    file = StackFile.model_validate(values, by_alias=True, by_name=False)
    return resolve_fleet(StackConfig("dev", Path(), file, {"project": "p", "region": "us-central1"}))


def test_fleet_of_the_reference_job_has_three_roles(tmp_path: Path) -> None:
    found = resolve_fleet(read(stack_values(), make_root(tmp_path)))
    assert [(machines.role, machines.count, machines.label) for machines in found.roles] == [
        ("master", 1, "n1-highmem-16 + 1 x nvidia-tesla-t4"),
        ("worker", 10, "n1-highmem-16 + 1 x nvidia-tesla-t4"),
        ("ps", 3, "n1-highmem-8"),
    ]
    assert (found.local, found.size, found.trainers, found.processes_per_trainer) == (False, 14, 11, 1)
    assert found.servers == found.roles[2]
    assert [machines.role for machines in found.trainer_roles] == ["master", "worker"]


def test_spot_applies_to_workers_alone() -> None:
    found = on_google({"spot": True}, {"parameterServerType": "n1-standard-4", "parameterServerCount": 1})
    assert [machines.role for machines in found.roles if machines.spot] == ["worker"]
    assert not any(machines.spot for machines in on_google({}).roles)


def test_accelerator_is_attached_to_trainers_and_built_in_gpus_are_kept() -> None:
    servers = {"parameterServerType": "n1-standard-4", "parameterServerCount": 1}
    attached = on_google({"accelerator": {"type": "nvidia-tesla-t4", "count": 2}}, servers)
    assert [(m.accelerator, m.accelerators, m.attached) for m in attached.roles] == [
        ("nvidia-tesla-t4", 2, True),
        ("nvidia-tesla-t4", 2, True),
        ("", 0, False),
    ]
    built_in = on_google({}, {"masterType": "a2-highgpu-4g"}).master
    assert (built_in.accelerator, built_in.accelerators, built_in.attached) == ("nvidia-tesla-a100", 4, False)


def test_scale_tier_gives_its_machines_and_its_gpu() -> None:
    found = on_google({}, {"scaleTier": "BASIC_GPU", "masterType": None, "workerType": None, "workerCount": 0})
    assert [machines.label for machines in found.roles] == ["n1-standard-8 + 1 x nvidia-tesla-t4"]


@pytest.mark.parametrize(
    ("machines", "training", "letters"),
    [
        ({}, {}, "abcf"),
        ({}, {"masterType": "g4-standard-48", "workerType": "c4-standard-8"}, "bf"),
        # These are the zones that have both.
        ({}, {"masterType": "a2-ultragpu-1g", "workerType": "a3-highgpu-8g"}, "ac"),
        ({"zones": ["us-central1-z"]}, {}, "z"),  # this is the zone that the stack file gives
    ],
)
def test_zones_have_the_gpus_of_all_roles(machines: dict[str, Any], training: dict[str, Any], letters: str) -> None:
    assert on_google(machines, training).zones == tuple(f"us-central1-{letter}" for letter in letters)


def test_zones_in_turn_begin_with_the_next_one_at_each_launch_and_after_the_last_with_the_first() -> None:
    found = on_google({"zones": ["us-central1-c", "us-central1-f"]})
    assert [[zone[-1] for zone in found.zones_in_turn(launch)] for launch in (1, 2, 3)] == [[*"cf"], [*"fc"], [*"cf"]]


@pytest.mark.parametrize("parallelism", ["fsdp", "replicas"])
def test_processes_per_trainer_are_its_gpus_and_on_cpus_those_of_the_file(parallelism: str) -> None:
    eight = {"masterType": "a2-highgpu-8g", "workerType": "a2-highgpu-8g"}
    found = on_google({}, eight, parallel={"parallelism": parallelism})
    assert (found.gpus_per_trainer, found.processes_per_trainer, found.trainers) == (8, 8, 24)
    on_cpus = on_google({}, parallel={"parallelism": parallelism, "processes": 2})
    assert (on_cpus.gpus_per_trainer, on_cpus.processes_per_trainer, on_cpus.trainers) == (0, 2, 6)


def test_flex_start_applies_to_machines_with_gpus_alone() -> None:
    found = on_google({"flexStart": True}, {"masterType": "a2-highgpu-1g"})
    assert [machines.flex_start for machines in found.roles] == [True, False]


def test_fleet_of_a_local_stack_is_this_computer_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "host_cores", lambda: 6)
    monkeypatch.setattr(prices, "book", lambda: pytest.fail("the price book was read"))
    found = resolve_fleet(load.from_file("local"))
    assert [(machines.role, machines.count) for machines in found.roles] == [("master", 1), ("worker", 1), ("ps", 1)]
    assert {machines.machine.vcpus for machines in found.roles} == {6}
    assert not {machines.machine.name for machines in found.roles} & MACHINE_TYPES.keys()
    assert (found.local, found.zones, found.hourly) == (True, (), prices.Cost(0))
