"""Takes secrets out of a preview before anything of it is put into words, where they may be cut, joined or escaped."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infra.review.steps import RUN, Preview, State, Step
from infra.stack.masking import masker


def masked(preview: Preview) -> tuple[Preview, Callable[[str], str]]:
    """The preview without its secrets, and what takes them out of another text.

    Two secrets stay two, [secret 1] and [secret 2], so that a change of one is seen. Numbers are hidden among the
    settings alone: what follows from them, as the count of machines, is what a review is for.
    """
    names = {secret: f"[secret {i}]" for i, secret in enumerate(preview.secrets, 1)}
    text = masker(names)

    def value(found: Any, numbers: bool) -> Any:
        if isinstance(found, dict):
            return {key: value(item, numbers) for key, item in found.items()}
        if isinstance(found, list):
            return [value(item, numbers) for item in found]
        if isinstance(found, str):
            return text(found)
        return names.get(str(found), found) if numbers else found

    def state(found: State | None, step: Step) -> State | None:
        return found and replace(found, inputs=value(found.inputs, step.type == RUN))

    steps = (replace(step, before=state(step.before, step), after=state(step.after, step)) for step in preview.steps)
    said = (tuple(map(text, lines)) for lines in (preview.errors, preview.warnings))
    return Preview(preview.stack, tuple(steps), *said), text
