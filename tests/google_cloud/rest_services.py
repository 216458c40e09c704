"""The smaller REST APIs: Cloud Scheduler, Service Usage, Cloud Quotas, Artifact Registry, Resource Manager, Build."""

import hashlib
import http.client
import re
from typing import Any
from urllib.parse import quote

from tests.google_cloud import catalog, iam, scheduler, workflows
from tests.google_cloud.clock import clock_of, stamp
from tests.google_cloud.cloud import Cloud, CloudError, Json
from tests.google_cloud.fleet import fleet_of
from tests.google_cloud.metadata import DEPLOYER, project_number
from tests.google_cloud.rest import Call, Played

REPOSITORY = "gcp:artifactregistry/repository:Repository"
KNOWN_APIS = (
    *("artifactregistry", "billingbudgets", "cloudbuild", "cloudquotas", "cloudresourcemanager", "cloudscheduler"),
    *("compute", "iam", "iap", "logging", "monitoring", "serviceusage", "storage"),
    *("workflowexecutions", "workflows"),
)


# -- Cloud Scheduler -----------------------------------------------------------------------------------------------


def _run_job(call: Call) -> Json:
    jobs = scheduler.scheduler_of(call.cloud)
    described = jobs.describe(call.parts["name"])
    jobs.run(call.parts["name"])
    return described


def _get_job(call: Call) -> Json:
    return scheduler.scheduler_of(call.cloud).describe(call.parts["name"])


def _locations(call: Call) -> Json:
    """List the regions of a service: Scheduler and Workflows are in those that the stand-in cloud has."""
    where = [{"name": f"{call.parts['name']}/locations/{region}", "locationId": region} for region in catalog.ZONES]
    return call.page("locations", where, "pageSize")


def _pause_job(call: Call) -> Json:
    return scheduler.scheduler_of(call.cloud).pause(call.parts["name"])


# -- Workflows -----------------------------------------------------------------------------------------------------


def _execute(call: Call) -> Json:
    name = call.parts["parent"]
    found = [one for one in call.cloud.find(workflows.WORKFLOW) if one.id == name]
    if not found:
        raise CloudError(404, "NOT_FOUND", f"workflow {name} was not found")
    argument = call.body.get("argument", "")
    if len(argument.encode()) > workflows.LONGEST_ARGUMENT:
        raise CloudError(400, "INVALID_ARGUMENT", f"the argument has more than {workflows.LONGEST_ARGUMENT} bytes")
    return workflows.executions_of(call.cloud).start(found[0].state, name, argument)


# -- Service Usage -------------------------------------------------------------------------------------------------


def _service(cloud: Cloud, project: str, name: str) -> Json:
    enabled = f"{project}/{name}" in cloud.apis
    return {
        "name": f"projects/{project_number(project)}/services/{name}",
        "parent": f"projects/{project_number(project)}",
        "config": {"name": name},
        "state": "ENABLED" if enabled else "DISABLED",
    }


def _services(call: Call) -> Json:
    project = call.parts["parent"].rpartition("/")[2]
    enabled = [api.partition("/")[2] for api in sorted(call.cloud.apis) if api.startswith(f"{project}/")]
    known = dict.fromkeys([*(f"{name}.googleapis.com" for name in KNOWN_APIS), *enabled])
    services = [_service(call.cloud, project, name) for name in known]
    match call.query.get("filter", ""):
        case "":
            pass
        case "state:ENABLED" | "state:DISABLED" as wanted:
            services = [service for service in services if service["state"] == wanted.removeprefix("state:")]
        case other:
            raise CloudError(400, "INVALID_ARGUMENT", f"invalid filter {other}")
    return call.page("services", services, "pageSize")


def _some_services(call: Call) -> Json:
    project = call.parts["parent"].rpartition("/")[2]
    asked = call.query.get("names", [])
    names = [name.rpartition("/")[2] for name in (asked if isinstance(asked, list) else [asked])]
    return {"services": [_service(call.cloud, project, name) for name in names]}


# -- Cloud Quotas --------------------------------------------------------------------------------------------------


