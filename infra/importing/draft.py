"""Collect what becomes of another service's training job: keys of a stack file, and a note for each key of the job.

The readers of the two formats, ai_platform.py and vertex.py, fill a Draft. No key of a file is ignored without a note.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES, TOO_OLD
from trainer.contract.options import Hyperparameters, Model
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role

NoteState = Literal["mapped", "replaced", "left out", "to fill in"]
# For each of AI Platform's own names: the nearest N1 machine, and the GPUs that it had.
LEGACY: dict[str, tuple[str, str, int]] = {
    "standard": ("n1-standard-4", "", 0),
    "large_model": ("n1-highmem-8", "", 0),
    "complex_model_s": ("n1-highcpu-8", "", 0),
    "complex_model_m": ("n1-highcpu-16", "", 0),
    "complex_model_l": ("n1-highcpu-32", "", 0),
    "standard_gpu": ("n1-standard-8", "NVIDIA_TESLA_K80", 1),
    "complex_model_m_gpu": ("n1-standard-16", "NVIDIA_TESLA_K80", 4),
    "complex_model_l_gpu": ("n1-standard-32", "NVIDIA_TESLA_K80", 8),
    "standard_p100": ("n1-standard-8", "NVIDIA_TESLA_P100", 1),
    "complex_model_m_p100": ("n1-standard-16", "NVIDIA_TESLA_P100", 4),
    "standard_v100": ("n1-standard-8", "NVIDIA_TESLA_V100", 1),
    "large_model_v100": ("n1-highmem-8", "NVIDIA_TESLA_V100", 1),
    "complex_model_m_v100": ("n1-standard-16", "NVIDIA_TESLA_V100", 4),
    "complex_model_l_v100": ("n1-standard-32", "NVIDIA_TESLA_V100", 8),
}
GPUS = {
    name.upper().replace("-", "_"): name for name in ACCELERATORS
}  # keys: the names that both services have for them
OLD_GPUS = {name.upper().replace("-", "_") for name in TOO_OLD}
INSTEAD = "nvidia-tesla-t4"  # it replaces older GPUs
# Hyperparameters by the names that training scripts have for them, in lower case, without - and _.
ALIASES = {name.replace("_", ""): name for name in Hyperparameters.model_fields} | {
    "lr": "learning_rate",
    "trainbatchsize": "batch_size",
    **dict.fromkeys(("maxsteps", "trainsteps", "numsteps", "numtrainsteps"), "steps"),
    **dict.fromkeys(("blocksize", "seqlen", "seqlength", "maxseqlength", "nctx", "contextlength"), "sequence_length"),
    **dict.fromkeys(("warmup", "numwarmupsteps"), "warmup_steps"),
    **dict.fromkeys(("gradclip", "maxgradnorm", "clipnorm"), "gradient_clip"),
}
MODEL_NAMES = ("model", "modelname", "modelsize", "modeltype", "modelnameorpath")
SIZES = {str(size) for size in get_args(get_args(Model.model_fields["size"].annotation)[0])}
COUNT_KEYS: dict[Role, str] = {"worker": "workerCount", "ps": "parameterServerCount"}
HOURS = (0.25, 2880.0)  # the bounds of limits.maxHours
LEAST_DISK_GB = 50


class ImportProblem(Exception):
    """A job cannot be imported. The message is one line: the key, what was found, what to do."""


@dataclass(frozen=True)
class Note:
    """The fate of one key of the file that was read."""

    state: NoteState
    key: str
    found: str
    words: str  # the stack file's key and value that it became, or why it became none


@dataclass(frozen=True)
class Pool:
    """The machines of a role, as the file has them, with the file's keys for notes."""

    role: Role
    count: int
    machine: str
    machine_key: str
    gpu: str = ""  # the services' name of the model, such as NVIDIA_TESLA_T4
    gpus: int = 0
    gpu_key: str = ""


