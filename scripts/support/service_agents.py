"""Check the roles of the accounts of Google's own in whose names its services work in a project: service agents."""

from collections.abc import Collection
from typing import Any

from infra.google.availability import unknown
from infra.google.quotas import Check
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

Json = dict[str, Any]


def check_agents(api: GoogleApi, config: StackConfig, number: str, services: Collection[str]) -> list[Check]:
    """Check the roles of the agents, by one reading of the grants on the project.

    Args:
        api: Google.
        config: The stack.
        number: The project's number, empty if it is not known.
        services: Those of the controller whose API is enabled, as Google makes an agent when its API is.
    """
    name = "service agents"
    if not number:
        return [Check(name, "unknown", "the project's number is not known, and so not their names")]
    try:
        policy = api.call("cloudresourcemanager", "POST", f"projects/{config.project}:getIamPolicy", body={})
    except ApiError as error:
        return [unknown(name, error, "without their roles groups make no machines, and the controller does not start")]
    bindings = [binding for binding in policy.get("bindings", []) if "condition" not in binding]
    checks = [_of_groups(bindings, number)]
    if services:
        checks.append(_of_controller(bindings, config.project, number, services))
    return checks


def _of_groups(bindings: list[Json], number: str) -> Check:
    """Check the rights of the Google APIs service agent, in whose name instance groups make machines."""
    name, account = "Google APIs service agent", f"{number}@cloudservices.gserviceaccount.com"
    roles = [binding["role"] for binding in bindings if f"serviceAccount:{account}" in binding.get("members", [])]
    if "roles/editor" in roles or "roles/owner" in roles:
        return Check(name, "ok", f"has {'roles/editor' if 'roles/editor' in roles else 'roles/owner'}")
    if {"roles/compute.admin", "roles/iam.serviceAccountUser"} <= set(roles):
        return Check(name, "ok", "has roles/compute.admin and roles/iam.serviceAccountUser")
    fix = f"grant roles/editor to {account}, or roles/compute.admin and roles/iam.serviceAccountUser"
    if roles:
        return Check(name, "unknown", f"has {', '.join(roles)}, which may not let groups make machines", fix)
    return Check(name, "problem", "has no role in the project, so groups make no machines", fix)


def _of_controller(bindings: list[Json], project: str, number: str, services: Collection[str]) -> Check:
    """Check the roles of the services of the controller, without which they cannot work as our accounts."""
    name = "agents of Cloud Scheduler and Workflows"
    held = {(binding["role"], member) for binding in bindings for member in binding.get("members", [])}
    missing = []
    for service in services:
        role = f"roles/{service}.serviceAgent"
        member = f"serviceAccount:service-{number}@gcp-sa-{service}.iam.gserviceaccount.com"
        if (role, member) not in held:
            missing.append(f"`gcloud projects add-iam-policy-binding {project} --member {member} --role {role}`")
    if missing:
        return Check(name, "problem", "a role is missing, so the controller cannot start", " and ".join(missing))
    return Check(name, "ok", "have their roles")