def _quota_infos(call: Call) -> list[Json]:
    """Return infos in the form of the API's reference of QuotaInfo; a value is text."""
    limits = fleet_of(call.cloud).limits

    def info(quota: str, metrics: dict[str, Json]) -> Json:
        """Return an info. metrics: name -> its dimensions, without the region."""
        regional = quota.endswith("-region")
        places: list[Json] = [{"region": region} for region in catalog.ZONES] if regional else [{}]
        dimensions = [(metric, {**place, **own}) for metric, own in metrics.items() for place in places]
        return {
            "name": f"{call.parts['parent']}/quotaInfos/{quota}",
            "quotaId": quota,
            "metric": f"compute.googleapis.com/{quota.partition('-per-')[0].replace('-', '_').lower()}",
            "service": "compute.googleapis.com",
            "containerType": "PROJECT",
            "dimensions": sorted({key for _, one in dimensions for key in one}),
            "dimensionsInfos": [
                {
                    "dimensions": one,
                    "details": {"value": f"{limits.get(metric, catalog.PLENTY):.0f}"},
                    "applicableLocations": [one.get("region", "global")],
                }
                for metric, one in dimensions
            ],
        }

    families = {f"NVIDIA_{name}_GPUS": {"gpu_family": f"NVIDIA_{name}"} for name in catalog.QUOTA_FAMILIES}
    cpus: dict[str, Json] = {f"CPUS_PER_VM_FAMILY({name})": {"vm_family": name} for name in catalog.CPU_QUOTA_FAMILIES}
    spot = [f"PREEMPTIBLE_NVIDIA_{name}_GPUS" for name in catalog.QUOTA_FAMILIES]
    return [
        *(info(f"{name.replace('_', '-')}-per-project", {name: {}}) for name in catalog.PROJECT_QUOTAS),
        *(info(f"{name.replace('_', '-')}-per-project-region", {name: {}}) for name in (*catalog.REGION_QUOTAS, *spot)),
        info("CPUS-PER-VM-FAMILY-per-project-region", cpus),
        info("GPUS-PER-GPU-FAMILY-per-project-region", families),
    ]


def _list_quotas(call: Call) -> Json:
    return call.page("quotaInfos", _quota_infos(call), "pageSize")


def _get_quota(call: Call) -> Json:
    for info in _quota_infos(call):
        if info["quotaId"] == call.parts["quota"]:
            return info
    raise CloudError(404, "NOT_FOUND", f"quota {call.parts['quota']} was not found")


# -- Artifact Registry ---------------------------------------------------------------------------------------------


def _repository(call: Call) -> Json:
    _check_repository(call.cloud, call.parts["name"])
    return {"name": call.parts["name"], "format": "DOCKER", "mode": "STANDARD_REPOSITORY"}


def _tag(call: Call) -> Json:
    match = re.fullmatch(
        r"projects/([^/]+)/locations/([^/]+)/repositories/([^/]+)/packages/([^/]+)/tags/(.+)", call.parts["name"]
    )
    project, location, repository, package, tag = match.groups() if match else ("",) * 5
    with call.cloud.lock:
        digest = call.cloud.images.get(f"{location}-docker.pkg.dev/{project}/{repository}/{package}:{tag}")
    if digest is None:
        raise CloudError(404, "NOT_FOUND", f"Requested entity was not found: {call.parts['name']}")
    return {"name": call.parts["name"], "version": f"{call.parts['name'].partition('/tags/')[0]}/versions/{digest}"}


# -- Resource Manager ----------------------------------------------------------------------------------------------


def _project(call: Call) -> Json:
    project = call.parts["projectId"]
    return {
        "projectId": project,
        "projectNumber": project_number(project),
        "name": project,
        "lifecycleState": "ACTIVE",
        "createTime": "2026-01-01T00:00:00Z",
    }


def _policy(call: Call) -> Json:
    project = call.parts["resource"]
    number = project_number(project)
    bindings: dict[str, list[str]] = {
        "roles/owner": [f"serviceAccount:{DEPLOYER}"],
        # This account acts for instance groups.
        "roles/editor": [f"serviceAccount:{number}@cloudservices.gserviceaccount.com"],
    }
    for grant in iam.grants(call.cloud):
        if grant.resource == f"projects/{project}" and not grant.condition:  # as version 1 has no conditions
            bindings.setdefault(grant.role, []).append(grant.member)
    return {"version": 1, "etag": "BwX=", "bindings": [{"role": r, "members": m} for r, m in bindings.items()]}


def _test_permissions(call: Call) -> Json:
    place, member = f"projects/{call.parts['resource']}", f"serviceAccount:{call.account}"
    asked = call.body.get("permissions", [])
    mine = [p for p in asked if call.account == DEPLOYER or call.cloud.allowed(member, p, place)]
    return {"permissions": mine} if mine else {}


# -- Cloud Build ---------------------------------------------------------------------------------------------------