@dataclass
class Draft:
    """A stack file in the making."""

    notes: list[Note] = field(default_factory=list)
    region: str = ""
    training: dict[str, Any] = field(default_factory=dict)  # without hyperparameters
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=lambda: {"size": "gpt2"})
    machines: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)  # a search as it is in the file, for a comment
    sweep: dict[str, Any] = field(default_factory=dict)  # a search in this project's words

    def note(self, state: NoteState, key: str, given: Any, outcome: str) -> None:
        """Add a note about a key of the file."""
        self.notes.append(Note(state, key, short(given), outcome))

    def hyperparameter(self, key: str, name: str, value: Any) -> None:
        """Take a hyperparameter by any of its names, or note why not."""
        plain = re.sub("[-_]", "", name).lower()
        given, value = value, _plain(value) if isinstance(value, str) else value
        if plain in MODEL_NAMES and value in SIZES:
            self.model = {"size": value}
            self.note("mapped", key, given, f"model.size: {value}")
            return
        if (ours := ALIASES.get(plain)) is None:
            self.note("left out", key, given, "no hyperparameter of this trainer")
            return
        if isinstance(value, int) and Hyperparameters.model_fields[ours].annotation is float:
            value = float(value)
        try:
            Hyperparameters.model_validate({to_camel(ours): value}, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            self.note("left out", key, given, f"{to_camel(ours)}: {error.errors()[0]['msg'].lower()}")
            return
        before = self.hyperparameters.setdefault(to_camel(ours), value)
        if before != value:
            self.note("left out", key, given, f"{to_camel(ours)} was {before} before")
            return
        self.note("mapped", key, given, f"trainingInput.hyperparameters.{to_camel(ours)}")

    def arguments(self, key: str, given: Iterable[Any]) -> None:
        """Take a program's arguments: --name=value, --name value and --flag."""
        words = [str(word) for word in given]
        while words:
            word = words.pop(0)
            if not word.startswith("-"):
                self.note("left out", key, word, "belongs to no --name")
                continue
            name, has_value, value = word.lstrip("-").partition("=")
            if not has_value:
                value = words.pop(0) if words and not re.match(r"--?[A-Za-z]", words[0]) else "true"
            self.hyperparameter(f"{key} --{name}", name, value)

    def hours(self, key: str, seconds: str) -> None:
        """Take a duration such as 86400s as limits.maxHours. Raise ImportProblem if it is none."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)s?", seconds)
        if match is None:
            raise ImportProblem(f"{key}: found {seconds!r}, must be seconds such as 86400s")
        hours = float(match[1]) / 3600
        taken = round(min(max(hours, HOURS[0]), HOURS[1]), 2)
        self.limits["maxHours"] = int(taken) if taken == int(taken) else taken
        state: NoteState = "mapped" if abs(taken - hours) < 0.01 else "replaced"
        self.note(state, key, seconds, f"limits.maxHours: {taken:g}; it counts from the launch, and Google enforces it")

    def disk(self, key: str, gigabytes: int) -> None:
        """Take the size of a boot disk; all machines get the largest."""
        taken = max(gigabytes, LEAST_DISK_GB, self.machines.get("bootDiskGb", 0))
        self.machines["bootDiskGb"] = taken
        outcome = f"machines.bootDiskGb: {taken}, of all machines"
        self.note("mapped" if taken == gigabytes else "replaced", key, gigabytes, outcome)

    def pools(self, pools: list[Pool]) -> None:
        """Take the machine types, counts and accelerators of all roles."""
        attached: dict[Role, tuple[str, int]] = {}
        for pool in pools:
            machine, had, number = _machine(pool.machine)
            self.training[TYPE_KEYS[pool.role]] = machine or pool.machine
            if pool.role != "master":
                self.training[COUNT_KEYS[pool.role]] = pool.count
            where = f"trainingInput.{TYPE_KEYS[pool.role]}"
            if not machine:
                self.note("to fill in", pool.machine_key, pool.machine, f"{where}: no such machine here; name another")
            elif machine != pool.machine:
                self.note(
                    "replaced", pool.machine_key, pool.machine, f"{where}: {machine}, the nearest of this project"
                )
            else:
                self.note("mapped", pool.machine_key, pool.machine, where)
            if pool.gpu and pool.gpus:
                had, number = pool.gpu, pool.gpus
            if had and (gpus := self._gpus(pool, machine, had, number)) is not None:
                attached[pool.role] = gpus
        self._accelerator(attached, [pool for pool in pools if pool.role != "ps"])

    def _gpus(self, pool: Pool, machine: str, name: str, number: int) -> tuple[str, int] | None:
        """Return the GPUs to attach to each machine of a pool; None, with a note, if there are none."""
        key, gpus = pool.gpu_key or pool.machine_key, f"{number} x {name}"
        if name.startswith("TPU"):
            raise ImportProblem(f"{key}: found {name}; {NO_TPU}")
        if pool.role == "ps":
            self.note("left out", key, gpus, "parameter servers compute on CPUs")
            return None
        built_in = MACHINE_TYPES.get(machine)
        if built_in is not None and built_in.accelerators:
            same = (built_in.accelerator, built_in.accelerators) == (GPUS.get(name), number)
            outcome = f"built into {machine}: {built_in.accelerators} x {built_in.accelerator}"
            self.note("mapped" if same else "replaced", key, gpus, outcome)
            return None
        model = ACCELERATORS.get(GPUS.get(name, ""))
        if model is not None and not model.attachable:
            fitting = [m.name for m in MACHINE_TYPES.values() if m.accelerator == model.name]
            outcome = (
                f"trainingInput.{TYPE_KEYS[pool.role]}: {model.name} is built into machines; use {fitting[0]} or larger"
            )
            self.note("to fill in", key, gpus, outcome)
            return None
        if model is None and name not in OLD_GPUS:
            self.note(
                "to fill in", key, gpus, f"{name} is not known here: machines.accelerator, or a machine with GPUs"
            )
            return None
        taken = model.name if model is not None else INSTEAD
        fits = [n for n in ACCELERATORS[taken].most if n <= number]
        count = max(fits, default=1)
        where = f"machines.accelerator: {count} x {taken}"
        if taken == GPUS.get(name) and count == number:
            self.note("mapped", key, gpus, where)
        else:
            why = "; the image's PyTorch has no kernels for the older one" if name in OLD_GPUS else ""
            self.note("replaced", key, gpus, f"{where}{why}")
        return taken, count

    def _accelerator(self, attached: dict[Role, tuple[str, int]], pools: list[Pool]) -> None:
        """Take the GPUs of master and workers, which are the same here: the fewest that any of them had."""
        if not attached:
            return
        model, count = min(attached.values(), key=lambda gpus: gpus[1])
        self.machines["accelerator"] = {"type": model, "count": count}
        if len(set(attached.values())) > 1 or len(attached) < len(pools):
            had = ", ".join(
                f"{pool.role} {'{1} x {0}'.format(*attached[pool.role]) if pool.role in attached else 'none'}"
                for pool in pools
            )
            outcome = f"machines.accelerator: master and workers have the same here, {count} x {model} each"
            self.note("replaced", "accelerators", had, outcome)


NO_TPU = "this project trains on CPUs and NVIDIA GPUs, for example masterType a2-highgpu-1g"


class Node:
    """A mapping of the file that knows which keys were not taken yet. Keys are camelCase, whatever the file has."""

    def __init__(self, draft: Draft, path: str, content: Any) -> None:
        """Wrap the content at a path. Raise ImportProblem if it is no mapping."""
        if not isinstance(content, Mapping):
            raise ImportProblem(f"{path or 'the file'}: found {short(content)}, must be keys and values")
        self._draft, self.path = draft, path
        self._left = {_camel(str(name)): value for name, value in content.items() if value is not None}

    def key(self, name: str) -> str:
        """Return the whole path of a key."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Return whether a key is there and was not taken yet."""
        return name in self._left

    def take(self, name: str) -> Any:
        """Take a value; None if it is not there."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        """Take a plain value as a text; empty if it is not there. Raise ImportProblem for another value."""
        value = self.take(name)
        if isinstance(value, (Mapping, list)):
            raise ImportProblem(f"{self.key(name)}: found {short(value)}, must be a text")
        return "" if value is None else str(value)

    def number(self, name: str, default: int) -> int:
        """Take a whole number, which may be quoted, as JSON quotes 64-bit numbers. Raise ImportProblem."""
        digits = self.text(name)
        if digits and not re.fullmatch("[0-9]{1,9}", digits):
            raise ImportProblem(f"{self.key(name)}: found {digits!r}, must be a whole number")
        return int(digits) if digits else default

    def items(self, name: str) -> list[Any]:
        """Take a list; empty if it is not there. Raise ImportProblem for another value."""
        value = self.take(name)
        if value is not None and not isinstance(value, list):
            raise ImportProblem(f"{self.key(name)}: found {short(value)}, must be a list")
        return value or []

    def child(self, name: str) -> "Node":
        """Take a mapping; empty if it is not there. Raise ImportProblem for another value."""
        return Node(self._draft, self.key(name), self._left.pop(name, {}))

    def leave(self, reasons: Mapping[str, str]) -> None:
        """Note every key that was not taken as left out, with its reason or as unknown; nothing is left after this."""
        for name, value in self._left.items():
            self._draft.note("left out", self.key(name), value, reasons.get(name, "this key is not known here"))
        self._left.clear()

    def rest(self) -> dict[str, Any]:
        """Take everything that is left."""
        left, self._left = self._left, {}
        return left


def short(value: Any) -> str:
    """Return a value in at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _machine(name: str) -> tuple[str, str, int]:
    """Return this project's machine type, or the nearest, and the model and number of GPUs that were part of the name.

    The machine type is empty if there is none near.
    """
    if name in MACHINE_TYPES:
        return name, "", 0
    if name in LEGACY:
        return LEGACY[name]
    match = re.fullmatch(r"[a-z][a-z0-9]*-(standard|highmem|highcpu)-(\d+)", name)
    if match is None or name.split("-")[0] in ("g2", "a2", "a3", "g4", "a4", "a4x"):
        return "", "", 0
    larger = [m for m in MACHINE_TYPES.values() if m.name.startswith(f"n1-{match[1]}-") and m.vcpus >= int(match[2])]
    return (min(larger, key=lambda m: m.vcpus).name if larger else ""), "", 0


def _plain(text: str) -> Any:
    """Return a text as what it looks like: a number, true, or a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _camel(name: str) -> str:
    """Return a name in camelCase: gcloud reads machine_spec as well as machineSpec."""
    return re.sub("_([a-z0-9])", lambda match: match[1].upper(), name)
