"""Permissions: grants, which are the member resources of the cloud; service accounts; enabled APIs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.google_cloud import conditions, escalation, names
from tests.google_cloud.cloud import Behaviour, Cloud
from tests.google_cloud.errors import CloudError

Json = dict[str, Any]
ACCOUNT = "gcp:serviceaccount/account:Account"
SERVICE_IDENTITY = "gcp:projects/serviceIdentity:ServiceIdentity"
CUSTOM_ROLE = "gcp:projects/iAMCustomRole:IAMCustomRole"
MEMBERS = {  # each token has the property that names the target of the grant
    "gcp:projects/iAMMember:IAMMember": "project",
    "gcp:storage/bucketIAMMember:BucketIAMMember": "bucket",
    "gcp:serviceaccount/iAMMember:IAMMember": "serviceAccountId",
    "gcp:artifactregistry/repositoryIamMember:RepositoryIamMember": "repository",
}
_OBJECTS_READ = ("storage.objects.get", "storage.objects.list")
_OBJECTS_WRITE = (*_OBJECTS_READ, "storage.objects.create", "storage.objects.delete", "storage.objects.update")
ROLES = {  # the permissions that this project's machines and people use; "*" is everything
    "roles/owner": ("*",),
    "roles/editor": ("*",),
    "roles/storage.objectViewer": _OBJECTS_READ,
    "roles/storage.legacyObjectReader": ("storage.objects.get",),
    "roles/storage.objectCreator": ("storage.objects.create",),
    "roles/storage.objectUser": _OBJECTS_WRITE,
    "roles/storage.objectAdmin": _OBJECTS_WRITE,
    "roles/storage.admin": (
        *_OBJECTS_WRITE,
        *(f"storage.buckets.{verb}" for verb in ("get", "create", "delete", "setIamPolicy")),
    ),
    "roles/artifactregistry.writer": (
        "artifactregistry.repositories.downloadArtifacts",
        "artifactregistry.repositories.uploadArtifacts",
        "artifactregistry.repositories.get",
    ),
    "roles/logging.logWriter": ("logging.logEntries.create", "logging.logEntries.route"),
    "roles/monitoring.metricWriter": (
        "monitoring.timeSeries.create",
        "monitoring.metricDescriptors.create",
        "monitoring.metricDescriptors.get",
        "monitoring.metricDescriptors.list",
    ),
    "roles/iam.serviceAccountTokenCreator": ("iam.serviceAccounts.getAccessToken",),
    "roles/cloudscheduler.jobRunner": ("cloudscheduler.jobs.run",),
    "roles/workflows.invoker": ("workflows.executions.create",),
    "roles/cloudbuild.builds.builder": ("cloudbuild.builds.create", *_OBJECTS_WRITE),
    "roles/iap.tunnelResourceAccessor": ("iap.tunnelInstances.accessViaIAP",),
    "roles/compute.osLogin": ("compute.instances.osLogin",),
    **escalation.ROLES,
    "roles/compute.osAdminLogin": ("compute.instances.osLogin", "compute.instances.osAdminLogin"),
}


class Grant(NamedTuple):
    member: str
    role: str
    resource: str
    condition: str = ""  # an expression in CEL


def grants(cloud: Cloud) -> Iterator[Grant]:
    """Return all grants."""
    for token, key in MEMBERS.items():
        for found in cloud.find(token):
            state = found.state
            condition = (state.get("condition") or {}).get("expression", "")
            yield Grant(state["member"], state["role"], _resource(token, state, state[key]), condition)


def _resource(token: str, state: Json, value: str) -> str:
    if token == "gcp:projects/iAMMember:IAMMember":
        return f"projects/{value}"
    if token == "gcp:storage/bucketIAMMember:BucketIAMMember":
        return f"buckets/{value.removeprefix('b/')}"
    if token == "gcp:artifactregistry/repositoryIamMember:RepositoryIamMember" and "/" not in value:
        return f"projects/{state['project']}/locations/{state['location']}/repositories/{value}"
    return value


def allowed(cloud: Cloud, member: str, permission: str, resource: str, attributes: Json) -> bool:
    """See Cloud.allowed."""
    if member.startswith("serviceAccount:") and not _account(cloud, member):
        return False
    places = {resource}
    kind, _, rest = resource.partition("/")
    if kind == "projects":
        places.add(f"projects/{rest.split('/')[0]}")
    elif kind == "buckets":
        bucket_name = rest.partition("/")[0]
        buckets = cloud.find("gcp:storage/bucket:Bucket", name=bucket_name)
        places |= {f"buckets/{bucket_name}", *(f"projects/{bucket.state.get('project')}" for bucket in buckets)}
    return any(
        grant.member == member
        and grant.resource in places
        and _has(cloud, grant.role, permission)
        and (not grant.condition or conditions.holds(grant.condition, _name_in_conditions(resource), attributes))
        for grant in grants(cloud)
    )


def _name_in_conditions(resource: str) -> str:
    """Return the name of a resource as conditions know it: a bucket's has no project."""
    return f"projects/_/{resource}" if resource.startswith("buckets/") else resource