class Builds:
    """Builds that work from the first time they are read; at the second they have pushed their images."""

    def __init__(self) -> None:
        self.known: dict[str, Json] = {}

    def create(self, call: Call) -> Json:
        project = call.parts["projectId"] if "projectId" in call.parts else call.parts["parent"].split("/")[1]
        source = call.body.get("source", {}).get("storageSource", {})
        if source and not _there(call.cloud, source.get("bucket", ""), source.get("object", "")):
            message = f"could not resolve source: gs://{source.get('bucket')}/{source.get('object')} does not exist"
            raise CloudError(400, "INVALID_ARGUMENT", message)
        for name in call.body.get("images", []):
            _check_repository(call.cloud, _repository_of(name))
        identity = hashlib.sha256(repr(call.body).encode()).hexdigest()[:32]
        name = (
            f"projects/{project}/locations/{call.parts.get('parent', 'x/x/x/global').split('/')[3]}/builds/{identity}"
        )
        now = stamp(clock_of(call.cloud).now())
        made = {"id": identity, "name": name, "projectId": project, "status": "QUEUED", "createTime": now}
        self.known[identity] = {**call.body, **made}
        kind = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"
        operation = f"operations/build/{project}/{identity}"
        return {"name": operation, "metadata": {"@type": kind, "build": self.known[identity]}, "done": False}

    def get(self, call: Call) -> Json:
        identity = call.parts.get("id") or call.parts["name"].rpartition("/")[2]
        if identity not in self.known:
            raise CloudError(404, "NOT_FOUND", f"build {identity} was not found")
        build = self.known[identity]
        if build["status"] == "QUEUED":
            build["status"] = "WORKING"
        elif build["status"] == "WORKING":
            build["status"] = "SUCCESS"
            build["results"] = {"images": [self._push(call.cloud, name, identity) for name in build.get("images", [])]}
        return dict(build)

    def _push(self, cloud: Cloud, name: str, identity: str) -> Json:
        digest = f"sha256:{hashlib.sha256(identity.encode()).hexdigest()}"
        with cloud.lock:
            cloud.images[name] = digest
            cloud.images[f"{re.sub(r':[^:/]+$', '', name)}@{digest}"] = digest
        return {"name": name, "digest": digest}


def _there(cloud: Cloud, bucket: str, name: str) -> bool:
    connection = http.client.HTTPConnection(cloud.storage.removeprefix("http://"), timeout=30)
    connection.request("GET", f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}")
    return connection.getresponse().status == 200


def _repository_of(image: str) -> str:
    match = re.match(r"([a-z0-9-]+)-docker\.pkg\.dev/([^/]+)/([^/]+)/", image)
    return "projects/{1}/locations/{0}/repositories/{2}".format(*match.groups()) if match else image


def _check_repository(cloud: Cloud, repository: str) -> None:
    """Raise CloudError 404 for a repository that does not exist."""
    if not any(found.id == repository for found in cloud.find(REPOSITORY)):
        raise CloudError(404, "NOT_FOUND", f'name unknown: Repository "{repository}" not found')


def _methods() -> dict[str, Played]:
    builds = Builds()
    quotas = "cloudquotas.projects.locations.services.quotaInfos"
    registry = "artifactregistry.projects.locations.repositories"
    table: dict[str, tuple[str, str, Any]] = {
        "cloudscheduler.projects.locations.jobs.run": ("cloudscheduler.jobs.run", "{name}", _run_job),
        "cloudscheduler.projects.locations.jobs.get": ("cloudscheduler.jobs.get", "{name}", _get_job),
        "cloudscheduler.projects.locations.jobs.pause": ("cloudscheduler.jobs.pause", "{name}", _pause_job),
        "workflowexecutions.projects.locations.workflows.executions.create": (
            "workflows.executions.create",
            "{parent}",
            _execute,
        ),
        "cloudscheduler.projects.locations.list": ("cloudscheduler.locations.list", "{name}", _locations),
        "workflows.projects.locations.list": ("workflows.locations.list", "{name}", _locations),
        "serviceusage.services.list": ("serviceusage.services.list", "{parent}", _services),
        "serviceusage.services.batchGet": ("serviceusage.services.get", "{parent}", _some_services),
        f"{quotas}.list": ("cloudquotas.quotas.get", "projects/{project}", _list_quotas),
        f"{quotas}.get": ("cloudquotas.quotas.get", "projects/{project}", _get_quota),
        f"{registry}.get": ("artifactregistry.repositories.get", "{name}", _repository),
        f"{registry}.packages.tags.get": ("artifactregistry.tags.get", "{name}", _tag),
        "cloudresourcemanager.projects.get": ("resourcemanager.projects.get", "projects/{projectId}", _project),
        "cloudresourcemanager.projects.getIamPolicy": (
            "resourcemanager.projects.getIamPolicy",
            "projects/{resource}",
            _policy,
        ),
        "cloudresourcemanager.projects.getEffectiveOrgPolicy": (
            "orgpolicy.policy.get",
            "projects/{resource}",
            lambda call: {"constraint": call.body.get("constraint", ""), "etag": "BwUjMhCsNvY="},
        ),
        "cloudresourcemanager.projects.testIamPermissions": ("", "", _test_permissions),
        "cloudbuild.projects.builds.create": ("cloudbuild.builds.create", "projects/{projectId}", builds.create),
        "cloudbuild.projects.builds.get": ("cloudbuild.builds.get", "projects/{projectId}", builds.get),
        "cloudbuild.projects.locations.builds.create": ("cloudbuild.builds.create", "{parent}", builds.create),
        "cloudbuild.projects.locations.builds.get": ("cloudbuild.builds.get", "{name}", builds.get),
    }
    return {name: Played(*row) for name, row in table.items()}


METHODS = _methods()
