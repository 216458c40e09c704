"""A local server in place of Google's REST APIs.

Its answers are scripted, and each call is checked against Google's documents.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.google_cloud import discovery
from trainer.gcloud.api import BASES

# Quotas that the reference job fits into: those of a region, and those of a project.
ENOUGH = {
    "CPUS": 1000,
    "PREEMPTIBLE_CPUS": 1000,
    "NVIDIA_T4_GPUS": 20,
    "PREEMPTIBLE_NVIDIA_T4_GPUS": 20,
    "SSD_TOTAL_GB": 5000,
    "INSTANCES": 100,
}
EVERYWHERE = {"GPUS_ALL_REGIONS": 20, "CPUS_ALL_REGIONS": 500}

discovery.VERSIONS.setdefault("storage", "v1")  # google-cloud-storage calls it at the address of STORAGE_EMULATOR_HOST
WITHOUT_DOCUMENT = {"cloudquotas"}  # google-api-python-client does not contain its document
Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    service: str
    verb: str
    path: str  # the path behind the service's base
    query: dict[str, list[str]]
    body: Any


@dataclass
class FakeGoogle:
    """Answer calls as on() sets it, the newest setting first; answer 404 to all others."""

    url: str
    calls: list[Call] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # calls and answers that Google's documents do not know
    _answers: list[tuple[str, str, str, int, Any]] = field(default_factory=list)

    def on(self, service: str, verb: str, path: str, answer: Json | Callable[[Call], Json], status: int = 200) -> None:
        """Set an answer. path: a regular expression for the whole path."""
        self._answers.insert(0, (service, verb, path, status, answer))

    def deny(self, service: str, path: str = ".*", status: int = 403, message: str = "no permission") -> None:
        for verb in ("GET", "POST"):
            self.on(service, verb, path, {"error": {"code": status, "message": message}}, status)

    def paths(self, service: str) -> list[str]:
        return [call.path for call in self.calls if call.service == service]

    def answer(self, call: Call) -> tuple[int, Json]:
        self.calls.append(call)
        try:
            api = None if call.service in WITHOUT_DOCUMENT else discovery.api(call.service)
            method = api.check(call.verb, call.path, call.query, call.body) if api else None
            for service, verb, path, status, answer in self._answers:
                if (service, verb) == (call.service, call.verb) and re.fullmatch(path, call.path):
                    body = answer(call) if callable(answer) else answer
                    if api and method and status == 200:
                        api.check_answer(method, body)
                    return status, body
        except discovery.Refused as error:
            self.refused.append(str(error))
            return 400, {"error": {"code": 400, "message": str(error)}}
        return 404, {"error": {"code": 404, "message": f"{call.path} was not found"}}


@pytest.fixture(scope="session")
def service_account_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption()).decode()


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_account_key: str) -> Iterator[FakeGoogle]:
    """Log somebody in and direct all services to the local server. At the end no call may have been refused."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    fake = FakeGoogle(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = _handler(fake)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    key = {
        "type": "service_account",
        "client_email": "tester@test-project.iam.gserviceaccount.com",
        "private_key": service_account_key,
        "token_uri": f"{fake.url}/token",
        # With this domain google-auth asks nobody else: neither for a token nor for allowed regions.
        "universe_domain": "test",
    }
    path = tmp_path / "google-key.json"
    path.write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    for service in BASES:
        monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}", f"{fake.url}/{service}/")
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()
    assert fake.refused == []


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log everybody out, without a metadata server to ask."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no-gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def _handler(fake: FakeGoogle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body go in one packet: otherwise each answer waits 40 ms for an acknowledgement

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            _, service, path = parts.path.replace("/storage/v1/", "/storage/", 1).split("/", 2)
            content = json.loads(body) if body else None
            status, found = fake.answer(Call(service, self.command, unquote(path), parse_qs(parts.query), content))
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer  # noqa: N815  (the base class asks for these)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def project(folder: Path, stack: str = "dev", **further: Any) -> Path:
    """Make a folder with a stack file for Google Cloud; further keys replace or join those of gpt2-training."""
    import yaml

    values: Json = {
        "platform": "google",
        "trainingInput": {
            "masterType": "n1-highmem-16",
            "workerType": "n1-highmem-16",
            "workerCount": 10,
            "parameterServerType": "n1-highmem-8",
            "parameterServerCount": 3,
            "hyperparameters": {"learningRate": 0.01, "batchSize": 32},
        },
        "model": {"size": "gpt2"},
        "data": {"path": "data/my.txt", "tokenizer": "gpt2"},
        "machines": {"accelerator": {"type": "nvidia-tesla-t4", "count": 1}, "spot": True},
        **further,
    }
    own = {f"gpt2-training:{name}": value for name, value in values.items() if value is not None}
    provider = {"gcp:project": "test-project", "gcp:region": "us-central1"}
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": {**provider, **own}}))
    return folder
