"""The record of a launch, as its provider writes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.google.guard import LaunchProvider
from trainer.contract import paths
from trainer.runs.placement import Launched, Placement, read_placement
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

RUN = "gpt2-01234567"
A, B, C = (f"us-central1-{letter}" for letter in "abc")
PROVIDER = LaunchProvider()


def declared(storage: Storage, *zones: str, hours: float = 24) -> dict[str, Any]:
    return {
        "bucket": storage.url, "run": RUN, "launch": 1, "zone": zones[0], "zones": list(zones), "hours": hours,
        "max_hours": 24, "started": None,
    }  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def moved(storage: Storage, zone: str) -> None:
    storage.write(paths.placement(RUN, 1), json.dumps({"zone": zone, "moves": [], "waiting_since": None}).encode())


def test_launch_begins_without_what_the_same_launch_left_before_a_destroy(storage: Storage) -> None:
    moved(storage, B)
    storage.write(paths.end(RUN, 1), b"{}")
    outs = PROVIDER.create(declared(storage, A, B, C)).outs
    assert read_placement(storage, RUN, 1) == Placement(zone=A)
    assert [entry.path for entry in storage.list(f"runs/{RUN}/launches")] == [paths.launch(RUN, 1)]
    launched = Launched.model_validate_json(storage.read(paths.launch(RUN, 1)))
    assert outs is not None
    assert launched == Launched(started=outs["started"], zone=A, zones=[A, B, C], hours=24, max_hours=24)


def test_launch_whose_zones_change_keeps_its_start_and_stays_where_it_may_be(storage: Storage) -> None:
    olds = PROVIDER.create(declared(storage, A, B, C)).outs
    assert olds is not None
    moved(storage, C)
    assert PROVIDER.diff("id", olds, declared(storage, A, B, C)).changes is False
    for zones, now in (((A, C), C), ((B, A), B)):
        news = declared(storage, *zones)
        diff = PROVIDER.diff("id", olds, news)
        assert (diff.changes, diff.replaces) == (True, [])
        olds_after = PROVIDER.update("id", olds, news).outs
        assert olds_after is not None
        assert olds_after["started"] == olds["started"]
        placement = read_placement(storage, RUN, 1)
        assert placement is not None
        assert placement.zone == now
