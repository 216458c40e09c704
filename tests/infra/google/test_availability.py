"""The check of quotas and machine types before `up`: its lines follow Google's answers, and it stops nothing."""

from pathlib import Path
from typing import Any

import pulumi
import pytest

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.google import availability
from infra.stack import config
from tests.scripts.google import ENOUGH, EVERYWHERE, FakeGoogle, google, project, service_account_key  # noqa: F401  fixtures

ZONE = "us-central1-a"
P = "projects/test-project"
ALONE = "not checked: whether machines are free in us-central1-a"


def quotas(limits: dict[str, float]) -> dict[str, Any]:
    return {"quotas": [{"metric": m, "limit": limit, "usage": 0.0} for m, limit in limits.items()]}


@pytest.fixture
def ready(google: FakeGoogle) -> FakeGoogle:  # noqa: F811
    """Let Google answer for a project that has everything the reference job takes."""
    google.on("compute", "GET", f"{P}/zones/us-central1-[abcf]/machineTypes/n1-highmem-(8|16)", {})
    google.on("compute", "GET", f"{P}/zones/us-central1-[abcf]/acceleratorTypes/nvidia-tesla-t4", {})
    google.on("compute", "GET", P, quotas(EVERYWHERE))
    google.on("compute", "GET", f"{P}/regions/us-central1", quotas(ENOUGH))
    google.deny("cloudquotas", message="Cloud Quotas API has not been used in project 123456 before")
    return google


@pytest.fixture
def stack(tmp_path: Path) -> config.StackConfig:
    return load.from_file("dev", project(tmp_path))


def said(stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch, *zones: str) -> tuple[list[str], list[str]]:
    """Return the warnings and the other lines."""
    lines: dict[str, list[str]] = {"warn": [], "info": []}
    for kind in lines:
        monkeypatch.setattr(pulumi.log, kind, lambda line, _, kind=kind: lines[kind].append(line))
    availability.report(stack, resolve_fleet(stack), zones or [ZONE], None)  # type: ignore[arg-type]
    return lines["warn"], lines["info"]


def test_project_with_enough_of_everything_gets_one_line(
    ready: FakeGoogle, stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(stack, monkeypatch) == ([], [ALONE])


def test_missing_machine_type_and_quota_are_warnings_with_a_fix(
    ready: FakeGoogle, stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.on("compute", "GET", f"{P}/regions/us-central1", quotas({**ENOUGH, "PREEMPTIBLE_NVIDIA_T4_GPUS": 4}))
    ready.on("compute", "GET", f"{P}/zones/us-central1-a/acceleratorTypes/.*", {"error": {"message": "no"}}, 404)
    warnings, lines = said(stack, monkeypatch)
    machines, quota = warnings
    assert machines.startswith("machines in us-central1-a: has no nvidia-tesla-t4; take us-central1-a out of")
    assert quota.startswith("quota PREEMPTIBLE_NVIDIA_T4_GPUS: 10 needed, limit 4 in us-central1; ask for 10 or more")
    assert lines == [ALONE]


def test_quota_that_google_does_not_report_is_named(
    ready: FakeGoogle, stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.on("compute", "GET", f"{P}/regions/us-central1", quotas({k: v for k, v in ENOUGH.items() if k != "CPUS"}))
    warnings, lines = said(stack, monkeypatch)
    assert warnings == []
    assert lines == [f"{ALONE}, quota CPUS; `python -m scripts.preflight --stack dev` tells why"]


def test_disabled_api_is_no_warning(
    google: FakeGoogle,  # noqa: F811
    stack: config.StackConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The APIs are disabled at the first `up` in a project."""
    google.deny("compute", message="Compute Engine API has not been used in project 123456 before")
    google.deny("cloudquotas", message="Cloud Quotas API has not been used in project 123456 before")
    assert said(stack, monkeypatch) == ([], ["not checked: quotas and machine types (its API is not enabled yet)"])


def test_missing_login_is_one_line(stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    warnings, (line,) = said(stack, monkeypatch)
    assert warnings == []
    assert line.startswith("not checked: quotas and machine types (GOOGLE_APPLICATION_CREDENTIALS names /nowhere")


def test_invalid_answer_of_google_is_one_line(
    ready: FakeGoogle, stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.on("cloudquotas", "GET", ".*", {"dimensionsInfos": [{"details": {"value": "plenty"}}]})
    warnings, (line,) = said(stack, monkeypatch)
    assert warnings == []
    assert line.startswith("not checked: quotas and machine types (ValueError: ")


def test_all_zones_where_the_run_may_be_are_asked_for(
    ready: FakeGoogle, stack: config.StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lines = said(stack, monkeypatch, "us-central1-b", "us-central1-f")
    zones = {path.split("/")[3] for path in ready.paths("compute") if "zones" in path}
    assert zones == {"us-central1-b", "us-central1-f"}
    assert lines == ["not checked: whether machines are free in us-central1-b or us-central1-f"]


def test_network_that_is_only_partly_used_is_a_warning(
    google: FakeGoogle,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = {"masterType": "a3-highgpu-8g", "workerType": "a3-highgpu-8g", "workerCount": 1}
    training |= {"hyperparameters": {"batchSize": 16}}
    google.deny("compute", message="Compute Engine API has not been used in project 123456 before")
    google.deny("cloudquotas", message="Cloud Quotas API has not been used in project 123456 before")
    large = load.from_file("dev", project(tmp_path, trainingInput=training, machines=None))
    (warning,), _ = said(large, monkeypatch)
    assert warning.startswith(
        "a3-highgpu-8g: machines use one of their network cards, which carries 200 of 1,000 Gbit/s"
    )
