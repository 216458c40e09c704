"""The stand-in cloud as a process: python -m tests.google_cloud.daemon --folder F --port-file P

It listens on loopback only; STORAGE_EMULATOR_HOST must lead to a fake-gcs-server. A module of MOUNTED that exists is
imported and its `register(cloud)` called; that sets behaviours and invokes in the cloud and returns routes:

    def register(cloud: Cloud) -> list[Route]: ...
    Route = (verb, regex that matches the whole path without query, handler)
    handler(request: Request, match: re.Match[str]) -> (status, JSON body or None)

A handler may raise CloudError. Each request runs in a thread of its own, so a handler may wait.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.google_cloud import buckets, iam, images, names
from tests.google_cloud.answers import Json, answered
from tests.google_cloud.cloud import Cloud, CloudError, Fault, Resource

MOUNTED = ("compute", "login", "monitoring", "rest", "scheduler", "workflows", "account")


@dataclass(frozen=True)
class Request:
    verb: str
    path: str  # decoded, without the query
    query: dict[str, list[str]]
    headers: dict[str, str]  # the keys are in lower case
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; {} if there is none."""
        return json.loads(self.body) if self.body else {}


Handler = Callable[[Request, "re.Match[str]"], tuple[int, Any]]
Route = tuple[str, str, Handler]


def register(cloud: Cloud) -> list[Route]:
    """Return the routes of this module: the plugin's calls, faults, and requests of tests."""

    def create(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        ask = request.json()
        return 200, _answer(cloud.create(ask["token"], ask["props"], ask["given"], ask["project"]))

    def read(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        ask = request.json()
        found = cloud.read(ask["token"], ask["id"], ask["project"])
        return 200, _answer(found) if found else None

    def update(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        ask = request.json()
        return 200, _answer(cloud.update(ask["token"], ask["id"], ask["changed"], ask["removed"], ask["project"]))

    def delete(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        ask = request.json()
        cloud.delete(ask["token"], ask["id"], ask["project"])
        return 200, {}

    def invoke(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        ask = request.json()
        return 200, cloud.invoke(ask["token"], ask["args"])

    def faults(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        """Set {"delay": seconds} and/or the fields of a Fault; {"clear": true} ends all of them."""
        ask = request.json()
        with cloud.lock:
            if ask.pop("clear", False):
                cloud.faults.clear()
                cloud.delay = 0.0
            cloud.delay = float(ask.pop("delay", cloud.delay))
            if ask:
                cloud.faults.append(Fault(**ask))
        return 200, {}

    def resources(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        with cloud.lock:
            return 200, [r.to_json() for r in cloud.resources.values()]

    def change(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        """Change a resource by {"token", "id", "props"}; without props delete it."""
        ask = request.json()
        if (ask["token"], ask["id"]) not in cloud.resources:
            raise CloudError(404, "notFound", f"{ask['token']} {ask['id']} was not found")
        if "props" in ask:
            cloud.change(ask["token"], ask["id"], **ask["props"])
        else:
            cloud.forget(ask["token"], ask["id"])
        return 200, {}

    def apis(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        """Enable and disable APIs: {"enable": ["PROJECT/compute.googleapis.com"], "disable": [...]}.

        Return all that are enabled then.
        """
        ask = request.json()
        with cloud.lock:
            cloud.apis |= set(ask.get("enable", []))
            cloud.apis -= set(ask.get("disable", []))
            return 200, sorted(cloud.apis)

    def allowed(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        return 200, cloud.allowed(**request.json())

    def pushed(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        with cloud.lock:
            return 200, dict(cloud.images)

    def token(request: Request, match: "re.Match[str]") -> tuple[int, Any]:
        """Answer as OAuth's token endpoint, for the deployer."""
        return 200, {"access_token": "stand-in-deployer", "expires_in": 3600, "token_type": "Bearer"}

    calls = {"create": create, "read": read, "update": update, "delete": delete, "invoke": invoke}
    return [
        *(("POST", f"/provider/{name}", handler) for name, handler in calls.items()),
        ("POST", "/faults", faults),
        ("GET", "/resources", resources),
        ("POST", "/resources", change),
        ("POST", "/apis", apis),
        ("POST", "/allowed", allowed),
        ("GET", "/images", pushed),
        ("POST", "/token", token),
    ]


def _answer(found: Resource) -> Json:
    """Return a resource for the plugin, as Google's answer has it."""
    return {**found.to_json(), "state": answered(found.token, found.state)}


def handler_for(routes: list[Route]) -> type[BaseHTTPRequestHandler]:
    table = [(verb, re.compile(pattern), handler) for verb, pattern, handler in routes]

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                unquote(parts.path),
                parse_qs(parts.query, keep_blank_values=True),
                {k.lower(): v for k, v in self.headers.items()},
                self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            )
            try:
                status, body = self._find(request)
            except CloudError as error:
                status, body = error.status, error.to_json()
            except Exception as error:  # this is a fault of the stand-in cloud itself: the test must see its place
                traceback.print_exc()
                status, body = 500, CloudError(500, "standInBroken", f"{error!r}; see the daemon's log").to_json()
            content = b"" if status == 204 else json.dumps(body).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                self.close_connection = True  # the client is gone

        def _find(self, request: Request) -> tuple[int, Any]:
            for verb, pattern, handler in table:
                if verb == request.verb and (match := pattern.fullmatch(request.path)):
                    return handler(request, match)
            raise CloudError(404, "notFound", f"the stand-in cloud has no {request.verb} {request.path}")

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815  (the base class asks for these)

        def log_message(self, *_: object) -> None:
            pass

    return Answering


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()
    routes: list[Route] = []
    server = Server(("127.0.0.1", 0), handler_for([]))
    url = f"http://127.0.0.1:{server.server_port}"
    os.environ["GPT2_TRAINING_STANDIN"] = url  # every process that is started from here carries the mark
    cloud = Cloud(options.folder, url, os.environ["STORAGE_EMULATOR_HOST"])
    for module in (iam, buckets, images):
        module.register(cloud)
    routes += register(cloud)
    for name in MOUNTED:
        if importlib.util.find_spec(f"tests.google_cloud.{name}"):
            routes += importlib.import_module(f"tests.google_cloud.{name}").register(cloud)
    server.RequestHandlerClass = handler_for(routes)
    unknown = set(cloud.behaviours) - set(names.KINDS)
    assert not unknown, f"no such type: {unknown}"

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown).start()  # shutdown() waits for the loop, which this thread runs

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    part = options.port_file.with_suffix(".part")
    part.write_text(str(server.server_port))
    part.replace(options.port_file)
    server.serve_forever(poll_interval=0.05)
    for close in cloud.closing:
        try:
            close()
        except Exception:
            traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)  # handlers may still wait


if __name__ == "__main__":
    main()
