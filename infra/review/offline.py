"""Compare two previews that were made without a state, and say which changes replace a resource."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import yaml

from infra.review.steps import Preview, PreviewStep, ResourceState
from infra.review.values import differences, unknown_paths


@cache
def replacing() -> dict[str, list[str]]:
    """Return for each resource type the inputs whose change replaces it: `disks[].sourceImage`; "*" for all inputs."""
    content = Path(__file__).with_name("replacing.yaml").read_text(encoding="utf-8")
    inputs: dict[str, list[str]] = yaml.safe_load(content)
    return inputs


def compare(base: Preview, head: Preview) -> Preview:
    """Return the changes from one preview to the other, as far as inputs show them.

    Neither preview knows what really exists.
    """
    before = {step.urn: step.after for step in base.steps if step.after}
    after = {step.urn: step.after for step in head.steps if step.after}
    steps = {urn: _compared(urn, before.get(urn), after.get(urn)) for urn in sorted({*before, *after})}
    while affected := list(_follow(steps)):  # a replaced resource changes the resources that depend on it
        steps |= {step.urn: step for step in affected}
    return Preview(
        head.stack,
        tuple(steps.values()),
        head.errors,
        head.warnings,
        tuple(dict.fromkeys(base.secrets + head.secrets)),
    )


def _compared(urn: str, before: ResourceState | None, after: ResourceState | None) -> PreviewStep:
    step = PreviewStep(urn, "create" if before is None else "delete" if after is None else "same", before, after)
    if before is None or after is None:
        return step
    paths = [change.path for change in differences(before.inputs, after.inputs)]
    if not paths:
        return step
    because = tuple(path for path in paths if _replaces(step.type, path))
    return replace(step, op="replace" if because else "update", because=because, guessed=not _known(step))


def _known(step: PreviewStep) -> bool:
    return not step.real or step.type in replacing()


def _follow(steps: Mapping[str, PreviewStep]) -> Iterable[PreviewStep]:
    """Yield the steps that become another operation, because an input depends on a replaced resource."""
    replaced = {urn for urn, step in steps.items() if step.op == "replace"}
    for step in steps.values():
        if step.after is None or step.op not in ("same", "update") or not step.real:
            continue
        dependent = [key for key, urns in step.after.waits_for.items() if replaced & set(urns)]
        unknown = [path for key in dependent for path in unknown_paths(step.after.inputs.get(key), key)]
        because = tuple(path for path in unknown if _replaces(step.type, path))
        if because:
            yield replace(step, op="replace", because=tuple(sorted({*step.because, *because})))
        elif unknown and step.op == "same":
            yield replace(step, op="update", guessed=not _known(step))


def _replaces(kind: str, path: str) -> bool:
    path = re.sub(r"\[\d+\]", "[]", path)
    return any(_covers(entry, path) for entry in replacing().get(kind, ()))


def _covers(entry: str, path: str) -> bool:
    """Return whether a change at `path` is within the input that `entry` names, or contains it."""
    return entry == "*" or _inside(path, entry) or _inside(entry, path)


def _inside(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}[]"))
