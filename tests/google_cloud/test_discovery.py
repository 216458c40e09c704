"""Calls of Google's REST APIs against Google's discovery documents: wrong calls are refused, our own are right."""

from typing import Any

import pytest

from tests.google_cloud.discovery import UNDOCUMENTED, VERSIONS, Refused, api
from trainer.gcloud.api import BASES

PLACE = "projects/my-project/regions/us-central1/instanceGroupManagers/dev-worker-0a1b2c3d"
JOB = "projects/my-project/locations/us-central1/jobs/gpt2-dev-controller-0123abcd"
IMAGES = "projects/my-project/locations/us-central1/repositories/gpt2-dev"
SERIES = {
    "metric": {"type": "custom.googleapis.com/gpt2_training/step"},
    "resource": {"type": "generic_task", "labels": {"project_id": "p", "location": "us-central1-a"}},
    "metricKind": "GAUGE",
    "valueType": "INT64",
    "points": [{"interval": {"endTime": "2026-11-23T12:00:00.000000Z"}, "value": {"int64Value": "7"}}],
}
BUILD = {
    "source": {"storageSource": {"bucket": "b", "object": "o", "generation": "1"}},
    "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "--tag", "i", "."]}],
    "images": ["i"],
    "timeout": "1800s",
    "options": {"logging": "CLOUD_LOGGING_ONLY"},
    "tags": ["gpt2-dev"],
}

ADVICE = {
    "distributionPolicy": {"targetShape": "ANY_SINGLE_ZONE", "zones": [{"zone": "zones/us-central1-a"}]},
    "instanceFlexibilityPolicy": {
        "instanceSelections": {
            "machines": {
                "machineTypes": ["n1-highmem-16"],
                "guestAccelerators": [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}],
            }
        }
    },
    "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
    "size": 10,
}


def series(**changes: Any) -> dict[str, Any]:
    return {"timeSeries": [{**SERIES, **changes}]}


def point(**changes: Any) -> dict[str, Any]:
    return series(points=[{**SERIES["points"][0], **changes}])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("service", "verb", "path", "query", "body", "method"),
    [
        ("compute", "GET", PLACE, {}, None, "regionInstanceGroupManagers.get"),
        ("compute", "POST", f"{PLACE}/resize", {"size": "0"}, None, "regionInstanceGroupManagers.resize"),
        ("compute", "GET", f"{PLACE}/listErrors", {"maxResults": 20}, None, "regionInstanceGroupManagers.listErrors"),
        (
            "compute",
            "POST",
            f"{PLACE}/listManagedInstances",
            {"pageToken": "x"},
            None,
            "regionInstanceGroupManagers.listManagedInstances",
        ),
        (
            "compute",
            "GET",
            "projects/my-project/zones/us-central1-a/machineTypes/n1-highmem-16",
            {},
            None,
            "machineTypes.get",
        ),
        ("compute", "GET", "projects/my-project/regions/us-central1", {}, None, "regions.get"),
        ("compute", "GET", "projects/my-project", {}, None, "projects.get"),
        ("compute", "POST", "projects/my-project/regions/us-central1/advice/capacity", {}, ADVICE, "advice.capacity"),
        ("compute", "GET", "projects/d/global/images/family/f", {}, None, "images.getFromFamily"),
        ("cloudscheduler", "POST", f"{JOB}:run", {}, {}, "projects.locations.jobs.run"),
        ("cloudscheduler", "POST", f"{JOB}:pause", {}, {}, "projects.locations.jobs.pause"),
        (
            "workflowexecutions",
            "POST",
            "projects/p/locations/r/workflows/gpt2-dev-controller/executions",
            {},
            {"argument": "{}"},
            "projects.locations.workflows.executions.create",
        ),
        ("monitoring", "POST", "projects/p/timeSeries", {}, series(), "projects.timeSeries.create"),
        ("serviceusage", "GET", "projects/p/services:batchGet", {"names": ["a", "b"]}, None, "services.batchGet"),
        ("cloudresourcemanager", "POST", "projects/p:getIamPolicy", {}, {}, "projects.getIamPolicy"),
        (
            "cloudresourcemanager",
            "POST",
            "projects/p:testIamPermissions",
            {},
            {"permissions": ["a.b.c"]},
            "projects.testIamPermissions",
        ),
        (
            "cloudresourcemanager",
            "POST",
            "projects/p:getEffectiveOrgPolicy",
            {},
            {"constraint": "constraints/compute.trustedImageProjects"},
            "projects.getEffectiveOrgPolicy",
        ),
        ("cloudbuild", "POST", "projects/p/locations/r/builds", {}, BUILD, "projects.locations.builds.create"),
        ("cloudbuild", "GET", "projects/p/locations/r/builds/x", {}, None, "projects.locations.builds.get"),
        ("artifactregistry", "GET", IMAGES, {}, None, "projects.locations.repositories.get"),
        (
            "artifactregistry",
            "GET",
            f"{IMAGES}/packages/trainer/tags/x",
            {},
            None,
            "projects.locations.repositories.packages.tags.get",
        ),
    ],
)
def test_call_of_our_own_code_is_known_to_google(
    service: str, verb: str, path: str, query: dict[str, Any], body: Any, method: str
) -> None:
    assert api(service).check(verb, path, query, body).id == f"{service}.{method}"


