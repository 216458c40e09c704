"""Read the output of `pulumi preview --json` as steps: one per resource, by URN, without values that vary randomly."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from infra.review.resource_types import RUN
from infra.review.values import HIDDEN, leaves, plain
from infra.stack import masking
from infra.stack.config import PROJECT

Op = Literal["create", "update", "replace", "delete", "same", "import", "read"]
# Pulumi has more operations, for the parts of a replacement and for resources that it imports, reads or discards.
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
PROVIDER = "pulumi:providers:"
STACK = "pulumi:pulumi:Stack"
GCP = ("project", "region")
NOT_A_SETTING = "secretKeys"  # the only input of the run that is not a key of the stack file: see infra/run.py


class UnreadablePreview(Exception):
    """The text is not a preview. The message is one line for a person."""


@dataclass(frozen=True)
class ResourceState:
    inputs: dict[str, Any]  # as plain() returns them
    retained: bool = False  # it stays in the cloud when it is removed from the stack
    protected: bool = False
    waits_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the URNs that each input depends on


@dataclass(frozen=True)
class PreviewStep:
    """A resource before and after the change. A state is None if the resource does not exist."""

    urn: str
    op: Op
    before: ResourceState | None
    after: ResourceState | None
    because: tuple[str, ...] = ()  # paths of the inputs whose change requires a replacement
    guessed: bool = False  # it is not known whether the resource is updated or replaced

    @property
    def type(self) -> str:
        return self.urn.split("::")[2].rpartition("$")[2]

    @property
    def name(self) -> str:
        return "::".join(self.urn.split("::")[3:])

    @property
    def real(self) -> bool:
        """Return whether the resource itself costs or does something. Components only contain other resources."""
        return not self.type.startswith((f"{PROJECT}:", PROVIDER, STACK))

    @property
    def removed(self) -> bool:
        """Return whether the present resource is deleted, even if another one replaces it."""
        return self.before is not None and self.op in ("delete", "replace")

    def changed(self, before: str, after: str | None = None) -> tuple[Any, Any]:
        """Return an input before and after the change. `after` is its name afterwards, if it differs."""
        old, new = self.before, self.after
        return (old.inputs.get(before) if old else None), (new.inputs.get(after or before) if new else None)


@dataclass(frozen=True)
class Preview:
    stack: str
    steps: tuple[PreviewStep, ...]  # by URN
    errors: tuple[str, ...] = ()  # why the preview failed
    warnings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # values that must not be shown: redaction.py removes them

    def of_type(self, *types: str) -> list[PreviewStep]:
        return [step for step in self.steps if step.type in types]

    def settings(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return the stack file's own keys and values before and after the change. They are None without a run."""
        for step in self.of_type(RUN):
            return _settings_of(step.before), _settings_of(step.after)
        return None, None

    def secret_keys(self) -> set[str]:
        """Return the paths of the settings that the program marked as secret, before and after the change."""
        states = [state for step in self.of_type(RUN) for state in (step.before, step.after) if state]
        return {str(path) for state in states for path in state.inputs.get(NOT_A_SETTING) or ()}

    def providers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the keys of gcp: that affect resources, before and after the change."""
        for step in self.of_type(f"{PROVIDER}gcp"):
            old, new = (state.inputs if state else {} for state in (step.before, step.after))
            return {key: old[key] for key in GCP if key in old}, {key: new[key] for key in GCP if key in new}
        return {}, {}


def parse_preview(text: str, stack: str = "", name: str = "the preview") -> Preview:
    """Return the preview that `pulumi preview --json` wrote.

    Args:
        text: Pulumi's output.
        stack: the stack's name, needed if there are no steps.
        name: what an error calls the text.

    Raises:
        UnreadablePreview: if the text is not such an output.
    """
    try:
        content = json.loads(text)
        steps = [_step(step) for step in content["steps"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadablePreview(f"{name} is not what `pulumi preview --json` writes; make it with that") from None
    if steps:
        stack = steps[0].urn.split("::")[0].rpartition(":")[2]
    config = content.get("config") or {}
    preview = Preview(stack, _merged(steps), *_diagnostics(content.get("diagnostics") or []))
    return replace(preview, secrets=_secrets(config, preview))


def _step(raw: Mapping[str, Any]) -> PreviewStep:
    old, new = raw.get("oldState"), raw.get("newState")
    op, name = OPS.get(raw["op"], "same"), raw["urn"].rpartition("::")[2]
    return PreviewStep(
        raw["urn"],
        op,
        None if op in ("create", "import") else _state(old, name),
        None if op == "delete" else _state(new, name),
        tuple(sorted(raw.get("replaceReasons") or [])),
    )


def _state(raw: Mapping[str, Any] | None, name: str) -> ResourceState | None:
    if raw is None:
        return None
    inputs = plain(raw.get("inputs") or {})
    if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{7}}", str(inputs.get("name"))):
        del inputs["name"]  # Pulumi generates another random end in each preview
    waits_for = {key: tuple(urns) for key, urns in (raw.get("propertyDependencies") or {}).items() if urns}
    return ResourceState(inputs, bool(raw.get("retainOnDelete")), bool(raw.get("protect")), waits_for)


def _merged(steps: Iterable[PreviewStep]) -> tuple[PreviewStep, ...]:
    """Return one step per resource. A replacement may have several parts, and Pulumi does not order them."""
    merged: dict[str, PreviewStep] = {}
    for step in steps:
        earlier = merged.setdefault(step.urn, step)
        if earlier is not step:
            op: Op = "replace" if "replace" in (earlier.op, step.op) or earlier.op != step.op else earlier.op
            because = tuple(sorted({*earlier.because, *step.because}))
            before, after = earlier.before or step.before, step.after or earlier.after
            merged[step.urn] = PreviewStep(step.urn, op, before, after, because)
    return tuple(merged[urn] for urn in sorted(merged))


def _diagnostics(diagnostics: Iterable[Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lines of all errors, and the lines of all warnings."""
    lines: dict[str, list[str]] = {"error": [], "warning": []}
    for diagnostic in diagnostics:
        severity = diagnostic.get("severity", "")
        for line in diagnostic.get("message", "").strip().splitlines() if severity in lines else ():
            if text := line.strip().removeprefix(f"{severity}: "):
                lines[severity].append(text)
    return tuple(dict.fromkeys(lines["error"])), tuple(dict.fromkeys(lines["warning"]))


def _settings_of(run: ResourceState | None) -> dict[str, Any] | None:
    return {key: value for key, value in run.inputs.items() if key != NOT_A_SETTING} if run else None


def _secrets(config: Mapping[str, str], preview: Preview) -> tuple[str, ...]:
    """Return the secret values, each once.

    Pulumi hides a secret in the configuration, but not in the inputs to which our program passes it. Former secrets
    count, too: a change that removes a key, or makes it plain, must not show its former value.
    """
    secret_paths = preview.secret_keys() | set(_hidden_paths(config))
    secrets: dict[str, None] = {}
    for settings in preview.settings():
        for path, value in leaves(settings or {}).items():
            if any(path == secret or path.startswith(f"{secret}.") for secret in secret_paths):
                secrets |= dict.fromkeys(masking.leaves(value))
    return tuple(secrets)


def _hidden_paths(config: Mapping[str, str]) -> Iterable[str]:
    """Yield the paths of the settings that Pulumi hides."""
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
