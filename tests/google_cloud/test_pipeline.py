"""The pipeline's life: an owner bootstraps a stack, jobs log in and deploy it, and no job gets further."""

from typing import Any

import pytest
import requests

from infra.google.pipeline import ISSUER

from .conftest import StandIn
from .federation import PROVIDER
from .iam import ACCOUNT, MEMBERS
from .login import EXCHANGE, unsigned_token

NAMES = ("master", "worker", "ps", "controller", "deploy", "preview")
WORKFLOW = "acme/models/.github/workflows/deploy.yml@refs/heads/main"


def exchange(cloud: StandIn, provider: str, **changed: str) -> "requests.Response":
    """Trade the token of a job, by default of one that deploys, for Google's."""
    claims = {
        "iss": ISSUER,
        "aud": f"https://iam.googleapis.com/{provider}",
        "repository": "acme/models",
        "repository_id": "123456789",
        "ref": "refs/heads/main",
        "workflow_ref": WORKFLOW,
        "environment": "gpt2-training",
        "run_id": "1",
    } | changed
    body = {**EXCHANGE, "audience": f"//iam.googleapis.com/{provider}", "subjectToken": unsigned_token(claims)}
    return requests.post(f"{cloud.url}/sts/v1/token", json=body, timeout=30)


def become(cloud: StandIn, token: str, account: str) -> "requests.Response":
    email = f"{account}@{cloud.project}.iam.gserviceaccount.com"
    url = f"{cloud.url}/iamcredentials/v1/projects/-/serviceAccounts/{email}:generateAccessToken"
    body = {"scope": ["https://www.googleapis.com/auth/cloud-platform"]}
    return requests.post(url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def accounts(cloud: StandIn) -> list[str]:
    return sorted(name.rpartition("/")[2] for name in cloud.resources()[ACCOUNT])


@pytest.mark.slow
@pytest.mark.runs_on("the accounts that the second `up` uses are the subject, and no machine is waited for")
def test_bootstrapped_stack_is_deployed_destroyed_and_deployed_again_without_its_owner(cloud: StandIn) -> None:
    key = "gpt2-training:pipeline: {repository: acme/models, repositoryId: 123456789}\n  gpt2-training:platform"
    cloud.edit("single", "gpt2-training:platform", key)
    said = cloud.up(stack="single", ok=False)
    assert "gpt2-training:pipeline: the account gpt2-single-deploy@" in said
    assert "let an owner of the project run `python -m scripts.bootstrap --stack single`" in said

    bootstrap = ("scripts.bootstrap", "--stack", "single", "--yes")
    cloud.script(*bootstrap)
    cloud.script(*bootstrap, "--destroy")
    assert PROVIDER in cloud.resources()  # Google blocks its id: the next bootstrap adopts it
    left = {token: names for token, names in cloud.resources().items() if token in (ACCOUNT, *MEMBERS)}
    [agent] = [name for names in left.values() for name in names]
    assert "roles/workflows.serviceAgent" in agent  # Google's own account, which other workflows need too
    cloud.script(*bootstrap)
    owned = accounts(cloud)
    assert owned == sorted(f"gpt2-single-{name}@{cloud.project}.iam.gserviceaccount.com" for name in NAMES)
    cloud.up(stack="single")
    cloud.destroy(stack="single")
    assert accounts(cloud) == owned
    cloud.up(stack="single")
    assert accounts(cloud) == owned
    cloud.pulumi("preview", "--expect-no-changes", stack="single")
    provider = cloud.state(PROVIDER)["name"]

    for wrong in ({"ref": "refs/heads/x", "workflow_ref": WORKFLOW.replace("main", "x")}, {"repository_id": "7"}):
        refused = exchange(cloud, provider, **wrong)
        assert refused.status_code == 400
        assert "rejected by the attribute condition" in refused.json()["error_description"]
    federated = exchange(cloud, provider).json()["access_token"]
    for account, status in (("deploy", 200), ("preview", 403), ("master", 403), ("nobody", 404)):
        assert become(cloud, federated, f"gpt2-single-{account}").status_code == status, account
    token = become(cloud, federated, "gpt2-single-deploy").json()["accessToken"]
    check_that_it_cannot_raise_itself(cloud, token)
    cloud.call("POST", "/apis", {"disable": [f"{cloud.project}/sts.googleapis.com"]})
    assert "SERVICE_DISABLED" in exchange(cloud, provider).text


def check_that_it_cannot_raise_itself(cloud: StandIn, token: str) -> None:
    project = f"projects/{cloud.project}"
    binding = {"role": "roles/owner", "members": [f"serviceAccount:gpt2-single-deploy@{cloud.project}"]}
    default = "1-compute@developer.gserviceaccount.com"
    master = f"gpt2-single-master@{cloud.project}.iam.gserviceaccount.com"
    runs_as_default = {"name": "t", "properties": {"serviceAccounts": [{"email": default}]}}
    attempts: list[tuple[str, str, Any]] = [
        ("POST", f"cloudresourcemanager/v1/{project}:setIamPolicy", {"policy": {"bindings": [binding]}}),
        ("PATCH", f"iam/v1/{project}/roles/gpt2_single_deployer", {"includedPermissions": ["iam.roles.update"]}),
        ("POST", f"iam/v1/{project}/serviceAccounts/{default}:setIamPolicy", {"policy": {"bindings": [binding]}}),
        (
            "POST",
            f"iam/v1/{project}/serviceAccounts/{master}/keys",
            {},
        ),
        ("PATCH", f"iam/v1/{project}/locations/global/workloadIdentityPools/gpt2-single/providers/github", {}),
        ("POST", f"compute/v1/{project}/global/instanceTemplates", runs_as_default),
    ]
    for verb, path, body in attempts:
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.request(verb, f"{cloud.url}/{path}", json=body, headers=headers, timeout=30)
        assert answer.status_code == 403, (path, answer.text)
        assert "denied on" in answer.text, path
    assert cloud.call("GET", "/violations")[1] == []
