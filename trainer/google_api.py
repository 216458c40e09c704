"""Google's REST APIs, for what no library here covers: one authorized session and one way to call.

Each call names its method as Google's discovery documents do, so that tests can hold it against them.
"""

import os
from typing import Any

import google.auth
import requests
from google.auth import exceptions as auth
from google.auth.transport.requests import AuthorizedSession

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between bytes
LOGIN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
# What an error says where a project has not enabled an API.
API_OFF = ("SERVICE_DISABLED", "has not been used in project", "it is disabled")
BASES = {
    "artifactregistry": "https://artifactregistry.googleapis.com/v1/",
    "cloudbuild": "https://cloudbuild.googleapis.com/v1/",
    "cloudquotas": "https://cloudquotas.googleapis.com/v1/",
    "cloudresourcemanager": "https://cloudresourcemanager.googleapis.com/v1/",
    "cloudscheduler": "https://cloudscheduler.googleapis.com/v1/",
    "compute": "https://compute.googleapis.com/compute/v1/",
    "monitoring": "https://monitoring.googleapis.com/v3/",
    "serviceusage": "https://serviceusage.googleapis.com/v1/",
}


class ApiError(Exception):
    """One line for a person: what Google was asked, what it answered, what to do. `status` is HTTP's, 0 for none."""

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(line)
        self.status = status


class GoogleApi:
    """Calls with application default credentials. Threads may share it."""

    def __init__(self) -> None:
        """Raises ApiError where nobody is logged in."""
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except auth.DefaultCredentialsError:
            raise ApiError(f"no Google credentials; {LOGIN}") from None
        self._session = AuthorizedSession(credentials)

    def call(
        self,
        service: str,
        verb: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The answer's JSON. `path` follows the service's base, such as projects/P/zones. Raises ApiError."""
        url = base(service) + path
        try:
            answer = self._session.request(verb, url, params=query, json=body, timeout=TIMEOUT)
        except (auth.GoogleAuthError, requests.RequestException) as error:
            raise ApiError(f"{service} cannot be asked ({str(error).splitlines()[0][:200]}); {LOGIN}") from None
        if not answer.ok:
            raise ApiError(f"{service} {verb} {path}: {answer.status_code}, {_said(answer)}", answer.status_code)
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def pages(self, service: str, path: str, key: str, query: dict[str, Any] | None = None) -> list[Any]:
        """All items under `key` of a listing, whatever the number of its pages. Raises ApiError."""
        items: list[Any] = []
        token = ""
        while True:
            answer = self.call(service, "GET", path, query={**(query or {}), **({"pageToken": token} if token else {})})
            items += answer.get(key, [])
            if not (token := answer.get("nextPageToken", "")):
                return items


def base(service: str) -> str:
    """Where a service answers; gcloud's own variable can lead elsewhere, such as to a private endpoint."""
    override = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}")
    return f"{override.rstrip('/')}/" if override else BASES[service]


def _said(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"]["message"]).splitlines()[0][:300]
    except (ValueError, KeyError, IndexError, TypeError):
        return answer.reason
