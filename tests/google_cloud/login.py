"""Logins without a key: the Security Token Service, the IAM Credentials API, and what a job might then try.

A test makes a token as GitHub does, but nobody signs it. Pools, providers and grants are the cloud's resources.
"""

import base64
import functools
import json
import re
import secrets
from typing import Any

from tests.google_cloud import iam
from tests.google_cloud.clock import clock_of, stamp
from tests.google_cloud.cloud import Behaviour, Cloud, CloudError, Json
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.discovery import api
from tests.google_cloud.federation import POOL, PROVIDER, Refused, attributes, check_provider, is_member
from tests.google_cloud.metadata import LIFETIME, project_number, tokens_of
from tests.google_cloud.rest import Call, Played

EXCHANGE = {
    "grantType": "urn:ietf:params:oauth:grant-type:token-exchange",
    "requestedTokenType": "urn:ietf:params:oauth:token-type:access_token",
    "subjectTokenType": "urn:ietf:params:oauth:token-type:jwt",
}
DENIED = "Permission '{}' denied on resource (or it may not exist)."


def unsigned_token(claims: Json) -> str:
    """Return a JSON Web Token whose signature is no signature."""
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "signature"])


@functools.cache
def _federated(cloud: Cloud) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the federated tokens with the pool and the attributes of each; cloud.lock guards them."""
    return {}


class _Numbered(Behaviour):
    """A pool or a provider, whose name has the project's number."""

    def check_create(self, props: Json) -> None:
        if self.token == PROVIDER:
            try:
                check_provider(props)
            except Refused as refused:
                raise CloudError(400, "INVALID_ARGUMENT", str(refused)) from None

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        return {"name": id.replace(f"projects/{props['project']}/", f"projects/{project_number(props['project'])}/")}


def _exchange(cloud: Cloud, body: Json) -> Json:
    """Answer sts.token. Raise Refused."""
    provider = next(
        (p for p in cloud.find(PROVIDER) if body["audience"] == f"//iam.googleapis.com/{p.state['name']}"), None
    )
    if provider is None or any(body.get(key) != value for key, value in EXCHANGE.items()):
        raise Refused('Invalid value for "audience" or for a token\'s type.')
    cloud.require_api(provider.state["project"], "sts")
    payload = body["subjectToken"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    if claims.get("aud") != f"https:{body['audience']}":
        raise Refused("The audience in ID Token does not match the expected audience.")
    mapped = attributes(provider.state, claims)
    token = f"federated.{secrets.token_urlsafe(24)}"
    with cloud.lock:
        _federated(cloud)[token] = (provider.state["name"].partition("/providers/")[0], mapped)
    kind = "urn:ietf:params:oauth:token-type:access_token"
    return {"access_token": token, "expires_in": LIFETIME, "issued_token_type": kind, "token_type": "Bearer"}


def _become(cloud: Cloud, bearer: str, email: str) -> Json:
    """Answer iamcredentials.projects.serviceAccounts.generateAccessToken."""
    account = next(iter(cloud.find(iam.ACCOUNT, email=email)), None)
    permission = "iam.serviceAccounts.getAccessToken"
    if account is None:
        raise CloudError(404, "NOT_FOUND", "Not found; Gaia id not found for email " + email)
    cloud.require_api(account.state["project"], "iamcredentials")
    with cloud.lock:
        pool, mapped = _federated(cloud).get(bearer, ("", {}))
    if mapped:
        grants = [grant for grant in iam.grants(cloud) if grant.resource == account.state["name"]]
        if not any(
            permission in iam.ROLES.get(grant.role, ()) and is_member(mapped, pool, grant.member) for grant in grants
        ):
            raise CloudError(403, "PERMISSION_DENIED", DENIED.format(permission))
    else:
        tokens_of(cloud).require(tokens_of(cloud).account(bearer), permission, account.state["name"])
    issued = tokens_of(cloud).issue(email)
    return {"accessToken": issued["access_token"], "expireTime": stamp(clock_of(cloud).now() + LIFETIME)}


def _template(call: Call) -> Json:
    """Refuse a template that runs as an account as which the caller may not act."""
    for account in call.body.get("properties", {}).get("serviceAccounts", []):
        place = f"projects/{call.parts['project']}/serviceAccounts/{account['email']}"
        tokens_of(call.cloud).require(call.account, "iam.serviceAccounts.actAs", place)
    return _unplayed(call)


def _unplayed(call: Call) -> Json:
    raise CloudError(501, "notImplemented", f"the stand-in cloud allows this to {call.account}, and does not do it")


METHODS = {  # calls by which an account would raise itself: only their refusal is played
    "cloudresourcemanager.projects.setIamPolicy": Played(
        "resourcemanager.projects.setIamPolicy", "projects/{resource}", _unplayed
    ),
    "iam.projects.roles.patch": Played("iam.roles.update", "{name}", _unplayed),
    "iam.projects.serviceAccounts.setIamPolicy": Played("iam.serviceAccounts.setIamPolicy", "{resource}", _unplayed),
    "iam.projects.serviceAccounts.keys.create": Played("iam.serviceAccountKeys.create", "{name}", _unplayed),
    "iam.projects.locations.workloadIdentityPools.providers.patch": Played(
        "iam.workloadIdentityPoolProviders.update", "{name}", _unplayed
    ),
    "compute.instanceTemplates.insert": Played("", "", _template),
}


def register(cloud: Cloud) -> list[Route]:
    for token in (POOL, PROVIDER):
        cloud.behaviours[token] = _Numbered(cloud, token)

    def get_account(args: Json) -> Json:
        cloud.require_api(str(args["project"]), "iam")
        for account in cloud.find(iam.ACCOUNT, project=args["project"]):
            if args["accountId"] in (account.state["email"], account.state["accountId"], account.state["name"]):
                return {"id": account.state["name"], **account.state}
        raise CloudError(404, "notFound", f'Service Account "{args["accountId"]}" not found')

    def exchange(request: Request, _: re.Match[str]) -> tuple[int, Any]:
        body = request.json()
        method = api("sts").check("POST", "token", {}, body)
        try:
            answer = _exchange(cloud, body)
        except Refused as refused:  # this service answers in OAuth's form
            return 400, {"error": "unauthorized_client", "error_description": str(refused)}
        api("sts").check_answer(method, answer)
        return 200, answer

    def become(request: Request, match: re.Match[str]) -> tuple[int, Any]:
        method = api("iamcredentials").check("POST", match["path"], {}, request.json())
        answer = _become(cloud, request.headers.get("authorization", "").removeprefix("Bearer "), match["email"])
        api("iamcredentials").check_answer(method, answer)
        return 200, answer

    cloud.invokes["gcp:serviceaccount/getAccount:getAccount"] = get_account
    return [
        ("POST", "/sts/v1/token", exchange),
        (
            "POST",
            r"/iamcredentials/v1/(?P<path>projects/-/serviceAccounts/(?P<email>[^/:]+):generateAccessToken)",
            become,
        ),
    ]
