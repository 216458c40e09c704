"""A stack with gpt2-training:pipeline: what its owner declares, who may log in, and that no job can raise itself.

Expressions, grants and roles are those that the two programs declare. tests/google_cloud/federation.py and
escalation.py evaluate them as Google does.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.google import pipeline
from infra.stack import config
from policy.rules import Resource
from policy.rules import check as policy_check
from tests.google_cloud import schema
from tests.google_cloud.conditions import holds
from tests.google_cloud.escalation import Granted, may, reachable
from tests.google_cloud.federation import Refused, attributes, check_provider, is_member
from tests.google_cloud.iam import ROLES
from tests.infra.google_graph import CHECKOUT, Graph, declare, declare_for_owner, make_root, read, stack_values

REPOSITORY, NUMBER = "acme/models", 123456789
PIPELINE = {"repository": REPOSITORY, "repositoryId": NUMBER}
PROJECT = "projects/my-project"
DEPLOYER, PREVIEWER = (
    f"serviceAccount:gpt2-dev-{name}@my-project.iam.gserviceaccount.com" for name in ("deploy", "preview")
)
DEFAULT_ACCOUNT = f"{PROJECT}/serviceAccounts/1-compute@developer.gserviceaccount.com"  # often the project's editor
WORKFLOWS = CHECKOUT / ".github" / "workflows"


def stack(root: Path, limits: dict[str, Any] | None = None, **pipeline_keys: Any) -> config.StackConfig:
    values = stack_values() | {"gpt2-training:pipeline": PIPELINE | pipeline_keys}
    return read(values | ({"gpt2-training:limits": limits} if limits else {}), make_root(root))


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """What the owner's program declares. Tests only read it."""
    return declare_for_owner(stack(tmp_path_factory.mktemp("owner")))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """What the stack's own program declares. Tests only read it."""
    graph, _ = declare(stack(tmp_path_factory.mktemp("up")))
    return graph


# -- what is declared ----------------------------------------------------------------------------------------------


def test_owner_makes_every_account_and_up_makes_none(owner: Graph, up: Graph) -> None:
    accounts = {one.inputs["accountId"] for one in owner.of("Account")}
    names = ("master", "worker", "ps", "controller", "deploy", "preview")
    assert accounts == {f"gpt2-dev-{name}" for name in names}
    refused = ("Account", "IAMCustomRole", "IAMMember", "Service", "WorkloadIdentityPool")
    assert not [one.name for kind in refused for one in up.of(kind)]
    used = {one.inputs["serviceAccount"]["email"] for one in up.of("RegionInstanceTemplate")}
    used |= {one.inputs["member"].partition(":")[2] for one in up.of("BucketIAMMember")}
    used |= {one.inputs["member"].partition(":")[2] for one in up.of("RepositoryIamMember")}
    assert used <= {f"{account}@my-project.iam.gserviceaccount.com" for account in accounts}
    assert len(used) == 4


def test_owner_enables_the_apis_of_the_login(owner: Graph) -> None:
    enabled = {one.inputs["service"] for one in owner.of("Service")}
    assert {"iamcredentials.googleapis.com", "sts.googleapis.com", "compute.googleapis.com"} <= enabled


def test_pipeline_accounts_have_exactly_these_roles(owner: Graph) -> None:
    found = [grant for grant in grants(owner) if grant.resource == PROJECT]
    of = {
        who: {(grant.role, bool(grant.condition)) for grant in found if grant.member == who}
        for who in (DEPLOYER, PREVIEWER)
    }
    assert of[DEPLOYER] == {
        *((role, False) for role in pipeline.DEPLOYER_ROLES),
        ("roles/storage.admin", True),
        (f"{PROJECT}/roles/gpt2_dev_deployer", False),
    }
    assert of[PREVIEWER] == {
        *((role, False) for role in pipeline.PREVIEWER_ROLES),
        ("roles/storage.bucketViewer", True),
        ("roles/storage.objectViewer", True),
    }


