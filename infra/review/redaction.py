"""Remove secrets from a preview before any text is made of it.

A text may cut, join or escape values, and a secret could then not be found any more.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infra.review.resource_types import RUN
from infra.review.steps import Preview, PreviewStep, ResourceState
from infra.stack.masking import masker


def masked(preview: Preview) -> tuple[Preview, Callable[[str], str]]:
    """Return the preview without its secrets, and a function that removes them from another text.

    Each secret gets its own mask, [secret 1] and [secret 2], so that a change of one remains visible. Numbers are
    masked only in the run's settings: elsewhere they are consequences, such as the count of machines, which a review
    must show.
    """
    masks = {secret: f"[secret {i}]" for i, secret in enumerate(preview.secrets, 1)}
    mask_text = masker(masks)

    def mask_value(value: Any, numbers: bool) -> Any:
        if isinstance(value, dict):
            return {key: mask_value(item, numbers) for key, item in value.items()}
        if isinstance(value, list):
            return [mask_value(item, numbers) for item in value]
        if isinstance(value, str):
            return mask_text(value)
        return masks.get(str(value), value) if numbers else value

    def mask_state(state: ResourceState | None, step: PreviewStep) -> ResourceState | None:
        return state and replace(state, inputs=mask_value(state.inputs, step.type == RUN))

    steps = tuple(
        replace(step, before=mask_state(step.before, step), after=mask_state(step.after, step))
        for step in preview.steps
    )
    errors, warnings = tuple(map(mask_text, preview.errors)), tuple(map(mask_text, preview.warnings))
    return Preview(preview.stack, steps, errors, warnings), mask_text
