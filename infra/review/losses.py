"""Find the data that a change would delete or overwrite."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.review.resource_types import BUCKET
from infra.review.steps import Preview, PreviewStep, ResourceState
from infra.review.values import shown

OBJECT = "gcp:storage/bucketObject:BucketObject"
IMAGE = "docker-build:index:Image"
# Resources that hold data which cannot be made again: what they are, and the input that names them. A stack on this
# machine has none, because it deletes no file.
DATA_TYPES = {
    BUCKET: ("bucket", "name"),
    OBJECT: ("object", "name"),
    "gcp:artifactregistry/repository:Repository": ("image repository", "repositoryId"),
    IMAGE: ("image", "tags"),
    "gcp:compute/disk:Disk": ("disk", "name"),
    "gcp:compute/regionDisk:RegionDisk": ("disk", "name"),
}


@dataclass(frozen=True)
class DataChanges:
    """The resources with data that a change deletes, leaves behind or protects less, as text."""

    lost: tuple[str, ...]
    blocked: tuple[str, ...]  # Google or Pulumi will refuse to delete it
    left: tuple[str, ...]  # it stays, but no stack manages it any more
    loosened: tuple[str, ...]  # it is protected less


def data_changes(preview: Preview) -> DataChanges:
    """Return what a preview does to resources with data."""
    lost, blocked, left, loosened = [], [], [], []
    emptied = set()  # buckets that are deleted with everything in them
    for step in sorted(preview.steps, key=lambda step: step.type != BUCKET):
        if step.type not in DATA_TYPES or step.before is None:
            continue
        name, inputs = _named(step, step.before), step.before.inputs
        # The resource stays.
        if not step.removed or _overwritten(step):
            loosened += [f"{name}: {change}" for change in _loosened(step)]
        # The resource is removed from the stack.
        elif step.before.protected or inputs.get("deletionPolicy") == "PREVENT":
            blocked.append(f"{name} is protected from being deleted")
        elif step.before.retained or inputs.get("deletionPolicy") == "ABANDON":
            if step.type not in (OBJECT, IMAGE):  # a new run leaves the old run's objects and images on purpose
                left.append(name)
        elif step.type != BUCKET:
            if inputs.get("bucket") not in emptied:
                lost.append(name)
        elif inputs.get("forceDestroy"):
            emptied.add(inputs.get("name"))
            lost.append(f"{name} with everything in it{_restorable(inputs)}")
        else:
            blocked.append(f"{name} cannot be deleted unless it is empty")
    return DataChanges(tuple(lost), tuple(blocked), tuple(left), tuple(loosened))


def _named(step: PreviewStep, state: ResourceState) -> str:
    kind, key = DATA_TYPES[step.type]
    name = state.inputs.get(key) or step.name
    text = shown(name[0] if isinstance(name, list) and name else name)
    return f"{kind} {state.inputs.get('bucket')}/{text}" if step.type == OBJECT else f"{kind} {text}"


def _restorable(inputs: Mapping[str, Any]) -> str:
    seconds = (inputs.get("softDeletePolicy") or {}).get("retentionDurationSeconds", 0)
    return f" (Google can restore it for {seconds / 86400:g} days)" if seconds else ""


def _overwritten(step: PreviewStep) -> bool:
    """Return whether an object is replaced by one of the same name. The bucket then keeps the old version."""
    names = (step.changed("bucket"), step.changed("name"))
    return step.type == OBJECT and step.op == "replace" and all(old == new for old, new in names)


def _loosened(step: PreviewStep) -> Iterator[str]:
    """Yield a text for each protection that the change removes."""
    if step.before is None or step.after is None:
        return
    if not step.before.inputs.get("forceDestroy") and step.after.inputs.get("forceDestroy"):
        yield "pulumi destroy would delete it with everything in it"
    elif step.before.retained and not step.after.retained:
        yield "it would no longer outlive the stack"
    if step.before.protected and not step.after.protected:
        yield "it would no longer be protected from being deleted"
    old, new = step.changed("versioning")
    if (old or {}).get("enabled") and not (new or {}).get("enabled"):
        yield "old versions would no longer be kept"
    old, new = ((value or {}).get("retentionDurationSeconds", 0) for value in step.changed("softDeletePolicy"))
    if new < old:
        yield f"what is deleted could be restored for {new / 86400:g} days, not {old / 86400:g}"