def test_roles_in_the_docs_are_those_of_the_deployer_and_of_the_owner() -> None:
    text = (CHECKOUT / "docs" / "google-cloud.md").read_text()
    section = text[text.index("The deployer,") : text.index("Some need more")]
    deployer, owner = (set(re.findall(r"`(roles/[\w.]+)`", part)) for part in section.split("Only an owner"))
    assert {*pipeline.DEPLOYER_ROLES, "roles/storage.admin"} == deployer
    assert owner == {
        "roles/iam.roleAdmin",
        "roles/iam.serviceAccountAdmin",
        "roles/iam.serviceAccountUser",
        "roles/resourcemanager.projectIamAdmin",
        "roles/serviceusage.serviceUsageAdmin",
    }


def test_pipeline_resources_follow_the_schema_and_the_policies(owner: Graph) -> None:
    for one in owner.resources.values():
        if one.token.startswith("gcp:"):
            assert schema.problems(one.token, one.inputs) == [], one.name
    resources = [Resource(urn, one.token, one.name, one.inputs) for urn, one in owner.resources.items()]
    assert [found.message for found in policy_check(resources) if found.level == "mandatory"] == []


def test_owner_of_a_stack_with_a_budget_learns_the_grants_on_the_billing_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pulumi.log.warn", said.append)
    limits = {"maxHours": 1, "maxCostUsd": 10, "billingAccount": "012345-6789AB-CDEF01"}
    made = declare_for_owner(stack(tmp_path, limits=limits))
    command = "gcloud billing accounts add-iam-policy-binding 012345-6789AB-CDEF01 --role roles/billing"
    assert [line.partition(f"{command}.")[2] for line in said] == [
        f"costsManager --member {DEPLOYER}",
        f"viewer --member {PREVIEWER}",
    ]
    assert "billingbudgets.googleapis.com" in {one.inputs["service"] for one in made.of("Service")}


@pytest.mark.parametrize("repository", ["acme", "acme/models/x", "a'b/c", "acme/models' || 'a'=='a"])
def test_pipeline_repository_that_is_not_owner_and_name_is_refused(tmp_path: Path, repository: str) -> None:
    with pytest.raises(config.ConfigError, match=r"gpt2-training:pipeline\.repository: found "):
        stack(tmp_path, repository=repository)


def test_pipeline_without_the_repositorys_number_is_refused_with_the_command_that_prints_it(tmp_path: Path) -> None:
    values = stack_values() | {"gpt2-training:pipeline": {"repository": REPOSITORY}}
    with pytest.raises(config.ConfigError, match=r"pipeline\.repositoryId: missing; give .*`gh api repos/OWNER/NAME"):
        read(values, make_root(tmp_path))


def test_expressions_of_the_longest_repository_are_within_googles_limits(tmp_path: Path) -> None:
    longest = f"{'a' * 39}/{'r' * 100}"
    made = declare_for_owner(stack(tmp_path, repository=longest, repositoryId=2**53))
    (provider,) = made.of("WorkloadIdentityPoolProvider")
    check_provider(provider.inputs)
    token = {"repository": longest, "repository_id": str(2**53), "run_id": "9" * 20}
    token["workflow_ref"] = f"{longest}/.github/workflows/deploy.yml@refs/heads/main"
    assert attributes(provider.inputs, claims(**token))["attribute.account"] == "deploy"


# -- who may log in ------------------------------------------------------------------------------------------------


def claims(file: str = "deploy", ref: str = "refs/heads/main", **changed: str) -> dict[str, str]:
    """Return the claims of GitHub's token for a job of the repository; by default of the job that deploys.

    The names and forms are those of docs.github.com, "OpenID Connect reference".
    """
    path = f"{REPOSITORY}/.github/workflows/{file}.yml@{ref}"
    return {
        "iss": pipeline.ISSUER,
        "sub": f"repo:{REPOSITORY}:environment:gpt2-training",
        "repository": REPOSITORY,
        "repository_id": str(NUMBER),
        "repository_owner": "acme",
        "repository_owner_id": "65",
        "ref": ref,
        "event_name": "push",
        "workflow_ref": path,
        "job_workflow_ref": path,
        "environment": "gpt2-training",
        "run_id": "19823746501",
    } | changed


