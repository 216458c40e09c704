"""The metadata server of a VM of Google Cloud. In tests, GCE_METADATA_HOST leads to another one."""

import os
from dataclasses import dataclass

import requests


class Metadata:
    """The VM's metadata server. Raise OSError when it does not answer, FileNotFoundError for what it does not have."""

    def __init__(self) -> None:
        self._base = f"http://{os.environ.get('GCE_METADATA_HOST') or 'metadata.google.internal'}/computeMetadata/v1/"

    def get(self, path: str) -> str:
        return self.ask(path)[0]

    def attribute(self, name: str, default: str = "") -> str:
        try:
            return self.get(f"instance/attributes/{name}")
        except FileNotFoundError:
            return default

    def ask(self, path: str, timeout: float = 10.0) -> tuple[str, str]:
        """Return the value and its ETag, with which a later request can wait for a change."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy leads there
            answer = session.get(self._base + path, headers={"Metadata-Flavor": "Google"}, timeout=timeout)
        if answer.status_code == 404:
            raise FileNotFoundError(f"the metadata server has no {path}")
        answer.raise_for_status()  # an OSError, as all of requests' errors
        return answer.text.strip(), answer.headers.get("ETag", "")


@dataclass(frozen=True)
class Vm:
    """This VM, by its metadata."""

    project: str
    zone: str
    stack: str
    controller: str  # the scheduler's job that starts the controller; empty on a machine that must not run it

    @classmethod
    def read(cls, metadata: Metadata) -> "Vm":
        return cls(
            project=metadata.get("project/project-id"),
            zone=metadata.get("instance/zone").rpartition("/")[2],
            stack=metadata.attribute("gpt2-stack"),
            controller=metadata.attribute("gpt2-controller"),
        )
