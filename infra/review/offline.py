"""Compare two previews that know no state, and say which changes replace a resource."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import yaml

from infra.review.steps import Preview, State, Step
from infra.review.values import differences, unknown_paths


@cache
def replacing() -> dict[str, list[str]]:
    """Of each resource type, the inputs whose change makes it anew: `disks[].sourceImage`; "*" stands for all."""
    found: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("replacing.yaml").read_text(encoding="utf-8"))
    return found


def compare(base: Preview, head: Preview) -> Preview:
    """What leads from one to the other, as far as inputs tell it: neither knows what is really there."""
    before = {step.urn: step.after for step in base.steps if step.after}
    after = {step.urn: step.after for step in head.steps if step.after}
    steps = {urn: _compared(urn, before.get(urn), after.get(urn)) for urn in sorted({*before, *after})}
    while touched := list(_follow(steps)):  # what was made anew changes what is made from it
        steps |= {step.urn: step for step in touched}
    return Preview(
        head.stack,
        tuple(steps.values()),
        head.errors,
        head.warnings,
        tuple(dict.fromkeys(base.secrets + head.secrets)),
    )


def _compared(urn: str, before: State | None, after: State | None) -> Step:
    step = Step(urn, "create" if before is None else "delete" if after is None else "same", before, after)
    if before is None or after is None:
        return step
    paths = [change.path for change in differences(before.inputs, after.inputs)]
    if not paths:
        return step
    because = tuple(path for path in paths if _replaces(step.type, path))
    return replace(step, op="replace" if because else "update", because=because, guessed=not _known(step))


def _known(step: Step) -> bool:
    return not step.real or step.type in replacing()


def _follow(steps: Mapping[str, Step]) -> Iterable[Step]:
    """Steps that become something else, as an input of theirs comes from what is made anew and is not known yet."""
    anew = {urn for urn, step in steps.items() if step.op == "replace"}
    for step in steps.values():
        if step.after is None or step.op not in ("same", "update") or not step.real:
            continue
        fresh = [key for key, urns in step.after.waits_for.items() if anew & set(urns)]
        unknown = [path for key in fresh for path in unknown_paths(step.after.inputs.get(key), key)]
        because = tuple(path for path in unknown if _replaces(step.type, path))
        if because:
            yield replace(step, op="replace", because=tuple(sorted({*step.because, *because})))
        elif unknown and step.op == "same":
            yield replace(step, op="update", guessed=not _known(step))


def _replaces(kind: str, path: str) -> bool:
    path = re.sub(r"\[\d+\]", "[]", path)
    return any(_covers(entry, path) for entry in replacing().get(kind, ()))


def _covers(entry: str, path: str) -> bool:
    """A change in what an entry names, or of something whole that has it as a part."""
    return entry == "*" or _inside(path, entry) or _inside(entry, path)


def _inside(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}[]"))