@pytest.mark.parametrize(
    ("service", "verb", "path", "query", "body", "why"),
    [
        ("compute", "GET", f"{PLACE}/resize", {"size": 0}, None, "only knows POST"),
        ("compute", "POST", f"{PLACE}/resizes", {"size": 0}, None, "no method has this path"),
        ("compute", "POST", PLACE.replace("regions", "region"), {}, None, "no method has this path"),
        ("compute", "POST", f"{PLACE}/resize", {}, None, "'size' is missing"),
        ("compute", "POST", f"{PLACE}/resize", {"size": 0, "force": 1}, None, "no query parameter 'force'"),
        ("compute", "POST", f"{PLACE}/resize", {"size": "none"}, None, "no integer"),
        ("compute", "POST", f"{PLACE}/resize", {"size": -1}, None, "not between 0 and"),
        ("compute", "POST", f"{PLACE}/resize", {"size": [1, 2]}, None, "cannot be repeated"),
        ("compute", "POST", f"{PLACE}/resize", {"size": 0}, {"size": 0}, "takes no body"),
        ("compute", "POST", f"{PLACE}/recreateInstances", {"noGracefulShutdown": True}, {}, "'true' or 'false'"),
        ("compute", "POST", f"{PLACE}/recreateInstances", {}, {"instances": "one"}, "is a list"),
        ("cloudscheduler", "POST", f"{JOB}:run", {}, {"force": True}, "no field 'force'"),
        ("cloudscheduler", "POST", f"{JOB}/run", {}, {}, "no method has this path"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, {"series": []}, "no field 'series'"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, series(metricKind="GUAGE"), "none of .*GAUGE"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, series(points={}), "is a list"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, series(metric={"kind": "x"}), "no field 'kind'"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, series(metric={"labels": {"a": 1}}), "is a string"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, point(value={"doubleValue": "7"}), "is a number"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, point(value={"int64Value": "x"}), "no integer"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, point(value={"boolValue": 1}), "is a boolean"),
        ("monitoring", "POST", "projects/p/timeSeries", {}, point(interval={"endTime": "now"}), "no google-datetime"),
        ("monitoring", "POST", "projects/timeSeries", {}, series(), "no method has this path"),
        ("cloudbuild", "POST", "projects/p/builds", {}, {**BUILD, "timeout": "30m"}, "no google-duration"),
        ("cloudbuild", "POST", "projects/p/builds", {}, {**BUILD, "status": "SUCCESS"}, "for answers only"),
    ],
)
def test_call_that_google_does_not_know_is_refused(
    service: str, verb: str, path: str, query: dict[str, Any], body: Any, why: str
) -> None:
    with pytest.raises(Refused, match=why):
        api(service).check(verb, path, query, body)


def test_every_api_that_we_call_has_its_document_and_version() -> None:
    known = {**VERSIONS, **UNDOCUMENTED}
    assert {service: known.get(service) for service in BASES} == {
        service: address.rstrip("/").rpartition("/")[2] for service, address in BASES.items()
    }
    assert all(api(service).methods for service in BASES if service in VERSIONS)


def test_answer_that_google_could_not_give_is_refused() -> None:
    compute = api("compute")
    method = compute.check("GET", PLACE)
    compute.check_answer(method, {"name": "dev-worker-0a1b2c3d", "targetSize": 3})
    with pytest.raises(Refused, match="no field 'size'"):
        compute.check_answer(method, {"name": "dev-worker-0a1b2c3d", "size": 3})
    with pytest.raises(Refused, match="is an integer"):
        compute.check_answer(method, {"targetSize": "3"})
    compute.check_answer(method, {"id": "8123456789012345678"})
    with pytest.raises(Refused, match="id is a string"):  # a 64-bit number
        compute.check_answer(method, {"id": 8123456789012345678})