def without_environment(**token: str) -> dict[str, str]:
    return {name: value for name, value in claims(**token).items() if name != "environment"}


def logins(graph: Graph, token: dict[str, str]) -> set[str]:
    """Return the short names of the accounts as which a token's job may act."""
    (provider,), (pool,) = graph.of("WorkloadIdentityPoolProvider"), graph.of("WorkloadIdentityPool")
    full = f"projects/1/locations/global/workloadIdentityPools/{pool.inputs['workloadIdentityPoolId']}"
    try:
        mapped = attributes(provider.inputs, token)
    except Refused:
        return set()
    return {
        one.inputs["serviceAccountId"].rpartition("/")[2].partition("@")[0].removeprefix("gpt2-dev-")
        for one in graph.of("IAMMember")
        if one.inputs["role"] == "roles/iam.workloadIdentityUser" and is_member(mapped, full, one.inputs["member"])
    }


def ref_of(event: str) -> str:
    """Return the ref of a job by its workflow's trigger, as GitHub's documentation of events has it."""
    return {
        "push": "refs/heads/main",
        "schedule": "refs/heads/main",
        "workflow_dispatch": "refs/heads/main",
        "issues": "refs/heads/main",
        "pull_request_target": "refs/heads/main",  # whatever the pull request's base is, since 2025-12-08
        "pull_request": "refs/pull/7/merge",
    }[event]


