"""Hold a validated stack file: StackConfig, and the names that follow from it. Nothing here needs the Pulumi CLI."""

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
    """A stack file cannot be carried out. Each problem is one line: the key, what was found, what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class StackConfig:
    """A stack file that is consistent in itself. job_spec() finds out whether its run can be carried out."""

    stack: str
    root: Path  # the folder of the stack file, to which its paths are relative
    file: StackFile
    provider: Mapping[str, Any] = field(default_factory=dict)  # the keys of gcp:, without that prefix

    @property
    def google(self) -> bool:
        """Return whether the machines are on Google Cloud."""
        return self.file.platform == "google"

    @property
    def project(self) -> str:
        """The id of Google's project; empty if none is given."""
        return plain_text(self.provider.get("project"))

    @property
    def region(self) -> str:
        """The region of the machines and buckets on Google Cloud."""
        return plain_text(self.provider.get("region")) or DEFAULT_REGION

    @property
    def bucket(self) -> str:
        """The address of the run's bucket, file:// or gs://."""
        return google_bucket(self.project, self.stack) if self.google else bucket_url(self.stack, self.root)

    @property
    def data_bucket(self) -> str:
        """The address of the bucket with the text on Google Cloud, which machines may only read."""
        return f"{google_bucket(self.project, self.stack)}-data"

    @property
    def text(self) -> Path:
        """The path of the text on this machine."""
        return self.root / Path(self.file.data.path).expanduser()

    @property
    def workers(self) -> int:
        """The number of workers, besides the master."""
        return self.file.training_input.counts()[0]

    @property
    def servers(self) -> int:
        """The number of parameter servers."""
        return self.file.training_input.counts()[1]

    def words(self) -> dict[str, Any]:
        """Return the stack file's own keys and values, without defaults."""
        return self.file.model_dump(mode="json", by_alias=True, exclude_unset=True)


def bucket_url(stack: str, root: Path = ROOT) -> str:
    """Return the address of a local stack's bucket: a folder of the checkout, as file://."""
    return (root.resolve() / "artifacts" / stack).as_uri()


def google_bucket(project: str, stack: str) -> str:
    """Return the address of a bucket on Google Cloud. It is fixed, so that the next `up` finds a kept bucket."""
    return f"gs://{project}-{stack}-gpt2"


def plain_text(value: Any) -> str:
    """Return a value as Pulumi passes it to a program, which gets numbers as texts, too."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
