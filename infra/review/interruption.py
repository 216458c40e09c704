"""The run that a change meets: its machines, and where it stands now, as its bucket tells."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.lifecycle import newest_checkpoint
from infra.review.steps import Preview, State, Step
from infra.review.values import shown
from trainer.contract.errors import first_line
from trainer.contract.wording import ROLE_NAMES
from trainer.runs.records import FINAL_STATES
from trainer.runs.status import read_status
from trainer.storage.base import NoBucket, StorageError
from trainer.storage.factory import open_storage

GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
REQUEST = "gcp:compute/regionResizeRequest:RegionResizeRequest"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
PROCESS = "pulumi-python:dynamic/local:Machine"
LAUNCH = "pulumi-python:dynamic/google:Launch"


@dataclass(frozen=True)
class Machines:
    """The machines of a role, before and after; kind: what one is, in words."""

    role: str  # in words
    count: tuple[int, int]
    kind: tuple[str, str]
    ended: bool  # those of before go, even if others take their place

    @property
    def changed(self) -> bool:
        return self.ended or self.count[0] != self.count[1] or self.kind[0] != self.kind[1]


@dataclass(frozen=True)
class Standing:
    """Where a run stands. checkpoint: its newest whole one, (step, age in seconds)."""

    state: str
    step: int
    checkpoint: tuple[int, float] | None

    @property
    def going(self) -> bool:
        return self.state not in FINAL_STATES


# Of a bucket's address and a run's id; a text: why it is not known.
Look = Callable[[str, str], Standing | str | None]


def stand(bucket: str, run: str) -> Standing | str | None:
    """Asks the bucket; None if nothing was ever declared there."""
    try:
        storage = open_storage(bucket)
        status = read_status(storage, run)
        if status is None:
            return None
        newest = newest_checkpoint(storage, run)
    except NoBucket:
        return None
    except (StorageError, ValueError) as error:
        return first_line(error)
    checkpoint = (newest.step, max(0.0, time.time() - newest.time)) if newest else None
    return Standing(status.state, status.step, checkpoint)


def machines(preview: Preview) -> list[Machines]:
    """Master first; nothing where there are none."""
    found = []
    for role, words in ROLE_NAMES.items():
        groups = [step for step in preview.of_type(GROUP) if step.name == f"{role}-group"]
        requests = [step for step in preview.of_type(REQUEST) if step.name == f"{role}-request"]
        processes = [step for step in preview.of_type(PROCESS) if _role(step) == role]
        count = tuple(
            sum(_number(step, side, "targetSize") for step in groups)
            + sum(_number(step, side, "resizeBy") for step in requests)
            + sum(1 for step in processes if _side(step, side) is not None)
            for side in (0, 1)
        )
        templates = [step for step in preview.of_type(TEMPLATE) if step.name == f"{role}-template"]
        kinds = [_kind(_side(templates[0], side)) if templates else "process here" for side in (0, 1)]
        ended = count[0] > 0 and (not count[1] or any(step.op == "replace" for step in [*groups, *processes]))
        if groups or processes:
            found.append(Machines(words, (count[0], count[1]), (kinds[0], kinds[1]), ended))
    return found


def _side(step: Step, side: int) -> State | None:
    return (step.before, step.after)[side]


def _role(step: Step) -> Any:
    state = step.before or step.after
    return state.inputs.get("role") if state else None


def _number(step: Step, side: int, key: str) -> int:
    found = step.changed(key)[side]
    return int(found) if isinstance(found, int | float) else 0


def _kind(template: State | None) -> str:
    """n1-highmem-16 + 1 x nvidia-tesla-t4, Spot."""
    if template is None:
        return ""
    text = shown(template.inputs.get("machineType"))
    for gpu in template.inputs.get("guestAccelerators") or []:
        text += f" + {shown(gpu.get('count'))} x {shown(gpu.get('type'))}"
    model = (template.inputs.get("scheduling") or {}).get("provisioningModel", "STANDARD")
    return text + {"SPOT": ", Spot", "FLEX_START": ", flex-start"}.get(model, "")


@dataclass(frozen=True)
class Declared:
    """A run as a stack declares it."""

    id: str
    launch: int
    bucket: str


def declared(preview: Preview) -> tuple[Declared | None, Declared | None]:
    """The run before and after."""
    return _declared(preview, 0), _declared(preview, 1)


def _declared(preview: Preview, side: int) -> Declared | None:
    for step in preview.of_type(LAUNCH, PROCESS):
        if (state := _side(step, side)) is not None and {"run", "bucket"} <= state.inputs.keys():
            launch = int(state.inputs.get("launch") or 1)
            return Declared(str(state.inputs["run"]), launch, str(state.inputs["bucket"]))
    return None


@dataclass(frozen=True)
class Interruption:
    """What a change does to the run that may be going; going None: it is not known."""

    short: str  # for the first line
    sentences: tuple[str, ...]
    going: bool | None


def interruption(preview: Preview, look: Look) -> Interruption | None:
    """None if it goes on. Workers alone may go: the others do without them."""
    old, new = declared(preview)
    roles = machines(preview)
    if old is None or not any(role.ended and (role.count[1] or role.role != "worker") for role in roles):
        return None
    if not any(role.count[1] for role in roles):
        new = None
    found = look(old.bucket, old.id)
    ending = _ending(old, new)
    if isinstance(found, Standing) and not found.going:
        said = f"run {old.id} has {found.state}"
        return Interruption(f"{said}, so none is interrupted; {ending}", (f"Nothing is interrupted: {said}.",), False)
    if found is None:
        said = f"run {old.id} has not begun"
        return Interruption(f"{said}; {ending}", (f"Nothing is interrupted: {said}.",), False)
    if isinstance(found, str):
        unknown = f"whether run {old.id} is going is not known"
        return Interruption(
            f"{unknown}: {ending}",
            (f"{_upper(unknown)}: {found}.", f"If it is, {_lose(old, new, None)}."),
            None,
        )
    where = f"{found.state} at step {found.step:,}"
    return Interruption(
        f"run {old.id} ({where}) {'is interrupted' if new and new.id == old.id else 'ends'}: {ending}",
        (f"Run {old.id} is {where}.", f"{_upper(_lose(old, new, found))}."),
        True,
    )


def _ending(old: Declared, new: Declared | None) -> str:
    if new is None:
        return "all machines go"
    return f"run {new.id} takes its place" if new.id != old.id else "its machines are replaced"


def _lose(old: Declared, new: Declared | None, found: Standing | None) -> str:
    """What becomes of the work that was done."""
    checkpoint = ", ".join(_checkpoint(found)) if found else "its newest checkpoint"
    if new is None:
        return f"it ends; what it leaves in its bucket is {checkpoint}"
    if new.id != old.id:
        return f"it ends for good, its files stay, and run {new.id} starts at step 0; {checkpoint} is the last of it"
    again = ""
    if found and found.step:
        again = f", so that {found.step - (found.checkpoint[0] if found.checkpoint else 0):,} steps are done again"
    return f"it stops, and goes on with the new machines from {checkpoint}{again}"


def _checkpoint(found: Standing) -> Iterator[str]:
    if found.checkpoint is None:
        yield "step 0, as there is no checkpoint yet"
        return
    step, age = found.checkpoint
    yield f"its newest checkpoint (step {step:,}, {_age(age)} old)"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
