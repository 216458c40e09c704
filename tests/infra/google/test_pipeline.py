"""The resources of `gpt2-training:pipeline`: the repository that may log in, and the roles of its accounts."""

import re
from pathlib import Path

import pytest

from infra.google import pipeline
from infra.stack import config
from policy.rules import Resource
from policy.rules import check as policy_check
from tests.google_cloud import schema
from tests.infra.google_graph import CHECKOUT, Graph, declare, make_root, read, stack_values

REPOSITORY = "acme/models"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    values = stack_values() | {"gpt2-training:pipeline": {"repository": REPOSITORY}}
    made, _ = declare(read(values, make_root(tmp_path)))
    return made


def test_pipeline_lets_only_its_repository_log_in(graph: Graph) -> None:
    (provider,) = graph.of("WorkloadIdentityPoolProvider")
    assert provider.inputs["attributeCondition"] == "assertion.repository == 'acme/models'"
    assert provider.inputs["oidc"] == {"issuerUri": "https://token.actions.githubusercontent.com"}
    logins = {
        one.inputs["serviceAccountId"]: one.inputs["member"]
        for one in graph.of("IAMMember")
        if one.inputs["role"] == "roles/iam.workloadIdentityUser"
    }
    deployer, previewer = (
        logins[f"projects/my-project/serviceAccounts/gpt2-dev-{name}"] for name in ("deploy", "preview")
    )
    # The claims themselves are compared: the subject of new, renamed or moved repositories contains ids.
    assert provider.inputs["attributeMapping"] == {
        "google.subject": "assertion.sub",
        "attribute.repository": "assertion.repository",
        "attribute.deployer": "assertion.repository + ':' + ('environment' in assertion ? assertion.environment : '')",
    }
    for member, who in (
        (deployer, "attribute.deployer/acme/models:gpt2-training"),
        (previewer, "attribute.repository/acme/models"),
    ):
        assert re.fullmatch(rf"principalSet://iam\.googleapis\.com/[^:]+/{who}", member)


def test_pipeline_accounts_have_exactly_these_roles(graph: Graph) -> None:
    found: dict[str, dict[str, str]] = {"deploy": {}, "preview": {}}
    for one in graph.of("IAMMember"):
        account = re.match(r"serviceAccount:gpt2-dev-(deploy|preview)@", one.inputs["member"])
        if account:
            found[account[1]][one.inputs["role"]] = one.inputs.get("condition", {}).get("expression", "")
    assert {role for role, limit in found["preview"].items() if not limit} == set(pipeline.PREVIEWER_ROLES)
    limited = {role: limit for role, limit in found["deploy"].items() if limit}
    assert set(limited) == {"roles/resourcemanager.projectIamAdmin", "roles/storage.admin"}
    assert limited["roles/resourcemanager.projectIamAdmin"] == (
        "api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly(['roles/logging.logWriter',"
        " 'roles/monitoring.metricWriter', 'roles/workflows.invoker', 'projects/my-project/roles/gpt2_dev_runner',"
        " 'projects/my-project/roles/gpt2_dev_controller'])"
    )
    assert set(re.findall(r"buckets/([^/']+)", limited["roles/storage.admin"])) == {
        "my-project-dev-gpt2",
        "my-project-dev-gpt2-data",
    }
    own = "projects/my-project/roles/gpt2_dev_deployer"
    assert set(found["deploy"]) - set(limited) == {*pipeline.DEPLOYER_ROLES, own}


def test_deployer_roles_are_those_that_the_docs_list() -> None:
    text = (CHECKOUT / "docs" / "google-cloud.md").read_text()
    asked = set(re.findall(r"`(roles/[\w.]+)`", text[text.index("The deployer,") : text.index("Some need more")]))
    limited = {"roles/resourcemanager.projectIamAdmin", "roles/storage.admin"}
    assert set(pipeline.DEPLOYER_ROLES) | limited == asked | {"roles/iam.workloadIdentityPoolViewer"}


def test_pipeline_resources_follow_the_schema_and_the_policies(graph: Graph) -> None:
    for one in graph.resources.values():
        if one.token.startswith("gcp:"):
            assert schema.problems(one.token, one.inputs) == [], one.name
    resources = [Resource(urn, one.token, one.name, one.inputs) for urn, one in graph.resources.items()]
    assert [found.message for found in policy_check(resources) if found.level == "mandatory"] == []


@pytest.mark.parametrize("repository", ["acme", "acme/models/x", "a'b/c", "acme/models' || 'a'=='a"])
def test_pipeline_repository_that_is_not_owner_and_name_is_refused(tmp_path: Path, repository: str) -> None:
    values = stack_values() | {"gpt2-training:pipeline": {"repository": repository}}
    with pytest.raises(config.ConfigError, match=r"gpt2-training:pipeline\.repository: found "):
        read(values, make_root(tmp_path))
