"""infra.google.org_policies: what refuses images or logins is a problem; a policy that may not be read is unknown."""

from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.google.org_policies import GITHUB, IMAGES, LOGINS, allows, policy_checks
from infra.google.quotas import Check
from tests.scripts.google import Call, FakeGoogle, google, project, service_account_key  # noqa: F401  fixtures
from trainer.gcloud.api import GoogleApi

P = "projects/test-project"
COS = "projects/cos-cloud"


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ({}, True),
        ({"allValues": "ALLOW"}, True),
        ({"allValues": "DENY"}, False),
        ({"allowedValues": [COS, "projects/other"]}, True),
        ({"allowedValues": [f"is:{COS}"]}, True),
        ({"allowedValues": ["projects/other"]}, False),
        ({"allowedValues": ["projects/other", "under:folders/1"]}, None),
        ({"deniedValues": [COS]}, False),
        ({"deniedValues": ["projects/other"]}, True),
        ({"deniedValues": ["under:organizations/1"]}, None),
    ],
)
def test_allows_follows_the_rules_of_a_list_policy(rules: dict[str, Any], allowed: bool | None) -> None:
    assert allows(rules, COS) is allowed


def checks(google: FakeGoogle, folder: Path, policies: dict[str, Any], **further: Any) -> dict[str, Check]:  # noqa: F811
    def policy(call: Call) -> dict[str, Any]:
        return {"listPolicy": policies.get(call.body["constraint"].removeprefix("constraints/"), {})}

    google.on("cloudresourcemanager", "POST", f"{P}:getEffectiveOrgPolicy", policy)
    stack = load.from_file("dev", project(folder, **further))
    return {check.name: check for check in policy_checks(GoogleApi(), stack, "cos-cloud")}


def test_policy_that_refuses_the_images_is_a_problem(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    found = checks(google, tmp_path, {IMAGES: {"allowedValues": ["projects/debian-cloud"]}})
    assert list(found) == [f"policy {IMAGES}"]
    assert (found[f"policy {IMAGES}"].state, found[f"policy {IMAGES}"].found) == ("problem", f"does not allow {COS}")
    assert checks(google, tmp_path, {})[f"policy {IMAGES}"].state == "ok"


def test_policy_on_logins_is_asked_for_with_a_pipeline(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    policies = {LOGINS: {"allowedValues": ["https://sts.windows.net"]}}
    found = checks(google, tmp_path, policies, pipeline={"repository": "me/mine", "repositoryId": 1})[
        f"policy {LOGINS}"
    ]
    assert (found.state, found.found) == ("problem", f"does not allow {GITHUB}")


def test_policy_that_may_not_be_read_is_unknown(google: FakeGoogle, tmp_path: Path) -> None:  # noqa: F811
    google.deny("cloudresourcemanager", message="Permission 'orgpolicy.policy.get' denied")
    stack = load.from_file("dev", project(tmp_path))
    [found] = policy_checks(GoogleApi(), stack, "cos-cloud")
    assert found.state == "unknown"
    assert found.fix == f"ask whether your organization's policy allows {COS}"
