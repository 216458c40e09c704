"""A real storage server for tests (fake-gcs-server), and a proxy before it that makes the network fail on demand."""

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from tools.go_tools import ToolError, build
from trainer.storage import google


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(Exception):
    """fake-gcs-server did not start; the message is its output."""


@contextlib.contextmanager
def fake_gcs_server(log: Path) -> Iterator[str]:
    """Start a server that keeps its objects in memory; yield its host:port.

    Raise ToolError where it cannot be built.
    """
    program = build("fake-gcs-server")
    for _ in range(3):  # another process may take the port first
        address = f"127.0.0.1:{_free_port()}"
        process = _start(program, address, log)
        try:
            if _answers(process, address):
                yield address
                return
        finally:
            process.kill()  # it has nothing to save
            process.wait()
    raise NotStarted(log.read_text()[-2000:])


@pytest.fixture(scope="session")
def gcs_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield host:port of a server that runs until the tests end."""
    try:
        with fake_gcs_server(tmp_path_factory.mktemp("gcs") / "log") as address:
            yield address
    except ToolError as error:
        pytest.skip(f"no fake-gcs-server: {error}")


def _start(program: Path, address: str, log: Path) -> "subprocess.Popen[bytes]":
    port = address.rpartition(":")[2]
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-log-level", "error"]
    urls = ["-public-host", address, "-external-url", f"http://{address}"]
    with log.open("wb") as file:
        return subprocess.Popen([program, *options, *urls], stdout=file, stderr=file)


def _answers(process: "subprocess.Popen[bytes]", address: str) -> bool:
    host, _, port = address.partition(":")
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            connection.request("GET", "/_internal/healthcheck")
            return connection.getresponse().status == 200
        except OSError:
            continue  # the loop has no pause, as the start takes some milliseconds
    return False


@pytest.fixture
def gcs_bucket(gcs_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the gs:// address of a new, empty bucket; STORAGE_EMULATOR_HOST leads to it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{gcs_address}")
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    gcs.Client(project="test", credentials=AnonymousCredentials()).create_bucket(name)
    return f"gs://{name}"


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    cut_after: int | None = None  # after this many bytes of the body the connection breaks


@dataclass
class Faults:
    """The proxy's hooks; each sees the method and path (with query) of a request."""

    # It may return a status to answer without the server.
    before: Callable[[str, str], int | None] = lambda method, path: None
    after: Callable[[str, str, Answer], None] = lambda method, path, answer: None  # it may change the answer
    requests: list[str] = field(default_factory=list)  # "METHOD path" of each request, in their order


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client was killed in the middle of a request
            super().handle_error(request, client_address)


@contextlib.contextmanager
def failing_proxy(upstream: str) -> Iterator[tuple[str, Faults]]:
    """Start a proxy before a server at `upstream`; yield its host:port and the hooks that make it fail."""
    faults = Faults()
    server = _Server(("127.0.0.1", 0), _handler(upstream, faults))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def gcs_faults(gcs_address: str, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Put a proxy before gcs_bucket; set its hooks to make the network or the server fail. Retries are quick."""
    with failing_proxy(gcs_address) as (address, faults):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{address}")
        monkeypatch.setattr(google, "RETRY", google.RETRY.with_delay(0.01, 0.05).with_timeout(20))
        yield faults


def _handler(upstream: str, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.requests.append(f"{self.command} {self.path}")
            refused = faults.before(self.command, self.path)
            answer = Answer(refused, [], b"") if refused is not None else self._ask(body)
            if refused is None:
                faults.after(self.command, self.path, answer)
            with contextlib.suppress(ConnectionError):  # the client may have left
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut_after])
            self.close_connection = answer.cut_after is not None

        def _ask(self, body: bytes) -> Answer:
            connection = http.client.HTTPConnection(upstream, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            here = self.headers["Host"]
            passed = [
                (name, value.replace(upstream, here))  # this changes the Location of a resumable upload
                for name, value in response.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
            return Answer(response.status, passed, response.read())

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _pass_on  # noqa: N815  (the base class asks for these)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
