"""Call those of Google's REST APIs for which no library is installed, with one authorized session.

Each call names its method as Google's discovery documents do, so that tests can compare it with them.
"""

import os
import re
from typing import Any

import google.auth
import requests
from google.auth import exceptions as auth
from google.auth.transport.requests import AuthorizedSession

from trainer.gcloud.login import KEY_FILE, LOGIN, key_file_problem, no_key_file

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between bytes
CHECK_NETWORK = "check the network"
# What the words of a library's error mean; the first that fits counts.
NETWORK = (
    ("proxy", "the proxy does not let it through"),
    ("resolve", "its name is not found"),
    ("refused", "connection refused"),
    ("timed out", "no answer in time"),
    ("certificate", "its certificate is not trusted"),
)
# Words of an error where a project has not enabled an API.
API_OFF = ("SERVICE_DISABLED", "has not been used in project", "it is disabled")
BASES = {
    "artifactregistry": "https://artifactregistry.googleapis.com/v1/",
    "cloudbilling": "https://cloudbilling.googleapis.com/v1/",
    "cloudbuild": "https://cloudbuild.googleapis.com/v1/",
    "cloudquotas": "https://cloudquotas.googleapis.com/v1/",
    "cloudresourcemanager": "https://cloudresourcemanager.googleapis.com/v1/",
    "cloudscheduler": "https://cloudscheduler.googleapis.com/v1/",
    "compute": "https://compute.googleapis.com/compute/v1/",
    "monitoring": "https://monitoring.googleapis.com/v3/",
    "serviceusage": "https://serviceusage.googleapis.com/v1/",
    "workflows": "https://workflows.googleapis.com/v1/",
}


class ApiError(Exception):
    """One line for a person: what Google was asked, what it answered, what to do.

    status: HTTP's, or 0 if there was no answer because the network or a login is missing.
    """

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(line)
        self.status = status


class GoogleApi:
    """Calls with application default credentials. Threads may share it."""

    def __init__(self) -> None:
        """Raise ApiError if nobody is logged in."""
        if why := key_file_problem():
            raise ApiError(why)
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE])
        except auth.DefaultCredentialsError as error:
            path = os.environ.get(KEY_FILE)
            problem = f"which Google's library does not take ({error.args[0]})"
            raise ApiError(no_key_file(path, problem) if path else f"no Google credentials; {LOGIN}") from None
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
        """Call a method and return the JSON of its answer. Raise ApiError.

        Args:
            service: A key of BASES.
            verb: HTTP's, such as GET.
            path: The part of the URL after the service's base, such as projects/P/zones.
            query: The parameters of the URL.
            body: The JSON to send.
        """
        url = base(service) + path
        try:
            answer = self._session.request(verb, url, params=query, json=body, timeout=TIMEOUT)
        except (auth.GoogleAuthError, requests.RequestException) as error:
            raise ApiError(_unanswered(error)) from None
        if answer.status_code == 401:
            raise ApiError(f"Google does not accept the login ({_said(answer)}); {LOGIN}", 401)
        if not answer.ok:
            raise ApiError(f"{service} {verb} {path}: {answer.status_code}, {_said(answer)}", answer.status_code)
        try:
            content: dict[str, Any] = answer.json() if answer.content else {}
        except ValueError:
            raise ApiError(f"Google cannot be reached (something else answers in its place); {CHECK_NETWORK}") from None
        return content

    def pages(self, service: str, path: str, key: str, query: dict[str, Any] | None = None) -> list[Any]:
        """Return all items under `key` of a listing, whatever the number of its pages. Raise ApiError."""
        items: list[Any] = []
        token = ""
        while True:
            answer = self.call(service, "GET", path, query={**(query or {}), **({"pageToken": token} if token else {})})
            items += answer.get(key, [])
            if not (token := answer.get("nextPageToken", "")):
                return items


def base(service: str) -> str:
    """Return the base URL of a service; gcloud's own variable can name another, such as a private endpoint."""
    override = os.environ.get(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}")
    return f"{override.rstrip('/')}/" if override else BASES[service]


def _unanswered(error: Exception) -> str:
    """Return why a call got no answer, the network or the login, each with its own remedy."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(" ".join(map(str, causes)).split())
    if not any(isinstance(c, (auth.TransportError, requests.RequestException)) for c in causes):
        return f"Google does not accept the login ({str(error.args[0] if error.args else error)[:100]}); {LOGIN}"
    host = re.search(r"host='([^']+)'", text)
    short = next((explanation for sign, explanation in NETWORK if sign in text.lower()), text[:100])
    return f"Google cannot be reached ({f'{host[1]}: ' if host else ''}{short}); {CHECK_NETWORK}"


def _said(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"]["message"]).splitlines()[0][:300]
    except (ValueError, KeyError, IndexError, TypeError):
        return answer.reason
