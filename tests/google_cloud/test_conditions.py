"""tests/google_cloud/conditions.py: CEL as IAM uses it."""

import pytest

from tests.google_cloud.conditions import evaluate, holds

ROLES = "api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly(['roles/a', 'roles/b'])"


@pytest.mark.parametrize(
    ("modified", "expected"), [(["roles/a"], True), ([], True), (["roles/a", "roles/owner"], False)]
)
def test_has_only_of_the_modified_roles_allows_the_listed_ones_alone(modified: list[str], expected: bool) -> None:
    assert holds(ROLES, attributes={"iam.googleapis.com/modifiedGrantsByRole": modified}) is expected


def test_a_condition_on_a_name_holds_for_names_that_begin_so() -> None:
    condition = "resource.name.startsWith('projects/_/buckets/b/objects/runs/r/')"
    assert holds(condition, "projects/_/buckets/b/objects/runs/r/status.json")
    assert not holds(condition, "projects/_/buckets/b/objects/runs/r2/status.json")


def test_a_condition_that_cannot_be_evaluated_does_not_hold() -> None:
    assert not holds("resource.missing.startsWith('a')")
    assert not holds("this is no CEL")


def test_a_missing_claim_is_an_error_unless_it_is_asked_for() -> None:
    assert evaluate("'environment' in assertion ? assertion.environment : ''", {"assertion": {}}) == ""
    with pytest.raises(ValueError, match="environment"):
        evaluate("assertion.environment", {"assertion": {}})
