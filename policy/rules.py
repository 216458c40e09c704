"""Check the resources that a stack declares: mandatory rules forbid something, advisory rules inform a person.

All rules are pure functions that need neither Pulumi nor a cloud. They check the declared resources and not the stack
file, so they remain valid when the program changes. A value that is known only after a deployment passes every rule.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.prices import Cost, machine_cost
from infra.review import exposure
from infra.review.resource_types import BUCKET, GROUP, RUN, TEMPLATE, role_of
from infra.review.values import UNKNOWN
from infra.stack.keys import RunLimits
from trainer.contract.options import Hyperparameters

Enforcement = Literal["mandatory", "advisory"]
INSTANCE = "gcp:compute/instance:Instance"
TEMPLATES = (TEMPLATE, "gcp:compute/instanceTemplate:InstanceTemplate")
PRIMITIVE = ("roles/owner", "roles/editor", "roles/viewer")
BUCKET_WRITERS = tuple(
    f"roles/storage.{name}"
    for name in ("admin", "objectAdmin", "objectUser", "objectCreator", "legacyBucketOwner", "legacyBucketWriter")
)
LABELS = ("role", "run", "launch")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
HIGHEST_ADAMW_RATE, LOWEST_SGD_RATE = 0.01, 0.001


@dataclass(frozen=True)
class Resource:
    """A resource as it is declared."""

    urn: str
    type: str  # such as gcp:storage/bucket:Bucket
    name: str  # in the program
    properties: dict[str, Any]  # its inputs, with Pulumi's names; UNKNOWN if only the deployment decides the value


@dataclass(frozen=True)
class Finding:
    rule: str
    level: Enforcement
    message: str  # one line: what was found, and what to do
    urn: str


@dataclass(frozen=True)
class Rule:
    """A rule about each resource alone, which can be checked before the resource is made."""

    name: str
    level: Enforcement
    description: str
    violations: Callable[[Resource], Iterator[str]]


@dataclass(frozen=True)
class StackRule:
    """A rule about several resources together. It yields messages, each with the resource that is at fault."""

    name: str
    level: Enforcement
    description: str
    violations: Callable[[Sequence[Resource]], Iterator[tuple[Resource, str]]]


def check(resources: Sequence[Resource]) -> list[Finding]:
    """Return all findings in a stack, in the order of the rules and of the resources."""
    findings = [
        Finding(rule.name, rule.level, message, resource.urn)
        for rule in RULES
        for resource in resources
        for message in rule.violations(resource)
    ]
    findings += [
        Finding(rule.name, rule.level, message, resource.urn)
        for rule in STACK_RULES
        for resource, message in rule.violations(resources)
    ]
    return findings


# One resource. -------------------------------------------------------------------------------------------------------


def _public_address(resource: Resource) -> Iterator[str]:
    for key in exposure.public_addresses(resource.type, resource.properties):
        if key == "addressType":
            yield "is an address on the internet; machines reach Google's services without one: remove it"
        else:
            yield f"{key} gives machines a public address; remove it"


def _open_firewall(resource: Resource) -> Iterator[str]:
    sources = exposure.open_sources(resource.properties) if resource.type == exposure.FIREWALL else ""
    if sources == "no source":
        yield "names no source, which lets everybody in; name the ranges or accounts that need it"
    elif sources:
        yield f"lets {sources} in; name the ranges that need it"


def _public_access(resource: Resource) -> Iterator[str]:
    all_members = [member for one in exposure.grants(resource.type, resource.properties) for member in one.members]
    for member in dict.fromkeys(all_members):
        if member in exposure.EVERYBODY:
            yield f"is granted to {member}, which is everybody; name who needs it"
    for entry in exposure.open_lists(resource.properties):
        yield f"{entry} lets everybody in; remove it"


def _primitive_role(resource: Resource) -> Iterator[str]:
    for role, _, _ in exposure.grants(resource.type, resource.properties):
        if role in PRIMITIVE:
            yield f"grants {role}, which reaches all of a project; grant the roles that are needed"


def _project_storage_role(resource: Resource) -> Iterator[str]:
    if not resource.type.startswith("gcp:projects/iAM"):
        return
    for role, _, condition in exposure.grants(resource.type, resource.properties):
        if role.startswith("roles/storage.") and "resource.name" not in condition:
            yield f"grants {role} on every bucket of the project; grant it on a bucket, or on names by a condition"


def _whole_bucket_writer(resource: Resource) -> Iterator[str]:
    if not resource.type.startswith("gcp:storage/bucketIAM"):
        return
    for role, _, condition in exposure.grants(resource.type, resource.properties):
        if role in BUCKET_WRITERS and "/objects/" not in condition and condition != UNKNOWN:
            yield f"grants {role} on all objects of a bucket, so a run could change another's; add a condition on names"


def _labels(resource: Resource) -> Iterator[str]:
    props = resource.properties
    if resource.type == "pulumi:providers:gcp":
        labels = _object(props.get("defaultLabels"))
        if props.get("defaultLabels") != UNKNOWN and "gpt2-stack" not in labels:
            yield "has no default label gpt2-stack, so its resources do not show their stack; give it default_labels"
    elif _is_machine(resource) and props.get("labels") != UNKNOWN:
        missing = [label for label in LABELS if label not in _object(props.get("labels"))]
        if missing:
            yield f"has no label {', '.join(missing)}: the bill cannot show its cost by run; add it"


def _termination_time(resource: Resource) -> Iterator[str]:
    scheduling = _scheduling(resource)
    if scheduling is None:
        return
    if not (scheduling.get("terminationTime") or scheduling.get("maxRunDuration")):
        yield "runs until somebody ends it; give scheduling a terminationTime or a maxRunDuration"


def _spot_termination_action(resource: Resource) -> Iterator[str]:
    scheduling = _scheduling(resource)
    if scheduling is None or not (scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible")):
        return
    if scheduling.get("instanceTerminationAction") not in ("DELETE", "STOP", UNKNOWN):
        yield "is Spot and does not say what happens when Google takes it; set instanceTerminationAction"


def _gpu_maintenance(resource: Resource) -> Iterator[str]:
    if not _is_machine(resource):
        return
    model = MACHINE_TYPES.get(str(resource.properties.get("machineType")))
    scheduling = _scheduling(resource)
    if scheduling is None or not (resource.properties.get("guestAccelerators") or (model and model.accelerators)):
        return
    if scheduling.get("onHostMaintenance") not in ("TERMINATE", UNKNOWN):
        yield "has a GPU, and Google cannot move it to another host; set onHostMaintenance: TERMINATE"


def _private_bucket(resource: Resource) -> Iterator[str]:
    if resource.type != BUCKET:
        return
    if resource.properties.get("publicAccessPrevention") not in ("enforced", UNKNOWN):
        yield "could be opened to everybody; set publicAccessPrevention: enforced"
    if resource.properties.get("uniformBucketLevelAccess") not in (True, UNKNOWN):
        yield "has access lists on single objects, which nobody reviews; set uniformBucketLevelAccess: true"


def _image_digest(resource: Resource) -> Iterator[str]:
    if not _is_machine(resource) or resource.properties.get("metadata") == UNKNOWN:
        return
    image = _object(resource.properties.get("metadata")).get("gpt2-image", "")
    if image != UNKNOWN and not DIGEST.fullmatch(str(image)):
        problem = f"runs the image {image}" if image else "names no image in its metadata's gpt2-image"
        yield f"{problem}; pin one by digest, NAME@sha256:..."


def _learning_rate(resource: Resource) -> Iterator[str]:
    if resource.type != RUN:
        return
    hyper = _object(_object(resource.properties.get("trainingInput")).get("hyperparameters"))
    defaults = Hyperparameters()
    optimizer, rate = hyper.get("optimizer", defaults.optimizer), hyper.get("learningRate", defaults.learning_rate)
    if not isinstance(rate, (int, float)):
        return
    if optimizer == "adamw" and rate > HIGHEST_ADAMW_RATE:
        limit = f"{HIGHEST_ADAMW_RATE:g}"
        yield f"learningRate {rate:g} with adamw: above {limit} training usually diverges; 0.0006 is usual"
    if optimizer == "sgd" and rate < LOWEST_SGD_RATE:
        yield f"learningRate {rate:g} with sgd: below {LOWEST_SGD_RATE:g} it hardly learns; 0.01 is the reference job's"


RULES = (
    Rule("no-public-address", "mandatory", "Machines have no public address.", _public_address),
    Rule("no-open-firewall", "mandatory", "No firewall rule lets the internet in.", _open_firewall),
    Rule("no-public-access", "mandatory", "Nothing is granted to everybody.", _public_access),
    Rule("no-primitive-role", "mandatory", "Nobody gets owner, editor or viewer.", _primitive_role),
    Rule("no-project-storage-role", "mandatory", "Storage is granted bucket by bucket.", _project_storage_role),
    Rule("no-whole-bucket-writer", "mandatory", "Who writes into a bucket writes below names.", _whole_bucket_writer),
    Rule("labels", "mandatory", "Labels name the stack, the role, the run and the launch.", _labels),
    Rule("termination-time", "mandatory", "Google ends every machine at a fixed time.", _termination_time),
    Rule("spot-termination-action", "mandatory", "A Spot machine declares how it ends.", _spot_termination_action),
    Rule("gpu-maintenance", "mandatory", "A machine with GPUs ends for maintenance.", _gpu_maintenance),
    Rule("private-bucket", "mandatory", "Buckets are private.", _private_bucket),
    Rule("image-digest", "mandatory", "Machines run an image that is pinned by digest.", _image_digest),
    Rule("learning-rate", "advisory", "The learning rate suits the optimizer.", _learning_rate),
)


# A stack. ------------------------------------------------------------------------------------------------------------


def _force_destroy(resources: Sequence[Resource]) -> Iterator[tuple[Resource, str]]:
    if any(resource.type == RUN and resource.properties.get("keepArtifacts") is False for resource in resources):
        return
    message = "`pulumi destroy` would delete it with all its content; set keepArtifacts: false if that is intended"
    for resource in resources:
        if resource.type == BUCKET and resource.properties.get("forceDestroy") is True:
            yield resource, message


def _cost_limit(resources: Sequence[Resource]) -> Iterator[tuple[Resource, str]]:
    """Compare the price of all declared machines over maxHours with the limit.

    This is the price if only their termination time ends the machines.
    """
    for run in resources:
        limits = _object(run.properties.get("limits")) if run.type == RUN else {}
        limit = limits.get("maxCostUsd")
        if not isinstance(limit, (int, float)):
            continue
        hours = float(limits.get("maxHours", RunLimits().max_hours))
        hourly = sum(_machine_costs(resources), Cost(0))
        total = hourly.times(hours)
        costs = f"machines cost {hourly.usd:.2f} USD an hour and {total.usd:.2f} in limits.maxHours, {hours:g}"
        if total.usd > limit:
            fix = f"use maxHours {limit / hourly.usd:.1f}, or fewer or smaller machines, or raise the limit"
            yield run, f"{costs}: more than limits.maxCostUsd, {limit:g}; {fix}"
        elif not total.exact:
            unknown = ", ".join(total.unknown)
            yield run, f"{costs} at least, and nobody priced {unknown}; limits.maxCostUsd cannot be kept"


def _machine_costs(resources: Sequence[Resource]) -> Iterator[Cost]:
    """Yield the price per hour of the machines of each group and instance."""
    templates = {role_of(resource.name): resource for resource in resources if resource.type in TEMPLATES}
    for resource in resources:
        number: Any = 1
        template: Resource | None = resource
        if resource.type == GROUP:
            number, template = resource.properties.get("targetSize"), templates.get(role_of(resource.name))
        elif resource.type != INSTANCE:
            continue
        type_known = template is not None and template.properties.get("machineType") != UNKNOWN
        if template is not None and type_known and isinstance(number, (int, float)):
            yield _machine_cost(template.properties).times(number)


def _machine_cost(props: dict[str, Any]) -> Cost:
    region = props.get("region") or str(props.get("zone", "")).rpartition("-")[0]
    gpus = next(exposure.objects(props.get("guestAccelerators")), {})
    sizes = [disk.get("diskSizeGb", 0) for disk in exposure.objects(props.get("disks"))]
    return machine_cost(
        str(region),
        str(props.get("machineType")),
        _object(props.get("scheduling")).get("provisioningModel") == "SPOT",
        str(gpus.get("type", "")).rpartition("/")[2],
        int(gpus.get("count", 0)),
        disk_gb=sum(size for size in sizes if isinstance(size, (int, float))),
    )


STACK_RULES = (
    StackRule("no-force-destroy", "mandatory", "Buckets outlive the stack unless it says otherwise.", _force_destroy),
    StackRule("cost-limit", "advisory", "All machines together stay below limits.maxCostUsd.", _cost_limit),
)


# Reading properties. -------------------------------------------------------------------------------------------------


def _is_machine(resource: Resource) -> bool:
    return resource.type in TEMPLATES or resource.type == INSTANCE


def _scheduling(resource: Resource) -> dict[str, Any] | None:
    """Return a machine's scheduling options. Return None for other resources, and if they are not known yet."""
    scheduling = resource.properties.get("scheduling")
    return _object(scheduling) if _is_machine(resource) and scheduling != UNKNOWN else None


def _object(value: Any) -> dict[str, Any]:
    """Return a value as an object, which is empty if it is none. A provider's own settings are JSON text."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return value if isinstance(value, dict) else {}
