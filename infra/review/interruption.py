"""Find out which run a change affects: its machines, and its present state according to its bucket."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.lifecycle import newest_checkpoint
from infra.review.resource_types import GROUP, TEMPLATE, role_of
from infra.review.steps import Preview, PreviewStep, ResourceState
from infra.review.values import shown
from trainer.contract.wording import ROLE_NAMES
from trainer.runs.records import FINAL_STATES
from trainer.runs.status import read_status
from trainer.storage.base import NoBucket, StorageError
from trainer.storage.factory import open_storage

PROCESS = "pulumi-python:dynamic/local:Machine"
LAUNCH = "pulumi-python:dynamic/google:Launch"


@dataclass(frozen=True)
class DeclaredMachines:
    """The machines of a role, before and after the change."""

    role: str  # as a word
    count: tuple[int, int]
    kind: tuple[str, str]  # machine type, GPUs and Spot, as text
    ended: bool  # the present machines end, even if others replace them

    @property
    def changed(self) -> bool:
        return self.ended or self.count[0] != self.count[1] or self.kind[0] != self.kind[1]


@dataclass(frozen=True)
class RunSnapshot:
    """The present state of a run."""

    state: str
    step: int
    checkpoint: tuple[int, float] | None  # the newest complete one: (step, age in seconds)

    @property
    def running(self) -> bool:
        return self.state not in FINAL_STATES


# A function of a bucket's address and a run's id. It returns a text if the run's state is not known, which says why.
RunLookup = Callable[[str, str], RunSnapshot | str | None]


def look_up_run(bucket: str, run: str) -> RunSnapshot | str | None:
    """Return the state of a run by its bucket, None if it was never declared there, or a text if the bucket fails."""
    try:
        storage = open_storage(bucket)
        status = read_status(storage, run)
        if status is None:
            return None
        newest = newest_checkpoint(storage, run)
    except NoBucket:
        return None
    except (StorageError, ValueError) as error:
        return str(error).partition("\n")[0]
    checkpoint = (newest.step, max(0.0, time.time() - newest.time)) if newest else None
    return RunSnapshot(status.state, status.step, checkpoint)


def machines(preview: Preview) -> list[DeclaredMachines]:
    """Return the machines of each role that has any, the master first."""
    declared_machines = []
    for role, role_name in ROLE_NAMES.items():
        groups = [step for step in preview.of_type(GROUP) if role_of(step.name) == role]
        processes = [step for step in preview.of_type(PROCESS) if _role(step) == role]
        count = tuple(
            sum(_number(step, side, "targetSize") for step in groups)
            + sum(1 for step in processes if _side(step, side) is not None)
            for side in (0, 1)
        )
        templates = [step for step in preview.of_type(TEMPLATE) if step.name == f"{role}-template"]
        kinds = [_kind(_side(templates[0], side)) if templates else "process here" for side in (0, 1)]
        ended = count[0] > 0 and (not count[1] or any(step.op == "replace" for step in [*groups, *processes]))
        if groups or processes:
            declared_machines.append(DeclaredMachines(role_name, (count[0], count[1]), (kinds[0], kinds[1]), ended))
    return declared_machines


def _side(step: PreviewStep, side: int) -> ResourceState | None:
    return (step.before, step.after)[side]


def _role(step: PreviewStep) -> Any:
    state = step.before or step.after
    return state.inputs.get("role") if state else None


def _number(step: PreviewStep, side: int, key: str) -> int:
    value = step.changed(key)[side]
    return int(value) if isinstance(value, int | float) else 0


def _kind(template: ResourceState | None) -> str:
    """Return what a template's machines are: `n1-highmem-16 + 1 x nvidia-tesla-t4, Spot`."""
    if template is None:
        return ""
    text = shown(template.inputs.get("machineType"))
    for gpu in template.inputs.get("guestAccelerators") or []:
        text += f" + {shown(gpu.get('count'))} x {shown(gpu.get('type'))}"
    model = (template.inputs.get("scheduling") or {}).get("provisioningModel", "STANDARD")
    return text + {"SPOT": ", Spot", "FLEX_START": ", flex-start"}.get(model, "")