def _has(cloud: Cloud, role: str, permission: str) -> bool:
    if role in ROLES:
        return "*" in ROLES[role] or permission in ROLES[role]
    return any(permission in custom.state["permissions"] for custom in cloud.find(CUSTOM_ROLE, name=role))


def _account(cloud: Cloud, member: str) -> bool:
    accounts = cloud.find(ACCOUNT, email=member.partition(":")[2])
    return any(not account.state.get("disabled") for account in accounts)


class Member(Behaviour):
    """A grant: the role and, for one of our service accounts, the member must exist; a private bucket stays private."""

    def check_create(self, props: Json) -> None:
        role, member = props["role"], props["member"]
        if role not in ROLES and not self.cloud.find(CUSTOM_ROLE, name=role):
            raise CloudError(400, "badRequest", f"Role {role} does not exist (or the stand-in cloud does not know it).")
        email = member.partition(":")[2]
        known = any(self.cloud.find(kind, email=email) for kind in (ACCOUNT, SERVICE_IDENTITY))
        if member.endswith(".iam.gserviceaccount.com") and not known:
            raise CloudError(400, "badRequest", f"Service account {email} does not exist.")
        if props.get("condition"):
            conditions.check(props["condition"])
        if "bucket" in props:
            name = props["bucket"].removeprefix("b/")
            buckets = self.cloud.find("gcp:storage/bucket:Bucket", name=name)
            if not buckets:
                raise CloudError(404, "notFound", f"The specified bucket does not exist: {name}.")
            state = buckets[0].state  # little is known of a bucket that another program made
            if props.get("condition") and not (state.get("uniformBucketLevelAccess") or state.get(names.PARTIAL)):
                raise CloudError(
                    412, "conditionNotMet", f"Bucket {name} has no uniform bucket-level access: no condition."
                )
            public = member in ("allUsers", "allAuthenticatedUsers")
            if public and state.get("publicAccessPrevention") == "enforced":
                raise CloudError(
                    412,
                    "conditionNotMet",
                    "The member bindings allUsers and allAuthenticatedUsers are not allowed "
                    "since public access prevention is enforced.",
                )


class CustomRole(Behaviour):
    """A custom role, whose id is blocked for weeks after its deletion."""

    def __init__(self, cloud: Cloud, token: str) -> None:
        super().__init__(cloud, token)
        self._deleted: set[str] = set()

    def check_create(self, props: Json) -> None:
        if f"{props['project']}/{props['roleId']}" in self._deleted:
            raise CloudError(400, "failedPrecondition", f"You can't create a role with role_id ({props['roleId']})"
                " where there is an existing role with that role_id in a deleted state.")  # fmt: skip

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        self._deleted.add(f"{state['project']}/{state['roleId']}")


class Service(Behaviour):
    """An API that is enabled."""

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        with self.cloud.lock:
            self.cloud.apis.add(id)
        return {}

    def read(self, id: str, state: Json) -> Json | None:  # noqa: A002
        project, _, service = id.partition("/")
        return (state or {"project": project, "service": service}) if id in self.cloud.apis else None

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        if state.get("disableOnDestroy", True):
            with self.cloud.lock:
                self.cloud.apis.discard(id)


def register(cloud: Cloud) -> None:
    for token in MEMBERS:
        cloud.behaviours[token] = Member(cloud, token)
    cloud.behaviours[CUSTOM_ROLE] = CustomRole(cloud, CUSTOM_ROLE)

    def get_custom_roles(args: Json) -> Json:
        project = str(args.get("project"))
        cloud.require_api(project, "iam")
        found = [
            {
                "id": role.id,
                "name": role.state["name"],
                "roleId": role.state["roleId"],
                "title": role.state["title"],
                "permissions": role.state["permissions"],
                "description": role.state.get("description", ""),
                "stage": "GA",
                "deleted": False,
            }
            for role in cloud.find(CUSTOM_ROLE, project=project)
        ]
        return {"id": project, "project": project, "roles": found}

    cloud.invokes["gcp:projects/getIamCustomRoles:getIamCustomRoles"] = get_custom_roles
    service = "gcp:projects/service:Service"
    cloud.behaviours[service] = Service(cloud, service)
