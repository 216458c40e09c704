"""The pipeline's accounts outlive the stack that declared them, as one of them may be destroying it."""

import pytest

from .conftest import StandIn

POOL = "gcp:iam/workloadIdentityPool:WorkloadIdentityPool"
PROVIDER = "gcp:iam/workloadIdentityPoolProvider:WorkloadIdentityPoolProvider"


@pytest.mark.slow
@pytest.mark.runs_on("the accounts that the second `up` adopts are the subject, and no machine is waited for")
def test_pipeline_outlives_its_stack_and_is_adopted_again(cloud: StandIn) -> None:
    key = "gpt2-training:pipeline: {repository: acme/models}\n  gpt2-training:platform"
    cloud.edit("single", "gpt2-training:platform", key)
    cloud.up(stack="single")
    outputs = cloud.outputs("single")
    assert outputs["pipelineDeployer"] == f"gpt2-single-deploy@{cloud.project}.iam.gserviceaccount.com"
    assert outputs["pipelineProvider"].endswith("/workloadIdentityPools/gpt2-single/providers/github")
    before = cloud.resources()

    cloud.destroy(stack="single")
    after = cloud.resources()
    for token in (POOL, PROVIDER):
        assert after[token] == before[token]
    accounts = {name.split("/")[-1].split("@")[0] for name in after["gcp:serviceaccount/account:Account"]}
    assert accounts == {"gpt2-single-deploy", "gpt2-single-preview"}

    cloud.up(stack="single")
    for token in (POOL, PROVIDER):
        assert cloud.resources()[token] == before[token]
    cloud.pulumi("preview", "--expect-no-changes", stack="single")
