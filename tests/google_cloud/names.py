"""Values that the real provider derives from inputs alone: ids, self links, defaults.

The plugin needs them in a preview.
"""

import functools
import json
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # the engine writes a value that a preview cannot know in this form
COMPUTE = "https://www.googleapis.com/compute/v1/"
IMAGE = "docker-build:index:Image"


@dataclass(frozen=True)
class Kind:
    """A resource type. In formats, {x!l} is the last segment of x; {generated} a number of its own."""

    id: str
    api: str
    name: str = "name"  # the property that gets a generated name where it is left out; "" if there is none
    outputs: dict[str, str] = field(default_factory=dict)
    planned: tuple[str, ...] = ()  # the outputs that a preview knows
    shared: bool = False  # if set, making it again is no conflict


def _compute(kind: str, where: str = "regions/{region}", **outputs: str) -> Kind:
    path = f"projects/{{project}}/{where}/{kind}/{{name}}"
    return Kind(path, "compute", outputs={"selfLink": COMPUTE + path, **outputs})


def _generated(kind: str, api: str) -> Kind:
    path = f"projects/{{project}}/{kind}/{{generated}}"
    return Kind(path, api, name="", outputs={"name": path})


# This output marks a resource that another program made: the storage server keeps a bucket's name and versioning, not
# its place, lifecycle or access settings, so that absent inputs mean nothing.
PARTIAL = "standInPartial"

KINDS = {
    "gcp:compute/network:Network": _compute("networks", "global", networkId="{generated}"),
    "gcp:compute/subnetwork:Subnetwork": _compute("subnetworks", subnetworkId="{generated}"),
    "gcp:compute/firewall:Firewall": _compute("firewalls", "global"),
    "gcp:compute/router:Router": _compute("routers"),
    "gcp:compute/resourcePolicy:ResourcePolicy": _compute("resourcePolicies"),
    "gcp:compute/routerNat:RouterNat": Kind("{project}/{region}/{router!l}/{name}", "compute"),
    "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate": _compute("instanceTemplates", numericId="{generated}"),
    "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager": _compute(
        "instanceGroupManagers",
        instanceGroup=COMPUTE + "projects/{project}/regions/{region}/instanceGroups/{name}",
        instanceGroupManagerId="{generated}",
    ),
    "gcp:storage/bucket:Bucket": Kind(
        "{name}",
        "storage",
        outputs={"selfLink": "https://www.googleapis.com/storage/v1/b/{name}", "url": "gs://{name}"},
    ),
    "gcp:storage/bucketObject:BucketObject": Kind(
        "{bucket}-{name}",
        "storage",
        outputs={
            "selfLink": "https://www.googleapis.com/storage/v1/b/{bucket}/o/{name}",
            "mediaLink": "https://storage.googleapis.com/download/storage/v1/b/{bucket}/o/{name}?alt=media",
            "outputName": "{name}",
        },
        shared=True,  # an upload overwrites
    ),
    "gcp:storage/bucketIAMMember:BucketIAMMember": Kind(
        "b/{bucket}/{role}/{member}{condition!c}", "storage", "", shared=True
    ),
    "gcp:serviceaccount/account:Account": Kind(
        "projects/{project}/serviceAccounts/{accountId}@{project}.iam.gserviceaccount.com",
        "iam",
        name="accountId",
        outputs={
            "email": "{accountId}@{project}.iam.gserviceaccount.com",
            "member": "serviceAccount:{accountId}@{project}.iam.gserviceaccount.com",
            "name": "projects/{project}/serviceAccounts/{accountId}@{project}.iam.gserviceaccount.com",
            "uniqueId": "{generated}",
        },
        planned=("email", "member"),
    ),
    "gcp:serviceaccount/iAMMember:IAMMember": Kind("{serviceAccountId}/{role}/{member}", "iam", "", shared=True),
    "gcp:projects/iAMMember:IAMMember": Kind(
        "{project}/{role}/{member}{condition!c}", "cloudresourcemanager", "", shared=True
    ),
    "gcp:projects/iAMCustomRole:IAMCustomRole": Kind(
        "projects/{project}/roles/{roleId}", "iam", "", outputs={"name": "projects/{project}/roles/{roleId}"}
    ),
    "gcp:iam/workloadIdentityPool:WorkloadIdentityPool": Kind(
        "projects/{project}/locations/global/workloadIdentityPools/{workloadIdentityPoolId}",
        "iam",
        "",
        outputs={
            "name": "projects/{generated}/locations/global/workloadIdentityPools/{workloadIdentityPoolId}",
            "state": "ACTIVE",
        },
    ),
    "gcp:iam/workloadIdentityPoolProvider:WorkloadIdentityPoolProvider": Kind(
        "projects/{project}/locations/global/workloadIdentityPools/{workloadIdentityPoolId}"
        "/providers/{workloadIdentityPoolProviderId}",
        "iam",
        "",
        outputs={
            "name": "projects/{generated}/locations/global/workloadIdentityPools/{workloadIdentityPoolId}"
            "/providers/{workloadIdentityPoolProviderId}",
            "state": "ACTIVE",
        },
    ),
    "gcp:projects/serviceIdentity:ServiceIdentity": Kind(
        "projects/{project}/services/{service}", "serviceusage", "", shared=True
    ),
    "gcp:projects/service:Service": Kind("{project}/{service}", "serviceusage", "", shared=True),
    "gcp:artifactregistry/repository:Repository": Kind(
        "projects/{project}/locations/{location}/repositories/{repositoryId}",
        "artifactregistry",
        "",
        outputs={"name": "{repositoryId}", "registryUri": "{location}-docker.pkg.dev/{project}/{repositoryId}"},
    ),
    "gcp:artifactregistry/repositoryIamMember:RepositoryIamMember": Kind(
        "projects/{project}/locations/{location}/repositories/{repository!l}/{role}/{member}",
        "artifactregistry",
        "",
        shared=True,
    ),
    "gcp:cloudscheduler/job:Job": Kind(
        "projects/{project}/locations/{region}/jobs/{name}", "cloudscheduler", outputs={"state": "ENABLED"}
    ),
    "gcp:workflows/workflow:Workflow": Kind(
        "projects/{project}/locations/{region}/workflows/{name}",
        "workflows",
        outputs={"state": "ACTIVE", "revisionId": "000001-000"},
    ),
    "gcp:monitoring/dashboard:Dashboard": Kind("projects/{project}/dashboards/{generated}", "monitoring", ""),
    "gcp:monitoring/alertPolicy:AlertPolicy": _generated("alertPolicies", "monitoring"),
    "gcp:monitoring/notificationChannel:NotificationChannel": _generated("notificationChannels", "monitoring"),
    "gcp:monitoring/metricDescriptor:MetricDescriptor": Kind(
        "projects/{project}/metricDescriptors/{type}",
        "monitoring",
        "",
        outputs={"name": "projects/{project}/metricDescriptors/{type}"},
        shared=True,  # Google updates a descriptor that exists
    ),
    "gcp:logging/metric:Metric": Kind("{name}", "logging"),
    "gcp:billing/budget:Budget": Kind(
        "billingAccounts/{billingAccount}/budgets/{generated}", "billingbudgets", "", outputs={"name": "{generated}"}
    ),
    IMAGE: Kind("{name}", "", "", shared=True),
}


