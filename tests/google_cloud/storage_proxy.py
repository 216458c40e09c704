"""A VM's way to Cloud Storage: it reaches the storage server if the VM's account may, and if no fault is set."""

import contextlib
import functools
import http.client
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.google_cloud.cloud import Cloud, CloudError
from tests.google_cloud.metadata import tokens_of

BUCKET = re.compile(
    r"(?:/download|/upload)?(?:/resumable)?/storage/v1/b/(?P<bucket>[^/?]+)(?P<objects>/o)?(?P<object>/.+)?"
)
OBJECTS = {"POST": "create", "PUT": "create", "DELETE": "delete", "PATCH": "update"}
LEFT_OUT = ("content-length", "transfer-encoding", "connection")  # these headers of an answer are written anew


@dataclass
class StorageFault:
    """An answer of storage in place of the requested operation."""

    status: int = 503
    times: int = -1  # the number of requests; -1 means all
    instance: str = ""  # only requests of this VM fail, if it is set
    only: str = ""  # a regular expression that is searched in "METHOD path"


@functools.cache
def storage_faults(cloud: Cloud) -> list[StorageFault]:
    """Return the faults of all VMs of a cloud, which cloud.lock guards."""
    return []


class StorageProxy:
    """A proxy that listens on a loopback port until close()."""

    def __init__(self, cloud: Cloud, account: str, instance: str) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cloud, account, instance))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = functools.partial(self._server.serve_forever, poll_interval=0.05)
        threading.Thread(target=serve, name=f"storage of {instance}", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def permission(verb: str, path: str) -> tuple[str, str]:
    """Return permission and bucket that a request to the storage API needs; ("", "") for an unknown path."""
    match = BUCKET.fullmatch(path)
    if match is None:
        return "", ""
    bucket = match["bucket"]
    if not match["objects"]:
        return "storage.buckets.get", bucket
    if verb in OBJECTS:
        return f"storage.objects.{OBJECTS[verb]}", bucket
    return "storage.objects.get" if match["object"] else "storage.objects.list", bucket


def _trouble(cloud: Cloud, instance: str, asked: str) -> int:
    """Return the status that a fault gives this request; 0 for none."""
    with cloud.lock:
        for fault in storage_faults(cloud):
            if fault.times and fault.instance in ("", instance) and re.search(fault.only, asked):
                fault.times -= 1 if fault.times > 0 else 0
                return fault.status
    return 0


def _handler(cloud: Cloud, account: str, instance: str) -> type[BaseHTTPRequestHandler]:
    upstream = cloud.storage.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status := _trouble(cloud, instance, f"{self.command} {self.path}"):
                self._send(status, [], b"")
                return
            needed, bucket = permission(self.command, urlsplit(self.path).path)
            try:
                if not needed:
                    raise CloudError(404, "notFound", f"storage has no {self.command} {self.path}")
                tokens_of(cloud).require(account, needed, f"buckets/{bucket}")
            except CloudError as error:
                self._send(error.status, [("Content-Type", "application/json")], json.dumps(error.to_json()).encode())
                return
            answer = self._ask(body)
            if answer[0] < 300:  # Google bills no operation that failed
                cloud.tell("request", instance, self.command, self.path)
            self._send(*answer)

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(upstream, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
            except OSError:
                return 502, [], b""
            finally:
                connection.close()
            here = self.headers["Host"]  # the Location of a resumable upload must lead here again
            passed = [(k, v.replace(upstream, here)) for k, v in response.getheaders() if k.lower() not in LEFT_OUT]
            return response.status, passed, content

        def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            with contextlib.suppress(ConnectionError):  # the VM may have ended meanwhile
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on  # noqa: N815  (the base class asks for these)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
