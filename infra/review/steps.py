"""What `pulumi preview --json` wrote, as steps: one a resource, by URN, without what differs from time to time."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from infra.review.values import HIDDEN, leaves, plain
from infra.stack import masking
from infra.stack.config import PROJECT

Op = Literal["create", "update", "replace", "delete", "same", "import", "read"]
# Pulumi has more words, for the parts of a replacement and for what it imports, reads or lets go.
OPS: dict[str, Op] = {
    "create": "create",
    "update": "update",
    "replace": "replace",
    "create-replacement": "replace",
    "delete-replaced": "replace",
    "import-replacement": "replace",
    "read-replacement": "read",
    "delete": "delete",
    "discard": "delete",
    "import": "import",
    "read": "read",
}
RUN = "gpt2-training:run:TrainingRun"
PROVIDER = "pulumi:providers:"
STACK = "pulumi:pulumi:Stack"
GCP = ("project", "region")
HELD_BACK = "secretKeys"  # infra/run.py: of the run's inputs, the one that is no key of the stack file


class UnreadablePreview(Exception):
    """One line for a person."""


@dataclass(frozen=True)
class State:
    inputs: dict[str, Any]  # plain()
    retained: bool = False  # it stays in the cloud when the stack lets it go
    protected: bool = False
    waits_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # URNs that an input comes from


@dataclass(frozen=True)
class Step:
    """A resource before and after; None: it is not there."""

    urn: str
    op: Op
    before: State | None
    after: State | None
    because: tuple[str, ...] = ()  # paths of the inputs that make it a replacement
    guessed: bool = False  # whether it is updated or replaced is not known

    @property
    def type(self) -> str:
        return self.urn.split("::")[2].rpartition("$")[2]

    @property
    def name(self) -> str:
        return "::".join(self.urn.split("::")[3:])

    @property
    def real(self) -> bool:
        """Something that costs or does something; components only hold others."""
        return not self.type.startswith((f"{PROJECT}:", PROVIDER, STACK))

    @property
    def goes(self) -> bool:
        """Whether what is there now goes away."""
        return self.before is not None and self.op in ("delete", "replace")

    def changed(self, before: str, after: str | None = None) -> tuple[Any, Any]:
        """An input before and after."""
        old, new = self.before, self.after
        return (old.inputs.get(before) if old else None), (new.inputs.get(after or before) if new else None)


@dataclass(frozen=True)
class Preview:
    stack: str
    steps: tuple[Step, ...]  # by URN
    errors: tuple[str, ...] = ()  # why it failed
    warnings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # values that must not be shown: hidden.py takes them out

    def of_type(self, *types: str) -> list[Step]:
        return [step for step in self.steps if step.type in types]

    def words(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The stack file's own keys and values, before and after; None: there is no run."""
        for step in self.of_type(RUN):
            return _words(step.before), _words(step.after)
        return None, None

    def secret_keys(self) -> set[str]:
        """Paths of settings that the program found to be secret: of the state's, and of this preview's."""
        states = [state for step in self.of_type(RUN) for state in (step.before, step.after) if state]
        return {str(path) for state in states for path in state.inputs.get(HELD_BACK) or ()}

    def providers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keys of gcp: that make a difference, before and after."""
        for step in self.of_type(f"{PROVIDER}gcp"):
            old, new = (state.inputs if state else {} for state in (step.before, step.after))
            return {key: old[key] for key in GCP if key in old}, {key: new[key] for key in GCP if key in new}
        return {}, {}


def parse(text: str, stack: str = "", name: str = "the preview") -> Preview:
    """stack: whose it is, if the steps cannot tell. Raises UnreadablePreview."""
    try:
        found = json.loads(text)
        raw = found["steps"]
        steps = [_step(step) for step in raw]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadablePreview(f"{name} is not what `pulumi preview --json` writes; make it with that") from None
    if steps:
        stack = steps[0].urn.split("::")[0].rpartition(":")[2]
    config = found.get("config") or {}
    preview = Preview(stack, _merged(steps), *_said(found.get("diagnostics") or []))
    return replace(preview, secrets=_secrets(config, preview))


def _step(raw: Mapping[str, Any]) -> Step:
    old, new = raw.get("oldState"), raw.get("newState")
    op, name = OPS.get(raw["op"], "same"), raw["urn"].rpartition("::")[2]
    return Step(
        raw["urn"],
        op,
        None if op in ("create", "import") else _state(old, name),
        None if op == "delete" else _state(new, name),
        tuple(sorted(raw.get("replaceReasons") or [])),
    )


def _state(raw: Mapping[str, Any] | None, name: str) -> State | None:
    if raw is None:
        return None
    inputs = plain(raw.get("inputs") or {})
    if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{7}}", str(inputs.get("name"))):
        del inputs["name"]  # Pulumi made it up, another one each time
    waits_for = {key: tuple(urns) for key, urns in (raw.get("propertyDependencies") or {}).items() if urns}
    kept = bool(raw.get("retainOnDelete"))
    return State(inputs, kept, bool(raw.get("protect")), waits_for)


def _merged(steps: Iterable[Step]) -> tuple[Step, ...]:
    """One step a resource: a replacement may come in parts. Their order is chance."""
    found: dict[str, Step] = {}
    for step in steps:
        one = found.setdefault(step.urn, step)
        if one is not step:
            op: Op = "replace" if "replace" in (one.op, step.op) or one.op != step.op else one.op
            because = tuple(sorted({*one.because, *step.because}))
            found[step.urn] = Step(step.urn, op, one.before or step.before, step.after or one.after, because)
    return tuple(found[urn] for urn in sorted(found))


def _said(diagnostics: Iterable[Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Errors and warnings, a line each."""
    said: dict[str, list[str]] = {"error": [], "warning": []}
    for one in diagnostics:
        kind = one.get("severity", "")
        for line in one.get("message", "").strip().splitlines() if kind in said else ():
            if text := line.strip().removeprefix(f"{kind}: "):
                said[kind].append(text)
    return tuple(dict.fromkeys(said["error"])), tuple(dict.fromkeys(said["warning"]))


def _words(run: State | None) -> dict[str, Any] | None:
    return {key: value for key, value in run.inputs.items() if key != HELD_BACK} if run else None


def _secrets(config: Mapping[str, str], preview: Preview) -> tuple[str, ...]:
    """Pulumi hides a secret in the configuration, but not where our program hands it on. As they come, each once.

    What was secret before counts too: a change that removes a key, or makes it plain, must not show what it held.
    """
    secrets = preview.secret_keys() | set(_hidden(config))
    found: dict[str, None] = {}
    for words in preview.words():
        for path, value in leaves(words or {}).items():
            if any(path == secret or path.startswith(f"{secret}.") for secret in secrets):
                found |= dict.fromkeys(masking.leaves(value))
    return tuple(found)


def _hidden(config: Mapping[str, str]) -> Iterable[str]:
    """Paths of the settings that Pulumi hides."""
    for key, text in config.items():
        if HIDDEN not in str(text) or not key.startswith(f"{PROJECT}:"):
            continue
        try:
            hidden = json.loads(text)
        except ValueError:
            hidden = HIDDEN
        for path, value in leaves(hidden, key.removeprefix(f"{PROJECT}:")).items():
            if HIDDEN in str(value):
                yield path
