"""What no stack may declare (mandatory), and what a person should know (advisory). Pure: no Pulumi, no cloud.

The rules look at what is declared, not at what the stack file says: they still hold when the program is changed. Where
a value is known only after a deployment they say nothing.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.prices import Cost, machine_cost
from infra.review import exposure
from infra.review.values import UNKNOWN
from infra.stack.keys import Limits
from trainer.contract.spec import Hyperparameters

Level = Literal["mandatory", "advisory"]
RUN = "gpt2-training:run:TrainingRun"  # its inputs are the stack file's words
BUCKET = "gcp:storage/bucket:Bucket"
INSTANCE = "gcp:compute/instance:Instance"
GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
REQUEST = "gcp:compute/regionResizeRequest:RegionResizeRequest"
TEMPLATES = (
    "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate",
    "gcp:compute/instanceTemplate:InstanceTemplate",
)
PRIMITIVE = ("roles/owner", "roles/editor", "roles/viewer")
LABELS = ("role", "run", "launch")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
MOST_ADAMW, LEAST_SGD = 0.01, 0.001


@dataclass(frozen=True)
class Resource:
    """As it is declared. properties: its inputs, with Pulumi's names; UNKNOWN for what only a deployment tells."""

    urn: str
    type: str  # gcp:storage/bucket:Bucket
    name: str  # in the program
    properties: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    rule: str
    level: Level
    message: str  # one line: what was found, and what to do
    urn: str


@dataclass(frozen=True)
class Rule:
    """A rule about one resource, whichever: it can be judged before the resource is made."""

    name: str
    level: Level
    description: str
    look: Callable[[Resource], Iterator[str]]


@dataclass(frozen=True)
class StackRule:
    """A rule about several resources together; yields messages with the resource to blame."""

    name: str
    level: Level
    description: str
    look: Callable[[Sequence[Resource]], Iterator[tuple[Resource, str]]]


def check(resources: Sequence[Resource]) -> list[Finding]:
    """All that the rules find in a stack, in the order of the rules and of the resources."""
    found = [
        Finding(rule.name, rule.level, message, resource.urn)
        for rule in RULES
        for resource in resources
        for message in rule.look(resource)
    ]
    return found + [
        Finding(rule.name, rule.level, message, resource.urn)
        for rule in STACK_RULES
        for resource, message in rule.look(resources)
    ]


# One resource. -------------------------------------------------------------------------------------------------------


def _public_address(resource: Resource) -> Iterator[str]:
    for key in exposure.public_addresses(resource.type, resource.properties):
        if key == "addressType":
            yield "is an address on the internet; machines reach Google's services without one: remove it"
        else:
            yield f"{key} gives machines a public address; remove it"


def _open_firewall(resource: Resource) -> Iterator[str]:
    found = exposure.lets_everybody_in(resource.properties) if resource.type == exposure.FIREWALL else ""
    if found == "no source":
        yield "names no source, which lets everybody in; name the ranges or accounts that need it"
    elif found:
        yield f"lets {found} in; name the ranges that need it"


def _public_access(resource: Resource) -> Iterator[str]:
    members = [member for _, given in exposure.grants(resource.type, resource.properties) for member in given]
    for member in dict.fromkeys(members):
        if member in exposure.EVERYBODY:
            yield f"is granted to {member}, which is everybody; name who needs it"
    for entry in exposure.open_lists(resource.properties):
        yield f"{entry} lets everybody in; remove it"


def _primitive_role(resource: Resource) -> Iterator[str]:
    for role, _ in exposure.grants(resource.type, resource.properties):
        if role in PRIMITIVE:
            yield f"grants {role}, which reaches all of a project; grant the roles that are needed"


def _project_storage_role(resource: Resource) -> Iterator[str]:
    if not resource.type.startswith("gcp:projects/iAM"):
        return
    limited = "resource.name" in str(_object(resource.properties.get("condition")).get("expression"))
    for role, _ in exposure.grants(resource.type, resource.properties):
        if role.startswith("roles/storage.") and not limited:
            yield f"grants {role} on every bucket of the project; grant it on a bucket, or on names by a condition"


def _labels(resource: Resource) -> Iterator[str]:
    props = resource.properties
    if resource.type == "pulumi:providers:gcp":
        given = _object(props.get("defaultLabels"))
        if props.get("defaultLabels") != UNKNOWN and "gpt2-stack" not in given:
            yield "has no default label gpt2-stack: nobody can tell whose its resources are; give it default_labels"
    elif _is_machine(resource) and props.get("labels") != UNKNOWN:
        missing = [label for label in LABELS if label not in _object(props.get("labels"))]
        if missing:
            yield f"has no label {', '.join(missing)}: its cost cannot be told by run; add it"


def _termination_time(resource: Resource) -> Iterator[str]:
    if (scheduling := _scheduling(resource)) is not None and not (
        scheduling.get("terminationTime") or scheduling.get("maxRunDuration")
    ):
        yield "runs until somebody ends it; give scheduling a terminationTime or a maxRunDuration"


