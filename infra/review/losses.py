"""Find the data that a change would delete or overwrite."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.review.steps import Preview, State, Step
from infra.review.values import shown

BUCKET = "gcp:storage/bucket:Bucket"
OBJECT = "gcp:storage/bucketObject:BucketObject"
IMAGE = "docker-build:index:Image"
# What holds what nobody can make again, and the input that names it. (platform local deletes no file.)
DATA = {
    BUCKET: ("bucket", "name"),
    OBJECT: ("object", "name"),
    "gcp:artifactregistry/repository:Repository": ("image repository", "repositoryId"),
    IMAGE: ("image", "tags"),
    "gcp:compute/disk:Disk": ("disk", "name"),
    "gcp:compute/regionDisk:RegionDisk": ("disk", "name"),
}


@dataclass(frozen=True)
class Data:
    lost: tuple[str, ...]
    blocked: tuple[str, ...]  # Google or Pulumi will refuse it
    left: tuple[str, ...]  # stays, and the stack knows nothing of it any more
    loosened: tuple[str, ...]  # a protection goes


def data_of(preview: Preview) -> Data:
    lost, blocked, left, loosened = [], [], [], []
    emptied = set()  # buckets that go with everything in them
    for step in sorted(preview.steps, key=lambda step: step.type != BUCKET):
        if step.type not in DATA or step.before is None:
            continue
        name, inputs = _named(step, step.before), step.before.inputs
        if not step.goes or _overwritten(step):
            loosened += [f"{name}: {what}" for what in _loosened(step)]
        elif step.before.protected or inputs.get("deletionPolicy") == "PREVENT":
            blocked.append(f"{name} is protected from being deleted")
        elif step.before.retained or inputs.get("deletionPolicy") == "ABANDON":
            if step.type not in (OBJECT, IMAGE):  # a new run leaves those of the old one on purpose
                left.append(name)
        elif step.type != BUCKET:
            if inputs.get("bucket") not in emptied:
                lost.append(name)
        elif inputs.get("forceDestroy"):
            emptied.add(inputs.get("name"))
            lost.append(f"{name} with everything in it{_soft(inputs)}")
        else:
            blocked.append(f"{name} cannot be deleted unless it is empty")
    return Data(tuple(lost), tuple(blocked), tuple(left), tuple(loosened))


def _named(step: Step, state: State) -> str:
    kind, key = DATA[step.type]
    name = state.inputs.get(key) or step.name
    text = shown(name[0] if isinstance(name, list) and name else name)
    return f"{kind} {state.inputs.get('bucket')}/{text}" if step.type == OBJECT else f"{kind} {text}"


def _soft(inputs: Mapping[str, Any]) -> str:
    seconds = (inputs.get("softDeletePolicy") or {}).get("retentionDurationSeconds", 0)
    return f" (Google can restore it for {seconds / 86400:g} days)" if seconds else ""


def _overwritten(step: Step) -> bool:
    """An object of the same name takes its place: its content changes, and the bucket keeps versions."""
    names = (step.changed("bucket"), step.changed("name"))
    return step.type == OBJECT and step.op == "replace" and all(old == new for old, new in names)


def _loosened(step: Step) -> Iterator[str]:
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
