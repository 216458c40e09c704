"""The permissions by which an account can gain rights or become another one, and which of Google's roles have them.

The roles are those that this project grants to the pipeline's accounts, and those that it must not. Their content is
Google's as of 2026-08 (github.com/iann0036/iam-dataset, gcp/roles/); permissions that raise nobody are left out.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.google_cloud.conditions import holds

ACT_AS = ("iam.serviceAccounts.actAs", "iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.signJwt")
ROLES: dict[str, tuple[str, ...]] = {
    # Of the deployer.
    "roles/artifactregistry.admin": ("artifactregistry.repositories.setIamPolicy",),
    "roles/cloudscheduler.admin": ("cloudscheduler.jobs.run",),
    "roles/compute.instanceAdmin.v1": (
        "compute.instanceGroupManagers.get",
        "compute.instanceGroupManagers.update",
        "compute.instances.get",
        "compute.instances.list",
        "compute.instances.osAdminLogin",
        "compute.instances.setIamPolicy",
        "compute.instances.setMetadata",
        "compute.instances.setServiceAccount",
        "compute.projects.setCommonInstanceMetadata",
    ),
    "roles/compute.networkAdmin": ("compute.subnetworks.setIamPolicy",),
    "roles/compute.securityAdmin": ("compute.firewallPolicies.setIamPolicy",),
    "roles/iam.serviceAccountUser": ("iam.serviceAccounts.actAs", "iam.serviceAccounts.get"),
    "roles/logging.configWriter": ("logging.sinks.create",),
    "roles/monitoring.editor": ("serviceusage.services.enable",),
    "roles/serviceusage.serviceUsageConsumer": ("serviceusage.services.use",),
    "roles/workflows.editor": ("workflows.executions.create",),  # an execution runs as the workflow's account
    # Of the previewer.
    "roles/artifactregistry.reader": (
        "artifactregistry.repositories.downloadArtifacts",
        "artifactregistry.repositories.get",
    ),
    "roles/cloudscheduler.viewer": (),
    "roles/compute.viewer": (
        "compute.advice.capacity",
        "compute.instanceGroupManagers.get",
        "compute.instances.get",
        "compute.instances.list",
    ),
    "roles/iam.securityReviewer": ("resourcemanager.projects.getIamPolicy", "storage.buckets.list"),
    "roles/iam.serviceAccountViewer": ("iam.serviceAccounts.get", "iam.serviceAccounts.getIamPolicy"),
    "roles/logging.viewer": (),
    "roles/monitoring.viewer": (),
    "roles/storage.bucketViewer": ("storage.buckets.get", "storage.buckets.list"),
    "roles/workflows.viewer": (),
    # Of the agent of Workflows.
    "roles/workflows.serviceAgent": ("iam.serviceAccounts.getAccessToken",),
    # Of jobs that log in.
    "roles/iam.workloadIdentityUser": (
        "iam.serviceAccounts.get",
        "iam.serviceAccounts.getAccessToken",
        "iam.serviceAccounts.getOpenIdToken",
    ),
    # Of an owner alone.
    "roles/iam.roleAdmin": ("iam.roles.create", "iam.roles.update"),
    "roles/iam.serviceAccountAdmin": ("iam.serviceAccounts.create", "iam.serviceAccounts.setIamPolicy"),
    "roles/iam.workloadIdentityPoolAdmin": ("iam.workloadIdentityPoolProviders.update",),
    "roles/resourcemanager.projectIamAdmin": ("resourcemanager.projects.setIamPolicy",),
    "roles/serviceusage.serviceUsageAdmin": ("serviceusage.services.enable", "serviceusage.services.disable"),
}


class Granted(NamedTuple):
    """A grant. resource: projects/P, projects/P/serviceAccounts/EMAIL or buckets/NAME."""

    member: str
    role: str
    resource: str
    condition: str = ""


def may(
    grants: Iterable[Granted],
    roles: Mapping[str, Iterable[str]],
    member: str,
    permission: str,
    resource: str,
    name: str = "",
) -> bool:
    """Return whether the grants let a member do something.

    Args:
        grants: all grants of the project. One on a project counts for everything in it.
        roles: the permissions of each role. A role that is not there is an error, as it might hold anything.
        member: such as serviceAccount:EMAIL.
        permission: such as iam.serviceAccounts.actAs.
        resource: as in Granted.
        name: the resource's name as conditions see it; by default the same.
    """
    places = {resource, "/".join(resource.split("/")[:2]) if resource.startswith("projects/") else ""}
    return any(
        permission in roles[grant.role]
        and grant.resource in places
        and (not grant.condition or holds(grant.condition, name or resource))
        for grant in grants
        if grant.member == member
    )


def reachable(
    grants: Iterable[Granted], roles: Mapping[str, Iterable[str]], member: str, accounts: Iterable[str]
) -> set[str]:
    """Return the members that a member can become, itself included, one after the other.

    `accounts` are the full names of the service accounts of the project, projects/P/serviceAccounts/EMAIL.
    """
    grants, accounts, found, todo = list(grants), list(accounts), {member}, [member]
    while todo:
        now = todo.pop()
        for account in accounts:
            other = f"serviceAccount:{account.rpartition('/')[2]}"
            if other not in found and any(may(grants, roles, now, way, account) for way in ACT_AS):
                found.add(other)
                todo.append(other)
    return found
