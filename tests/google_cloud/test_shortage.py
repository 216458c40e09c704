"""A project that is short of quota: `pulumi up` warns before it makes anything, and continues."""

from collections.abc import Callable

import pytest

from .life import Life

pytestmark = pytest.mark.slow


@pytest.mark.runs_on("the groups that `up` makes in spite of the warning are the subject")
def test_up_in_a_project_short_of_quota_warns_and_continues(life: Callable[..., Life]) -> None:
    run = life()
    assert "not checked: quotas and machine types (its API is not enabled yet)" in run.cloud.pulumi("preview")
    run.cloud.enable("compute", "cloudquotas")
    run.fault("quota", metric="PREEMPTIBLE_CPUS", limit=1)
    short = "warning: quota PREEMPTIBLE_CPUS: 2 needed, limit 1 in us-central1; ask for 2 or more"
    alone = "not checked: whether machines are free in us-central1-a"
    said = run.cloud.pulumi("preview")
    assert short in said
    assert alone in said
    assert short in run.cloud.up()
    assert run.sizes() == {"master": 1, "worker": 1}