def test_each_job_of_our_workflows_gets_the_account_that_it_asks_for(owner: Graph) -> None:
    found = {}
    for path in sorted(WORKFLOWS.glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        for name, job in workflow["jobs"].items():
            for event in workflow[True]:  # YAML's `on`
                token = claims(file=path.stem, ref=ref_of(event), event_name=event)
                token = {**token, "environment": job["environment"]} if "environment" in job else token
                if "environment" not in job:
                    del token["environment"]
                if "id-token" in job.get("permissions", {}):
                    asked = "deploy" if "PIPELINE_DEPLOYER" in str(job) else "preview"
                    assert logins(owner, token) == {asked}, (path.name, name, event)
                    found[path.stem, event] = asked
    assert set(found.values()) == {"deploy", "preview"}
    assert len(found) == 6


FOREIGN = {"repository_id": "987", "repository": "mallory/models"}


@pytest.mark.parametrize(
    ("situation", "token"),
    [
        ("another branch", claims(ref="refs/heads/feature")),
        ("a tag called main", claims(ref="refs/tags/main")),
        ("another workflow on main", claims(file="check")),
        ("another workflow that calls deploy.yml", claims(file="evil", job_workflow_ref=claims()["workflow_ref"])),
        ("main's deploy.yml called from a branch", claims(ref="refs/heads/feature", job_workflow_ref="x")),
        ("a workflow in a folder of this name", claims(file="x/.github/workflows/deploy")),
        ("the previewer's workflow in the deployer's environment", claims(file="drift", ref="refs/heads/feature")),
        ("a pull request that changes deploy.yml", claims(ref="refs/pull/7/merge")),
        ("deploy.yml without an environment", without_environment()),
        ("another environment", claims(environment="production")),
        ("another repository", claims(**FOREIGN)),
        ("a fork", claims(repository_id="987", repository="mallory/models", workflow_ref="mallory/models/x@main")),
        ("a repository that took the old name", claims(repository_id="987")),
        ("the repository under a new name", claims(repository="acme/renamed")),
        ("other capitals", claims(repository="Acme/models")),
        ("another issuer", claims(iss="https://token.example.com")),
        (
            "a reusable workflow of another repository",
            claims(workflow_ref="mallory/models/.github/workflows/deploy.yml@refs/heads/main"),
        ),
        ("drift.yml on a branch", without_environment(file="drift", ref="refs/heads/feature")),
        ("review.yml pushed to a branch", without_environment(file="review", ref="refs/heads/feature")),
        ("a branch called refs/pull", without_environment(file="review", ref="refs/heads/refs/pull/7/merge")),
    ],
)
def test_job_of_anything_else_cannot_log_in(owner: Graph, situation: str, token: dict[str, str]) -> None:
    assert logins(owner, token) == set(), situation


def test_writer_may_preview_from_a_pull_request_that_changes_review_yml(owner: Graph) -> None:
    """It is a known limit, which docs/pipeline.md states: a workflow of a pull request is the branch's own."""
    assert logins(owner, without_environment(file="review", ref="refs/pull/7/merge")) == {"preview"}


def test_subject_is_short_and_leads_to_the_job(owner: Graph) -> None:
    (provider,) = owner.of("WorkloadIdentityPoolProvider")
    token = claims(sub=f"repo:acme@65/models@{NUMBER}:environment:" + "x" * 255)
    assert attributes(provider.inputs, token)["google.subject"] == f"{NUMBER}:19823746501"


# -- what the accounts may do --------------------------------------------------------------------------------------


def grants(graph: Graph) -> list[Granted]:
    """Return the grants that are declared on the project, its accounts and its buckets."""
    found = []
    for one in graph.resources.values():
        place = {
            "gcp:projects/iAMMember:IAMMember": lambda i: f"projects/{i['project']}",
            "gcp:serviceaccount/iAMMember:IAMMember": lambda i: i["serviceAccountId"],
            "gcp:storage/bucketIAMMember:BucketIAMMember": lambda i: f"buckets/{i['bucket']}",
        }.get(one.token)
        if place:
            condition = one.inputs.get("condition", {}).get("expression", "")
            found.append(Granted(one.inputs["member"], one.inputs["role"], place(one.inputs), condition))
    return found


class Project:
    """All grants of a stack with a pipeline, as its two programs declare them."""

    def __init__(self, owner: Graph, up: Graph) -> None:
        self.grants = grants(owner) + grants(up)
        self.roles: dict[str, Any] = dict(ROLES)
        for one in owner.of("IAMCustomRole"):
            self.roles[f"{PROJECT}/roles/{one.inputs['roleId']}"] = one.inputs["permissions"]
        names = [one.inputs["accountId"] for one in owner.of("Account")]
        self.accounts = [f"{PROJECT}/serviceAccounts/{name}@my-project.iam.gserviceaccount.com" for name in names]

    def may(self, member: str, permission: str, resource: str = PROJECT, name: str = "") -> bool:
        return may(self.grants, self.roles, member, permission, resource, name)

    def reachable(self, member: str) -> set[str]:
        return reachable(self.grants, self.roles, member, [*self.accounts, DEFAULT_ACCOUNT])


@pytest.fixture
def project(owner: Graph, up: Graph) -> Project:
    return Project(owner, up)


RAISING = (
    "resourcemanager.projects.setIamPolicy",  # grant itself owner
    "iam.roles.create",
    "iam.roles.update",  # add a permission to a role that it has
    "iam.serviceAccounts.create",
    "iam.serviceAccounts.setIamPolicy",  # let itself act as another account
    "iam.serviceAccounts.getAccessToken",
    "iam.serviceAccountKeys.create",
    "iam.workloadIdentityPoolProviders.update",  # let another repository in
    "serviceusage.services.disable",
)


def test_deployer_and_whatever_it_can_become_cannot_raise_itself(project: Project) -> None:
    reached = project.reachable(DEPLOYER)
    short = {member.removeprefix("serviceAccount:").partition("@")[0] for member in reached}
    assert short == {f"gpt2-dev-{name}" for name in ("deploy", "master", "worker", "ps", "controller")}
    for member in reached:
        for permission in RAISING:
            for resource in (PROJECT, DEFAULT_ACCOUNT, *project.accounts):
                assert not project.may(member, permission, resource), (member, permission, resource)


def test_deployer_acts_as_the_machines_and_not_as_the_default_account(project: Project) -> None:
    acting = {account for account in project.accounts if project.may(DEPLOYER, "iam.serviceAccounts.actAs", account)}
    assert len(acting) == 4
    assert not project.may(DEPLOYER, "iam.serviceAccounts.actAs", DEFAULT_ACCOUNT)
    assert not project.may(DEPLOYER, "iam.serviceAccounts.actAs")


@pytest.mark.parametrize("member", [DEPLOYER, PREVIEWER])
def test_both_accounts_see_whether_an_owner_has_bootstrapped_the_stack(project: Project, member: str) -> None:
    asked = f"{PROJECT}/serviceAccounts/{DEPLOYER.partition(':')[2]}"
    assert project.may(member, "iam.serviceAccounts.get", asked)


def test_deployer_changes_grants_of_its_own_buckets_alone(project: Project) -> None:
    for bucket, expected in (("my-project-dev-gpt2", True), ("my-project-dev-gpt2-data", True), ("other", False)):
        name = f"projects/_/buckets/{bucket}"
        assert project.may(DEPLOYER, "storage.buckets.setIamPolicy", PROJECT, name) is expected
        assert project.may(DEPLOYER, "storage.objects.create", PROJECT, f"{name}/objects/x") is expected
    assert not project.may(DEPLOYER, "storage.buckets.setIamPolicy", PROJECT, "projects/_/buckets/my-project-dev-gpt2x")


def test_previewer_becomes_nobody_and_reads_its_own_buckets_alone(project: Project) -> None:
    assert project.reachable(PREVIEWER) == {PREVIEWER}
    for permission in (*RAISING, "storage.objects.create", "storage.buckets.setIamPolicy", "iam.serviceAccounts.actAs"):
        assert not project.may(PREVIEWER, permission, PROJECT, "projects/_/buckets/my-project-dev-gpt2/objects/x")
    for bucket, expected in (("my-project-dev-gpt2", True), ("my-project-dev-gpt2-data", True), ("other", False)):
        name = f"projects/_/buckets/{bucket}"
        assert project.may(PREVIEWER, "storage.buckets.get", PROJECT, name) is expected
        assert project.may(PREVIEWER, "storage.objects.get", PROJECT, f"{name}/objects/x") is expected


def test_former_deployer_could_raise_itself() -> None:
    """The model finds the way that the deployer had before: a role that it may both change and hold."""
    had = [Granted(DEPLOYER, role, PROJECT) for role in ("roles/iam.roleAdmin", "roles/iam.serviceAccountUser")]
    assert may(had, ROLES, DEPLOYER, "iam.roles.update", PROJECT)
    assert reachable(had, ROLES, DEPLOYER, [DEFAULT_ACCOUNT]) > {DEPLOYER}


# -- the grants that a person makes by docs/pipeline.md --------------------------------------------------------------


def test_commands_of_the_docs_limit_the_deployer_to_its_stacks_state() -> None:
    text = (CHECKOUT / "docs" / "pipeline.md").read_text()
    (objects,) = re.findall(r"^ *state=(\S+)$", text, re.MULTILINE)
    (written_condition,) = re.findall(r'expression=([^"]*)"', text)
    condition = re.sub(r"\s+", " ", written_condition.replace("\\\n", " ")).replace("$state", objects)
    assert objects == "projects/_/buckets/my-project-pulumi/objects/.pulumi"
    for written in (
        "stacks/gpt2-training/dev.json",
        "stacks/gpt2-training/dev.json.bak",
        "history/gpt2-training/dev/dev-1.history.json",
        "backups/gpt2-training/dev/dev.1.json",
        "locks/organization/gpt2-training/dev/1.json",
    ):
        assert holds(condition, f"{objects}/{written}"), written
    for other in (
        "meta.yaml",
        "stacks/gpt2-training-bootstrap/dev.json",
        "stacks/gpt2-training/prod.json",
        "locks/organization/gpt2-training-bootstrap/dev/1.json",
    ):
        assert not holds(condition, f"{objects}/{other}"), other


def test_commands_of_the_docs_let_nobody_but_people_encrypt() -> None:
    text = (CHECKOUT / "docs" / "pipeline.md").read_text()
    assert set(re.findall(r"roles/cloudkms\.\w+", text)) == {"roles/cloudkms.cryptoKeyDecrypter"}
