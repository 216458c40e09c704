"""Where the machines of a run find its inputs."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Placed:
    """Where a run finds what it starts from, and what its machines have."""

    fingerprint: str  # of the text
    data: dict[str, Any]  # fields of spec.Data that differ from the stack file's
    initialize: str | None  # as the machines reach it
    content: str | None  # the same, named by its content
    cluster: dict[str, Any]  # fields of spec.Cluster that the machines decide
