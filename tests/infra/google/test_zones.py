"""The zones of a launch: by Google's advice, by its records, or in turn; and those that a run may move to."""

from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra import load
from infra.fleet.deadline import kept_hours
from infra.fleet.fleet import resolve_fleet
from infra.google.zones import LaunchZones, question, scarcest, zones_of_launch
from tests.google_cloud.test_discovery import ADVICE as QUESTION
from tests.scripts.google import Call, FakeGoogle, google, project, service_account_key  # noqa: F401  fixtures
from trainer.gcloud.api import GoogleApi
from trainer.runs.placement import Launched, Placement

L4 = {
    "masterType": "g2-standard-4",
    "workerType": "g2-standard-8",
    "workerCount": 10,
    "hyperparameters": {"learningRate": 0.01, "batchSize": 32},
}
ADVICE = "projects/test-project/regions/us-central1/advice/capacity"
A, B, C, F = (f"us-central1-{letter}" for letter in "abcf")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", lambda line, _: said.append(line))
    return said


def chosen(
    folder: Path,
    *,
    launched: Launched | None = None,
    placement: Placement | None = None,
    left: str = "",
    ask: bool = True,
    **keys: Any,
) -> LaunchZones:
    config = load.from_file("dev", project(folder, **{"trainingInput": L4, "machines": {"spot": True}, **keys}))
    parent: Any = None
    connect = GoogleApi if ask else None
    return zones_of_launch(config, resolve_fleet(config), parent, launched, placement, left, connect)


def advise(google: FakeGoogle, scores: dict[str, float]) -> None:  # noqa: F811
    """Let Google find machines in these zones as likely as this, and know no such machines in others."""

    def answer(call: Call) -> dict[str, Any]:
        ((zone,),) = (one.values() for one in call.body["distributionPolicy"]["zones"])
        if (name := zone.removeprefix("zones/")) not in scores:
            return {}
        shard = {"zone": name, "machineType": "g2-standard-8", "instanceCount": call.body["size"]}
        return {"recommendations": [{"scores": {"obtainability": scores[name]}, "shards": [shard]}]}

    google.on("compute", "POST", ADVICE, answer)


def test_launch_begins_where_google_most_likely_has_the_scarcest_machines(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    lines: list[str],
) -> None:
    advise(google, {A: 0.1, B: 0.4, C: 0.9})
    assert chosen(tmp_path) == LaunchZones((C, B, A), C)
    assert lines == [f"this launch begins in {C}, by Google's advice on capacity (90% likely to be there)"]
    assert [call.body["distributionPolicy"]["zones"] for call in google.calls] == [
        [{"zone": f"zones/{zone}"}] for zone in (A, B, C)
    ]


def test_zone_that_the_launch_before_left_comes_last(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    lines: list[str],
) -> None:
    advise(google, {A: 0.1, B: 0.4, C: 0.9})
    assert chosen(tmp_path, launch=2, left=C).candidates == (B, A, C)
    assert chosen(tmp_path, launch=2, left=C, machines={"zones": [C]}).candidates == (C,)


def test_without_advice_the_zones_are_taken_in_turn(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    lines: list[str],
) -> None:
    google.deny("compute", message="The service is not available for this project.")
    assert chosen(tmp_path, launch=2).candidates == (B, C, A)
    (line,) = lines
    assert line.startswith("the zones are taken in turn, as Google gave no advice on capacity (compute POST")
    assert chosen(tmp_path, launch=2, ask=False).candidates == (B, C, A)
    assert len(lines) == 1


def test_zone_without_such_machines_costs_the_others_no_advice(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    lines: list[str],
) -> None:
    advise(google, {B: 0.2, C: 0.3})
    assert chosen(tmp_path).candidates == (C, B, A)


def test_launch_with_a_record_stays_where_it_is_whatever_google_advises(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
) -> None:
    launched = Launched(started=1, zone=B, zones=[B, A])
    assert chosen(tmp_path, launched=launched) == LaunchZones((B, A), B)
    assert chosen(tmp_path, launched=launched, placement=Placement(zone=A)) == LaunchZones((B, A), A)
    assert not google.calls


def test_launch_leaves_a_zone_that_the_stack_file_no_longer_allows(tmp_path: Path) -> None:
    launched, moved = Launched(started=1, zone=B, zones=[B, A, C]), Placement(zone=A)
    found = chosen(tmp_path, launched=launched, placement=moved, machines={"zones": [C, B]})
    assert found == LaunchZones((B, C), B)
    found = chosen(tmp_path, launched=launched, placement=moved, machines={"zones": [C]}, ask=False)
    assert found == LaunchZones((C,), C)


def test_run_of_one_machine_has_all_zones_and_asks_for_no_advice(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    alone = {**L4, "workerCount": 0}
    assert chosen(tmp_path, trainingInput=alone, machines={}) == LaunchZones((A, B, C), "")
    assert chosen(tmp_path, trainingInput=alone, machines={"reservation": "mine"}) == LaunchZones((A,), A)
    assert not google.calls


def test_run_that_waits_in_a_queue_or_has_a_reservation_does_not_move(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    lines: list[str],
) -> None:
    advise(google, {A: 0.1, B: 0.4, C: 0.9})
    assert chosen(tmp_path, machines={"flexStart": True}) == LaunchZones((C,), C)
    assert chosen(tmp_path, machines={"reservation": "mine"}) == LaunchZones((A,), A)


def test_question_is_about_the_role_with_the_most_gpus(tmp_path: Path) -> None:
    fleet = resolve_fleet(load.from_file("dev", project(tmp_path)))
    assert scarcest(fleet).role == "worker"
    assert question(scarcest(fleet), A) == QUESTION  # which Google's discovery document is asked about


def test_hours_of_a_launch_stay_whatever_machines_are_added_until_its_limits_change(tmp_path: Path) -> None:
    def hours(launched: Launched | None, workers: int, usd: float) -> float:
        limits = {"maxHours": 24, "maxCostUsd": usd}
        keys: dict[str, Any] = {
            "trainingInput": {**L4, "workerCount": workers},
            "machines": {"spot": True},
            "limits": limits,
        }
        config = load.from_file("dev", project(tmp_path, **keys))
        return kept_hours(config.file.limits, resolve_fleet(config), launched)

    first = hours(None, 10, 50)
    assert 0 < first < 24
    launched = Launched(started=1, hours=first, max_hours=24, max_cost_usd=50)
    assert hours(launched, 20, 50) == first
    assert hours(launched, 10, 40) < first
    assert hours(launched, 10, 40) == hours(None, 10, 40)