@dataclass(frozen=True)
class DeclaredRun:
    """A run that a stack declares."""

    id: str
    launch: int
    bucket: str


def declared(preview: Preview) -> tuple[DeclaredRun | None, DeclaredRun | None]:
    """Return the run before and after the change."""
    return _declared(preview, 0), _declared(preview, 1)


def _declared(preview: Preview, side: int) -> DeclaredRun | None:
    for step in preview.of_type(LAUNCH, PROCESS):
        if (state := _side(step, side)) is not None and {"run", "bucket"} <= state.inputs.keys():
            launch = int(state.inputs.get("launch") or 1)
            return DeclaredRun(str(state.inputs["run"]), launch, str(state.inputs["bucket"]))
    return None


@dataclass(frozen=True)
class Interruption:
    """The effect of a change on the run before it."""

    short: str  # for the first line
    sentences: tuple[str, ...]
    running: bool | None  # None if it is not known


def interruption(preview: Preview, look: RunLookup) -> Interruption | None:
    """Return what happens to the run, or None if it continues. A run also continues if only workers end."""
    old, new = declared(preview)
    roles = machines(preview)
    if old is None or not any(role.ended and (role.count[1] or role.role != "worker") for role in roles):
        return None
    if not any(role.count[1] for role in roles):
        new = None
    state = look(old.bucket, old.id)
    ending = _ending(old, new)
    # The run has ended.
    if isinstance(state, RunSnapshot) and not state.running:
        reason = f"run {old.id} has {state.state}"
        return Interruption(
            f"{reason}, so none is interrupted; {ending}", (f"Nothing is interrupted: {reason}.",), False
        )
    # The run has not begun.
    if state is None:
        reason = f"run {old.id} has not begun"
        return Interruption(f"{reason}; {ending}", (f"Nothing is interrupted: {reason}.",), False)
    # The state of the run is not known.
    if isinstance(state, str):
        unknown = f"whether run {old.id} is running is not known"
        return Interruption(
            f"{unknown}: {ending}",
            (f"{_capitalized(unknown)}: {state}.", f"If it is, {_lost_work(old, new, None)}."),
            None,
        )
    # The run is running.
    where = f"{state.state} at step {state.step:,}"
    return Interruption(
        f"run {old.id} ({where}) {'is interrupted' if new and new.id == old.id else 'ends'}: {ending}",
        (f"Run {old.id} is {where}.", f"{_capitalized(_lost_work(old, new, state))}."),
        True,
    )


def _ending(old: DeclaredRun, new: DeclaredRun | None) -> str:
    if new is None:
        return "all machines go"
    return f"run {new.id} takes its place" if new.id != old.id else "its machines are replaced"


def _lost_work(old: DeclaredRun, new: DeclaredRun | None, snapshot: RunSnapshot | None) -> str:
    """Return what happens to the run and its finished steps, as a sentence without its period."""
    checkpoint = _checkpoint(snapshot) if snapshot else "its newest checkpoint"
    if new is None:
        return f"it ends; what it leaves in its bucket is {checkpoint}"
    if new.id != old.id:
        return f"it ends for good, its files stay, and run {new.id} starts at step 0; {checkpoint} is the last of it"
    repeated = ""
    if snapshot and snapshot.step:
        steps = snapshot.step - (snapshot.checkpoint[0] if snapshot.checkpoint else 0)
        repeated = f", so that {steps:,} steps are done again"
    return f"it stops, and continues with the new machines from {checkpoint}{repeated}"


def _checkpoint(snapshot: RunSnapshot) -> str:
    if snapshot.checkpoint is None:
        return "step 0, as there is no checkpoint yet"
    step, age = snapshot.checkpoint
    return f"its newest checkpoint (step {step:,}, {_age(age)} old)"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
