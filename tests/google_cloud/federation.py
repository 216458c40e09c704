"""The login of a workload identity pool, as Google decides it: a token's claims -> attributes -> accounts.

Expressions are evaluated by a CEL library. Limits are those of the API's reference of WorkloadIdentityPoolProvider.
"""

from collections.abc import Mapping
from typing import Any

from tests.google_cloud.conditions import evaluate

Json = dict[str, Any]
SUBJECT_BYTES, MAPPING_CHARACTERS, CONDITION_CHARACTERS = 127, 2048, 4096
POOL = "gcp:iam/workloadIdentityPool:WorkloadIdentityPool"
PROVIDER = "gcp:iam/workloadIdentityPoolProvider:WorkloadIdentityPoolProvider"


class Refused(Exception):
    """Google's reason, in one sentence."""


def check_provider(provider: Mapping[str, Any]) -> None:
    """Raise Refused for expressions that Google does not accept in a provider (its inputs, as declared)."""
    for key, expression in provider["attributeMapping"].items():
        if len(expression) > MAPPING_CHARACTERS:
            raise Refused(f"The mapping of {key} exceeds {MAPPING_CHARACTERS} characters.")
    if len(provider.get("attributeCondition", "")) > CONDITION_CHARACTERS:
        raise Refused(f"The attribute condition exceeds {CONDITION_CHARACTERS} characters.")


def attributes(provider: Mapping[str, Any], claims: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes of a token at a provider (its inputs, as declared). Raise Refused."""
    if claims.get("iss") != provider["oidc"]["issuerUri"]:
        raise Refused("The issuer in the credential does not match the provider's.")
    mapped: dict[str, str] = {}
    for key, expression in provider["attributeMapping"].items():
        try:
            mapped[key] = evaluate(expression, {"assertion": claims})
        except ValueError as error:
            raise Refused(f"The mapping of {key} cannot be evaluated: {error}") from None
        if not isinstance(mapped[key], str):
            raise Refused(f"The mapped attribute {key} must be a string.")
    if len(mapped["google.subject"].encode()) > SUBJECT_BYTES:
        raise Refused(f"The size of mapped attribute google.subject exceeds the {SUBJECT_BYTES} bytes limit.")
    if condition := provider.get("attributeCondition"):
        variables: Json = {"assertion": claims, "google": {}, "attribute": {}}
        for key, value in mapped.items():
            kind, _, name = key.partition(".")
            variables[kind][name] = value
        try:
            accepted = evaluate(condition, variables) is True
        except ValueError:
            accepted = False
        if not accepted:
            raise Refused("The given credential is rejected by the attribute condition.")
    return mapped


def is_member(mapped: Mapping[str, str], pool: str, member: str) -> bool:
    """Return whether a login is one of a grant's principals.

    Args:
        mapped: the login's attributes.
        pool: the full name of its pool, with the project's number.
        member: as in the grant, such as principalSet://iam.googleapis.com/POOL/attribute.x/VALUE.
    """
    if member == f"principal://iam.googleapis.com/{pool}/subject/{mapped['google.subject']}":
        return True
    kind, _, value = member.removeprefix(f"principalSet://iam.googleapis.com/{pool}/").partition("/")
    return member.startswith(f"principalSet://iam.googleapis.com/{pool}/") and (
        kind == "*" or mapped.get(kind) == value
    )
