"""The parts of Google's REST APIs that our own code calls, each call checked against Google's discovery documents.

A call or an answer of ours that the documents do not know is a violation: GET /violations lists them, and a test fails
for them at its end, even if the caller swallowed the error.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.google_cloud.cloud import Cloud, CloudError, Json
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.discovery import UNDOCUMENTED, VERSIONS, Method, Refused, api
from tests.google_cloud.metadata import tokens_of

IMAGE = re.compile(
    r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/[^:@]+"
    r"(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?"
)


@dataclass(frozen=True)
class Call:
    """A request to a method, checked."""

    cloud: Cloud
    account: str  # the e-mail address of the caller
    parts: dict[str, str]  # the parameters in the path
    query: dict[str, Any]
    body: Json

    def page(self, key: str, items: list[Any], size: str = "maxResults") -> Json:
        """Return the requested part of a listing."""
        start, count = int(self.query.get("pageToken") or 0), int(self.query.get(size) or 500)
        more = {"nextPageToken": str(start + count)} if start + count < len(items) else {}
        return {key: items[start : start + count], **more}


Play = Callable[[Call], Json]


@dataclass(frozen=True)
class Played:
    """A method's function. permission: the caller's needed permission, if any; on: the resource, with parameters."""

    permission: str
    on: str
    play: Play


@dataclass
class RestFault:
    """An answer in place of a call."""

    method: str  # a regular expression that is searched in "method path"
    status: int = 503
    times: int = -1  # the number of calls; -1 means all


@functools.cache
def rest_faults(cloud: Cloud) -> list[RestFault]:
    """Return the requested faults of a cloud's REST methods, which cloud.lock guards."""
    return []


def _trouble(cloud: Cloud, asked: str) -> None:
    """Raise CloudError where a fault is set for this call."""
    with cloud.lock:
        for fault in rest_faults(cloud):
            if fault.times and re.search(fault.method, asked):
                fault.times -= 1 if fault.times > 0 else 0
                raise CloudError(fault.status, "backendError", "The service is currently unavailable.")


@functools.cache
def violations_of(cloud: Cloud) -> list[str]:
    """Return a cloud's violations, which cloud.lock guards."""
    return []


def caller(cloud: Cloud, request: Request) -> str:
    """Return the account whose token came with a request. Raise CloudError 401."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return tokens_of(cloud).account(token if kind == "Bearer" else "")


def register(cloud: Cloud) -> list[Route]:
    from tests.google_cloud import login, rest_compute, rest_services, timeseries

    methods = {**rest_compute.METHODS, **rest_services.METHODS, **timeseries.METHODS, **login.METHODS}

    def violate(text: str) -> None:
        with cloud.lock:
            violations_of(cloud).append(text)

    def serve(request: Request, match: re.Match[str]) -> tuple[int, Any]:
        account = caller(cloud, request)
        service, version, path = match["service"], match["version"], match["path"]
        query = {name: values[0] if len(values) == 1 else values for name, values in request.query.items()}
        body = request.json()
        try:
            method, parts = _check(service, version, request.verb, path, query, body)
        except Refused as refused:
            violate(str(refused))
            raise CloudError(400, "INVALID_ARGUMENT", str(refused)) from None
        played = methods.get(method.id)
        if played is None:
            violate(f"{method.id} exists, but the stand-in cloud does not play it")
            raise CloudError(501, "notImplemented", f"the stand-in cloud does not play {method.id}")
        if played.permission:
            if project := re.match(r"projects/([^/:]+)", path):
                cloud.require_api(project[1], service)
            tokens_of(cloud).require(account, played.permission, played.on.format(**parts))
        _trouble(cloud, f"{method.id} {path}")
        answer = played.play(Call(cloud, account, parts, query, body))
        if service not in UNDOCUMENTED:
            try:
                api(service).check_answer(method, answer)
            except Refused as refused:
                violate(f"our own answer: {refused}")
                raise CloudError(500, "internalError", str(refused)) from None
        return 200, answer

    def docker_login(request: Request, _: re.Match[str]) -> tuple[int, Any]:
        """Answer docker login: like Artifact Registry, it accepts any issued token."""
        return 200, {"account": tokens_of(cloud).account(request.json()["token"])}

    def pull(request: Request, _: re.Match[str]) -> tuple[int, Any]:
        """Answer docker pull, {image: NAME@sha256:..., token}, with the digest, if the token's account may read it."""
        asked = request.json()
        image = IMAGE.fullmatch(asked["image"])
        if image is None:
            raise CloudError(400, "invalid", f"invalid reference: {asked['image']}")
        place = "projects/{project}/locations/{location}/repositories/{repository}".format(**image.groupdict())
        tokens = tokens_of(cloud)
        tokens.require(tokens.account(asked["token"]), "artifactregistry.repositories.downloadArtifacts", place)
        with cloud.lock:
            if (digest := cloud.images.get(asked["image"])) is None:
                raise CloudError(404, "notFound", f"manifest for {asked['image']} not found: manifest unknown")
        return 200, {"digest": digest}

    def clear(*_: object) -> tuple[int, Any]:
        """Forget the violations that a test made on purpose and has read."""
        with cloud.lock:
            violations_of(cloud).clear()
        return 200, {}

    def break_calls(request: Request, _: re.Match[str]) -> tuple[int, Any]:
        """Request a RestFault by its fields; without fields all faults end."""
        asked = request.json()
        with cloud.lock:
            rest_faults(cloud)[:] = [RestFault(**asked)] if asked else []
        return 200, {}

    services = "|".join([*VERSIONS, *UNDOCUMENTED])
    path = rf"/(?P<service>{services})/(?P<version>v\d+\w*)/(?P<path>.+)"
    return [
        *((verb, path, serve) for verb in ("GET", "POST", "PUT", "PATCH", "DELETE")),
        ("POST", "/docker/login", docker_login),
        ("POST", "/docker/pull", pull),
        ("POST", "/rest/faults", break_calls),
        ("POST", "/violations/clear", clear),
        ("GET", "/violations", lambda *_: (200, list(violations_of(cloud)))),
    ]


def _check(
    service: str, version: str, verb: str, path: str, query: dict[str, Any], body: Json
) -> tuple[Method, dict[str, str]]:
    if version != (VERSIONS | UNDOCUMENTED)[service]:
        raise Refused(f"{service} is used in version {(VERSIONS | UNDOCUMENTED)[service]}, not {version}")
    if service in UNDOCUMENTED:
        return _check_quotas(verb, path, query)
    method = api(service).check(verb, path, query, body)
    return method, api(service).parts(method, path)


def _check_quotas(verb: str, path: str, query: dict[str, Any]) -> tuple[Method, dict[str, str]]:
    """Check a call against the reference of Cloud Quotas: projects.locations.services.quotaInfos has list and get."""
    place = r"(?P<parent>projects/(?P<project>[^/]+)/locations/global/services/[^/]+)/quotaInfos"
    for name, pattern, known in (
        ("list", place, {"pageSize", "pageToken"}),
        ("get", rf"{place}/(?P<quota>[^/]+)", set()),
    ):
        match = re.fullmatch(pattern, path)
        if verb == "GET" and match and not query.keys() - known - {"alt", "fields"}:
            method = f"cloudquotas.projects.locations.services.quotaInfos.{name}"
            return Method(method, verb, re.compile(pattern), {}, None, None), match.groupdict()
    raise Refused(f"cloudquotas has no {verb} {path} with {sorted(query)}")
