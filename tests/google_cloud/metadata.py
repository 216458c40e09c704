"""The metadata server of one VM, and the access tokens that such servers hand out.

It answers as Google's does: only with the header Metadata-Flavor: Google, values as text, folders as JSON with
recursive=true, and with wait_for_change=true only once the value differs from that of last_etag.
"""

import contextlib
import functools
import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.google_cloud.cloud import Cloud, CloudError

FLAVOR = ("Metadata-Flavor", "Google")
ROOT = "/computeMetadata/v1/"
LIFETIME = 3599  # seconds that a token is valid
ACCOUNT = "gcp:serviceaccount/account:Account"
DEPLOYER = "deployer@stand-in.iam.gserviceaccount.com"  # the account that runs pulumi and the scripts may do everything
DEPLOYERS_TOKEN = "stand-in-deployer"  # the daemon's own token endpoint hands it out


class Tokens:
    """The access tokens with their accounts."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._accounts = {DEPLOYERS_TOKEN: DEPLOYER}

    def issue(self, account: str) -> dict[str, Any]:
        token = f"ya29.{secrets.token_urlsafe(24)}"
        with self._cloud.lock:
            self._accounts[token] = account
        return {"access_token": token, "expires_in": LIFETIME, "token_type": "Bearer"}

    def account(self, token: str) -> str:
        """Return a token's account. Raise CloudError 401 for a token that nobody issued, or whose account is gone."""
        with self._cloud.lock:
            account = self._accounts.get(token, "")
        if not account or (account != DEPLOYER and not self._cloud.find(ACCOUNT, email=account)):
            raise CloudError(401, "authError", "Request had invalid authentication credentials.")
        return account

    def require(self, account: str, permission: str, resource: str, attributes: dict[str, Any] | None = None) -> None:
        """Raise CloudError 403 unless the account may do that. attributes: of the API, as conditions ask for them."""
        member = f"serviceAccount:{account}"
        if account != DEPLOYER and not self._cloud.allowed(member, permission, resource, attributes):
            message = f"{account} does not have {permission} access: Permission '{permission}' denied on '{resource}'"
            raise CloudError(403, "forbidden", message)


@functools.cache
def tokens_of(cloud: Cloud) -> Tokens:
    return Tokens(cloud)


class MetadataServer:
    """A server that listens on a loopback port until close().

    tree: folders are dicts, values strings or functions that make one on demand. The keys are those of the address.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree
        self._changed = threading.Condition()
        self._closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        serve = functools.partial(self._server.serve_forever, poll_interval=0.05)
        threading.Thread(target=serve, name=f"metadata {self.address}", daemon=True).start()

    def set(self, path: str, value: str) -> None:
        """Change a value, and answer the requests that wait for it."""
        *folders, name = path.split("/")
        with self._changed:
            functools.reduce(lambda node, part: node[part], folders, self._tree)[name] = value
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, str, str, str]:
        """Return HTTP status, body, content type and etag."""
        deadline = time.monotonic() + float(query.get("timeout_sec") or 3600)
        with self._changed:
            first = self._read(path, query)
            if first is None:
                return 404, "Not Found", "text/html", ""
            known = query.get("last_etag", _etag(first[0]))
            value = first
            while query.get("wait_for_change") == "true" and not self._closed and known == _etag(value[0]):
                if not self._changed.wait(deadline - time.monotonic()):
                    break
                value = self._read(path, query) or first
        return 200, *value, _etag(value[0])

    def _read(self, path: str, query: dict[str, str]) -> tuple[str, str] | None:
        node: Any = self._tree
        for part in filter(None, path.split("/")):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        if callable(node):
            node = node()
        if not isinstance(node, dict):
            return node, "application/json" if node.startswith("{") else "application/text"
        if query.get("recursive") == "true":
            return json.dumps(_json(node)), "application/json"
        return "".join(f"{k}/\n" if isinstance(v, dict) else f"{k}\n" for k, v in node.items()), "application/text"


def tree(
    project: str,
    instance: dict[str, str],
    attributes: dict[str, str],
    account: str,
    issue: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Return the tree of a VM's server. instance: id, name, zone, machineType, ip, preemptible (TRUE or FALSE)."""
    number = project_number(project)
    place = f"projects/{number}"
    identity = {
        "aliases": "default",
        "email": account,
        "scopes": "https://www.googleapis.com/auth/cloud-platform\n",
        "token": lambda: json.dumps(issue()),
    }
    return {
        "instance": {
            "attributes": dict(attributes),
            "hostname": f"{instance['name']}.{instance['zone']}.c.{project}.internal",
            "id": instance["id"],
            "machine-type": f"{place}/machineTypes/{instance['machineType']}",
            "maintenance-event": "NONE",
            "name": instance["name"],
            "network-interfaces": {"0": {"ip": instance["ip"]}},
            "preempted": "FALSE",
            "scheduling": {"preemptible": instance["preemptible"]},
            "service-accounts": {"default": identity, account: dict(identity)},
            "zone": f"{place}/zones/{instance['zone']}",
        },
        "project": {"attributes": {}, "numeric-project-id": number, "project-id": project},
        "universe": {"universe-domain": "googleapis.com"},
    }


def project_number(project: str) -> str:
    return str(int.from_bytes(hashlib.sha256(project.encode()).digest()[:5], "big"))


def _json(node: dict[str, Any]) -> dict[str, Any]:
    """Return a folder in the form of recursive=true: keys in camelCase, without the tokens."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        name = re.sub(r"-(\w)", lambda match: match[1].upper(), key)
        if isinstance(value, dict):
            found[name] = _json(value)
        elif not callable(value):
            found[name] = value.split() if key in ("aliases", "scopes") else value
    return found


def _etag(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def _handler(metadata: MetadataServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            asked_rightly = self.headers.get(FLAVOR[0]) == FLAVOR[1] and "X-Forwarded-For" not in self.headers
            if not asked_rightly:
                self._send(403, "Missing required header: Metadata-Flavor: Google", "text/html", "")
            elif url.path == "/":  # google-auth asks whether this is Google Compute Engine at all
                self._send(200, "computeMetadata/\n", "application/text", "")
            elif url.path.startswith(ROOT):
                self._send(*metadata.answer(url.path.removeprefix(ROOT), query))
            else:
                self._send(404, "Not Found", "text/html", "")

        def _send(self, status: int, text: str, kind: str, etag: str) -> None:
            body = text.encode()
            with contextlib.suppress(ConnectionError):  # the VM may have ended meanwhile
                self.send_response(status)
                for name, value in (FLAVOR, ("Content-Type", kind), ("ETag", etag), ("Content-Length", str(len(body)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
