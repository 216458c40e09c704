"""What Google's answers leave out and fill in, and what the provider makes of it."""

import json
from typing import Any

import pytest

from tests.google_cloud import diff
from tests.google_cloud.answers import DASHBOARD, answered

Json = dict[str, Any]
JOB, REPOSITORY = "gcp:cloudscheduler/job:Job", "gcp:artifactregistry/repository:Repository"
POLICY, FIREWALL = "gcp:monitoring/alertPolicy:AlertPolicy", "gcp:compute/firewall:Firewall"


def dashboard(**place: int) -> Json:
    chart = {"xyChart": {"dataSets": [{"plotType": "LINE"}]}}
    tiles = [{**place, "width": 24, "height": 16, "widget": chart}]
    return {"dashboardJson": json.dumps({"displayName": "d", "mosaicLayout": {"columns": 48, "tiles": tiles}})}


def drift(token: str, inputs: Json) -> dict[str, str]:
    """Return the changes that `preview --refresh` shows after an `up` with these inputs."""
    state = answered(token, inputs)
    return diff.changes(token, {key: state[key] for key in inputs if key in state}, inputs)


@pytest.mark.parametrize(
    ("token", "inputs", "changed"),
    [
        (DASHBOARD, dashboard(xPos=24, yPos=16), {}),
        (DASHBOARD, dashboard(xPos=24), {}),
        (DASHBOARD, dashboard(xPos=0, yPos=16), {"dashboardJson": "UPDATE"}),
        (POLICY, {"displayName": "p", "enabled": False, "notificationChannels": [], "severity": ""}, {}),
        (POLICY, {"conditions": [{"displayName": "c", "conditionThreshold": {"thresholdValue": 0}}]}, None),
        (JOB, {"name": "j", "paused": False, "retryConfig": {"retryCount": 0, "maxBackoffDuration": "60s"}}, {}),
        (JOB, {"name": "j", "retryConfig": {"retryCount": 0}}, {"retryConfig": "ADD"}),
        (FIREWALL, {"name": "f", "disabled": False}, {}),
    ],
)
def test_program_after_a_refresh_differs_where_the_provider_sees_it(
    token: str, inputs: Json, changed: dict[str, str] | None
) -> None:
    found = drift(token, inputs)
    if changed is None:
        assert found  # the block comes back empty, which the provider takes for none
    else:
        assert found == changed


def test_repository_without_a_mode_is_a_standard_one() -> None:
    assert answered(REPOSITORY, {"repositoryId": "r", "format": "DOCKER"})["mode"] == "STANDARD_REPOSITORY"


def test_dashboard_comes_back_with_additions_of_google() -> None:
    shown = json.loads(answered(DASHBOARD, dashboard(xPos=0, yPos=16))["dashboardJson"])
    [tile] = shown["mosaicLayout"]["tiles"]
    assert "xPos" not in tile
    assert tile["yPos"] == 16
    assert tile["widget"]["xyChart"]["dataSets"][0]["targetAxis"] == "Y1"
