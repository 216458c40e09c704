"""A VM's way to Cloud Storage: it reaches the storage server if the VM's account may, and if no fault is set."""

import contextlib
import functools
import http.client
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

from tests.google_cloud import storage_rights
from tests.google_cloud.buckets import Storage
from tests.google_cloud.cloud import Cloud, CloudError
from tests.google_cloud.metadata import tokens_of

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
            request = storage_rights.Request(self.command, self.path, self.headers.get("Content-Type") or "", body)
            try:
                self._send(*self._answer(request))
            except CloudError as error:
                self._send(error.status, [("Content-Type", "application/json")], json.dumps(error.to_json()).encode())

        def _answer(self, request: storage_rights.Request) -> tuple[int, list[tuple[str, str]], bytes]:
            """Return the storage server's answer. Raise CloudError where Google refuses."""
            rights = storage_rights.rights(request)
            if rights is None:
                raise CloudError(404, "notFound", f"storage has no {self.command} {self.path}")
            for right in rights:
                self._require(right)
            if (name := storage_rights.written(request)) is not None:
                found = f"/storage/v1/b/{storage_rights.bucket_of(request)}/o/{quote(name, safe='')}?fields=name"
                if Storage(cloud.storage).request("GET", found)[0] == 200:
                    self._require(storage_rights.if_overwritten(request))
            answer = self._ask(request.body)
            if answer[0] < 300:  # Google bills no operation that failed
                cloud.tell("request", instance, self.command, self.path)
            if answer[0] == 404 and len(rights) == 1 and "/objects/" in rights[0].resource:
                self._require(storage_rights.if_missing(rights[0]))
            return answer

        def _require(self, right: storage_rights.Right) -> None:
            tokens_of(cloud).require(account, right.permission, right.resource, right.attributes)

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
