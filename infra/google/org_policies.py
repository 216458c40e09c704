"""Check whether an organization's policies refuse what a stack makes. scripts.preflight asks.

Projects without an organization have no such policies, and all is allowed.
"""

from typing import Any

from infra.google.availability import unknown
from infra.google.quotas import Check
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

IMAGES = "compute.trustedImageProjects"
LOGINS = "iam.workloadIdentityPoolProviders"
GITHUB = "https://token.actions.githubusercontent.com"


def policy_checks(api: GoogleApi, config: StackConfig, image_project: str) -> list[Check]:
    """Check the policies on images and, with a pipeline, on logins from other places.

    image_project: the project whose images the machines boot from.
    """
    wanted = {IMAGES: f"projects/{image_project}"}
    if config.file.pipeline is not None:
        wanted[LOGINS] = GITHUB
    return [_check(api, config.project, constraint, value) for constraint, value in wanted.items()]


def _check(api: GoogleApi, project: str, constraint: str, value: str) -> Check:
    name = f"policy {constraint}"
    try:
        policy = api.call(
            "cloudresourcemanager",
            "POST",
            f"projects/{project}:getEffectiveOrgPolicy",
            body={"constraint": f"constraints/{constraint}"},
        )
    except ApiError as error:
        return unknown(name, error, f"ask whether your organization's policy allows {value}")
    allowed = allows(policy.get("listPolicy") or {}, value)
    if allowed is None:
        fix = f"ask whether that has {value} in it"
        return Check(name, "unknown", "allows what is below a folder or an organization", fix)
    if allowed:
        return Check(name, "ok", f"allows {value}")
    return Check(name, "problem", f"does not allow {value}", "ask the administrator of your organization to allow it")


def allows(rules: dict[str, Any], value: str) -> bool | None:
    """Return whether the rules of a list policy allow a value; None if that depends on where the value's project is."""
    if rules.get("allValues") in ("ALLOW", "DENY"):
        return bool(rules["allValues"] == "ALLOW")
    denied, allowed = ([_plain(one) for one in rules.get(key, [])] for key in ("deniedValues", "allowedValues"))
    if value in denied or (value not in allowed and any(one.startswith("under:") for one in denied)):
        return False if value in denied else None
    if not allowed or value in allowed:
        return True
    return None if any(one.startswith("under:") for one in allowed) else False


def _plain(value: str) -> str:
    return value.removeprefix("is:")