class _Formatter(string.Formatter):
    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "c":  # a grant's condition is a part of its identity
            return f"/{value['title']}/{value.get('description', '')}/{value['expression']}" if value else ""
        return str(value).rpartition("/")[2] if conversion == "l" else super().convert_field(value, conversion)


def expand(template: str, props: Json, generated: str = "") -> str:
    """Return a format of KINDS with the values of props."""
    return _Formatter().vformat(template, (), {"condition": None, **props, "generated": generated})


@functools.cache
def table() -> Json:
    """Return resources.json.

    It is {resources: {token: {inputs, outputs, requiredInputs}}, types: {token: {properties, ...}}}.
    """
    found: Json = json.loads(Path(__file__).with_name("resources.json").read_text())
    return found


def inputs_of(token: str) -> Json:
    """Return the inputs of a type as {name: shape}; nothing for types of other providers."""
    found: Json = table()["resources"].get(token, {}).get("inputs", {})
    return found


def fill(token: str, inputs: Json, project: str, region: str, default_labels: dict[str, str]) -> Json:
    """Return the inputs with the provider's own settings, and the outputs that it plans, as a preview does."""
    known = inputs_of(token)
    defaults = {"project": project, "region": region}
    if token.startswith("gcp:artifactregistry/"):
        defaults["location"] = region
    props = {**{k: v for k, v in defaults.items() if k in known and v}, **inputs}
    if "labels" in known:
        labels = inputs.get("labels") or {}
        merged = UNKNOWN if labels == UNKNOWN else {**default_labels, **labels}
        props |= {"pulumiLabels": merged, "effectiveLabels": merged}
    for name in KINDS[token].planned:
        used = [field for _, field, _, _ in string.Formatter().parse(KINDS[token].outputs[name]) if field]
        props[name] = UNKNOWN if UNKNOWN in (props.get(u, UNKNOWN) for u in used) else outputs(token, props)[name]
    return props


def outputs(token: str, props: Json, generated: str = "") -> dict[str, str]:
    """Return the computed outputs of a resource that exists."""
    return {k: expand(v, props, generated) for k, v in KINDS[token].outputs.items()}


def output_names(token: str) -> list[str]:
    """Return all outputs of a type that are not inputs as well."""
    if token == IMAGE:
        return ["contextHash", "digest", "ref"]
    return list(table()["resources"][token]["outputs"])


# Only the provider knows these fields: the read of an existing resource gives these values.
VIRTUAL: Json = {"forceDestroy": False, "deletionPolicy": "DELETE", "disableOnDestroy": True, "waitForInstances": False}