def _spot_termination_action(resource: Resource) -> Iterator[str]:
    scheduling = _scheduling(resource)
    if scheduling is None or not (scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible")):
        return
    if scheduling.get("instanceTerminationAction") not in ("DELETE", "STOP", UNKNOWN):
        yield "is Spot and says not what becomes of it when Google takes it; set instanceTerminationAction"


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
        found = f"runs the image {image}" if image else "names no image in its metadata's gpt2-image"
        yield f"{found}; pin one by digest, NAME@sha256:..."


def _learning_rate(resource: Resource) -> Iterator[str]:
    if resource.type != RUN:
        return
    given = _object(_object(resource.properties.get("trainingInput")).get("hyperparameters"))
    usual = Hyperparameters()
    optimizer, rate = given.get("optimizer", usual.optimizer), given.get("learningRate", usual.learning_rate)
    if not isinstance(rate, (int, float)):
        return
    if optimizer == "adamw" and rate > MOST_ADAMW:
        yield f"learningRate {rate:g} with adamw: above {MOST_ADAMW:g} training diverges as a rule; 0.0006 is usual"
    if optimizer == "sgd" and rate < LEAST_SGD:
        yield f"learningRate {rate:g} with sgd: below {LEAST_SGD:g} it hardly learns; 0.01 is the reference job's"


RULES = (
    Rule("no-public-address", "mandatory", "Machines have no public address.", _public_address),
    Rule("no-open-firewall", "mandatory", "No firewall rule lets the internet in.", _open_firewall),
    Rule("no-public-access", "mandatory", "Nothing is granted to everybody.", _public_access),
    Rule("no-primitive-role", "mandatory", "Nobody gets owner, editor or viewer.", _primitive_role),
    Rule("no-project-storage-role", "mandatory", "Storage is granted bucket by bucket.", _project_storage_role),
    Rule("labels", "mandatory", "Labels tell the stack, the role, the run and the launch.", _labels),
    Rule("termination-time", "mandatory", "Google ends every machine at a date.", _termination_time),
    Rule("spot-termination-action", "mandatory", "A Spot machine says what its end is.", _spot_termination_action),
    Rule("gpu-maintenance", "mandatory", "A machine with GPUs ends for maintenance.", _gpu_maintenance),
    Rule("private-bucket", "mandatory", "Buckets are private.", _private_bucket),
    Rule("image-digest", "mandatory", "Machines run an image that is pinned by digest.", _image_digest),
    Rule("learning-rate", "advisory", "The learning rate suits the optimizer.", _learning_rate),
)


# A stack. ------------------------------------------------------------------------------------------------------------


def _force_destroy(resources: Sequence[Resource]) -> Iterator[tuple[Resource, str]]:
    if any(one.type == RUN and one.properties.get("keepArtifacts") is False for one in resources):
        return
    for one in resources:
        if one.type == BUCKET and one.properties.get("forceDestroy") is True:
            yield (
                one,
                "`pulumi destroy` would delete it with all that is in it; say keepArtifacts: false if that is meant",
            )


def _cost_limit(resources: Sequence[Resource]) -> Iterator[tuple[Resource, str]]:
    """The price of all declared machines over maxHours: what is paid if their termination time alone ends them."""
    for run in resources:
        limits = _object(run.properties.get("limits")) if run.type == RUN else {}
        most = limits.get("maxCostUsd")
        if not isinstance(most, (int, float)):
            continue
        hours = float(limits.get("maxHours", Limits().max_hours))
        hourly = sum(_machine_costs(resources), Cost(0))
        total = hourly.times(hours)
        costs = f"machines cost {hourly.usd:.2f} USD an hour and {total.usd:.2f} in limits.maxHours, {hours:g}"
        if total.usd > most:
            fix = f"use maxHours {most / hourly.usd:.1f}, or fewer or smaller machines, or raise the limit"
            yield run, f"{costs}: more than limits.maxCostUsd, {most:g}; {fix}"
        elif not total.exact:
            yield (
                run,
                f"{costs} at least, and nobody priced {', '.join(total.unknown)}; limits.maxCostUsd cannot be kept",
            )


def _machine_costs(resources: Sequence[Resource]) -> Iterator[Cost]:
    """An hour of each group's, request's and instance's machines. What is not priced counts for nothing."""
    templates = {one.name.removesuffix("-template"): one for one in resources if one.type in TEMPLATES}
    for one in resources:
        number: Any = 1
        template: Resource | None = one
        if one.type == GROUP:
            number, template = one.properties.get("targetSize"), templates.get(one.name.removesuffix("-group"))
        elif one.type == REQUEST:
            number, template = one.properties.get("resizeBy"), templates.get(one.name.removesuffix("-request"))
        elif one.type != INSTANCE:
            continue
        known = template is not None and template.properties.get("machineType") != UNKNOWN
        if template is not None and known and isinstance(number, (int, float)):
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


# What properties look like. ------------------------------------------------------------------------------------------


def _is_machine(resource: Resource) -> bool:
    return resource.type in TEMPLATES or resource.type == INSTANCE


def _scheduling(resource: Resource) -> dict[str, Any] | None:
    """How Google may treat a machine; None if it is none, or if that is not known yet."""
    found = resource.properties.get("scheduling")
    return _object(found) if _is_machine(resource) and found != UNKNOWN else None


def _object(value: Any) -> dict[str, Any]:
    """A provider's own settings are JSON."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return value if isinstance(value, dict) else {}
