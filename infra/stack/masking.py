"""Replace secret values in texts for people."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infra.stack.explain import shown

SHORT = 4  # characters: a shorter secret is replaced only if it is the whole text, as it is part of any other


def masker(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces every secret in a text; `names` has the replacement of each secret."""
    forms = {form: name for secret, name in names.items() for form in _forms(secret)}
    longest_first = sorted((form for form in forms if len(form) >= SHORT), key=len, reverse=True)
    parts = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def masked(text: str) -> str:
        return forms.get(text) or parts.sub(lambda match: forms[match[0]], text)

    return masked


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms of a secret in longer texts: plain, quoted, in JSON, shortened as in our errors, and by line."""
    yield from (secret, repr(secret)[1:-1], shown(secret))
    yield from (json.dumps(secret, ensure_ascii=plain)[1:-1] for plain in (True, False))
    yield from (line.strip() for line in secret.splitlines() if line.strip())


def leaves(value: Any) -> Iterator[str]:
    """Yield the values inside lists and objects, as texts."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from leaves(item)
    if not isinstance(value, dict | list) and value not in (None, ""):
        yield str(value)
