"""Stack file -> validated StackConfig. Every error is one line: the key, what was found, what to do.

Pure but for reading: nothing here needs the Pulumi CLI, so that scripts read a stack file as Pulumi does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.stack.keys import StackFile

PROJECT = "gpt2-training"
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_REGION = "us-central1"


class ConfigError(Exception):
    """What a stack file asks for cannot be done: one line a problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class StackConfig:
    """A stack file that is consistent in itself. Whether its run can be carried out, job_spec() finds out."""

    stack: str
    root: Path  # relative paths of the stack file start here
    file: StackFile
    provider: Mapping[str, Any] = field(default_factory=dict)  # the keys of gcp: without that name

    @property
    def google(self) -> bool:
        return self.file.platform == "google"

    @property
    def project(self) -> str:
        """Google's project; empty if none is given."""
        return plain_text(self.provider.get("project"))

    @property
    def region(self) -> str:
        return plain_text(self.provider.get("region")) or DEFAULT_REGION

    @property
    def bucket(self) -> str:
        """Where the run's files are: file:// or gs://."""
        return google_bucket(self.project, self.stack) if self.google else bucket_url(self.stack, self.root)

    @property
    def data_bucket(self) -> str:
        """Where the source text is, on Google Cloud: machines may only read it."""
        return f"{google_bucket(self.project, self.stack)}-data"

    @property
    def text(self) -> Path:
        """The source text on this machine."""
        return self.root / Path(self.file.data.path).expanduser()

    @property
    def workers(self) -> int:
        return self.file.training_input.counts()[0]

    @property
    def servers(self) -> int:
        return self.file.training_input.counts()[1]

    def words(self) -> dict[str, Any]:
        """The stack file's own keys and values, without defaults."""
        return self.file.model_dump(mode="json", by_alias=True, exclude_unset=True)


def bucket_url(stack: str, root: Path = ROOT) -> str:
    """Where a local stack keeps its files: a folder of the checkout, as file://."""
    return (root.resolve() / "artifacts" / stack).as_uri()


def google_bucket(project: str, stack: str) -> str:
    """Where a stack on Google Cloud keeps its files. A fixed name: the next `up` finds the bucket that was kept."""
    return f"gs://{project}-{stack}-gpt2"


def plain_text(value: Any) -> str:
    """As Pulumi hands it over: YAML's numbers are texts, too."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
