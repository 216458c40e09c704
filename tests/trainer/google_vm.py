"""One Google VM for tests: a metadata server, and the REST services that the trainer calls."""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.google_cloud import discovery
from tests.google_cloud.metadata import MetadataServer, tree
from tests.trainer.running import ROOT, Run
from tests.warm import Process
from trainer.storage.factory import open_storage

PROJECT, ZONE, STACK = "my-project", "us-central1-a", "dev"
JOB = f"projects/{PROJECT}/locations/us-central1/jobs/gpt2-dev-controller-0123abcd"


@dataclass
class Rest:
    """A REST server that notes calls and answers those that Google's discovery documents know.

    `refuse` returns the status of an error, or None.
    """

    refuse: Callable[[str], int | None] = lambda path: None
    # Each entry has the service with the path, and the body, of a call that was not refused.
    calls: list[tuple[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # these calls are unknown to Google
    end_vm: Callable[[], None] = lambda: None  # called when the scheduler's job is run, as the controller ends the VM

    def paths(self, service: str) -> list[str]:
        return [path.removeprefix(f"{service}/") for path, _ in self.calls if path.startswith(f"{service}/")]

    def points(self, metric: str) -> list[float]:
        """Return the values of a metric, in the order in which they were written."""
        bodies = [body for path, body in self.calls if path.startswith("monitoring/")]
        series = [one for body in bodies for one in body["timeSeries"] if one["metric"]["type"] == metric]
        return [float(next(iter(one["points"][0]["value"].values()))) for one in series]


class Vm:
    """A run's machine with the parts of Google that it sees; start() starts its processes."""

    def __init__(self, folder: Path, role: str = "master", **attributes: str) -> None:
        self.role = role
        self.name = "master-0" if role == "master" else f"{role}-x7kq"
        self.rest = Rest()
        self.lines = folder / f"{self.name}.log"
        known = {"gpt2-stack": STACK, "gpt2-role": role, "gpt2-controller": JOB if role == "master" else ""}
        instance = {
            "id": "1", "name": f"dev-{role}-0123abcd-x7kq", "zone": ZONE, "machineType": "n1-standard-4",
            "ip": "127.0.0.1", "preemptible": "TRUE",
        }  # fmt: skip
        token = {"access_token": "ya29.test", "expires_in": 3599, "token_type": "Bearer"}
        account = f"gpt2-dev-{role}@{PROJECT}.iam.gserviceaccount.com"
        self.metadata = MetadataServer(tree(PROJECT, instance, {**known, **attributes}, account, lambda: token))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.rest))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        here = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "GCE_METADATA_HOST": self.metadata.address,
            "GCE_METADATA_IP": self.metadata.address,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDSCHEDULER": f"{here}/cloudscheduler/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_MONITORING": f"{here}/monitoring/v3/",
            "CLOUDSDK_CONFIG": str(folder / "no-gcloud"),
        }
        self.process: Process | None = None

    def start(self, run: Run) -> Process:
        # fmt: off
        command = [
            sys.executable, "-m", "trainer", "--bucket", run.storage.url, "--run", run.spec.run, "--name", self.name,
            "--role", self.role, "--platform", "google",
        ]
        # fmt: on
        environment = {k: v for k, v in os.environ.items() if k != "GOOGLE_APPLICATION_CREDENTIALS"}
        with self.lines.open("ab") as log:
            self.process = Process(command, ROOT, {**environment, **self.environment}, log.fileno())
        self.rest.end_vm = self.process.terminate
        run.machines[self.name] = self.process  # the run's end() kills the process if it is left
        return self.process

    def said(self, words: str) -> bool:
        return words in self.lines.read_text()

    def close(self) -> None:
        self.metadata.close()
        self._server.shutdown()
        self._server.server_close()


def into_bucket(run: Run, url: str) -> Run:
    """Return the same run in a gs:// bucket."""
    content = run.storage.read(run.spec.data.path)
    run.storage = open_storage(url)
    run.storage.write(run.spec.data.path, content)
    run.write_spec()
    return run


def _handler(rest: Rest) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            _, service, _, path = self.path.split("/", 3)
            try:
                assert self.headers["Authorization"] == "Bearer ya29.test"
                discovery.api(service).check("POST", path, {}, body)
            except (discovery.Refused, AssertionError) as error:
                rest.wrong.append(str(error))
                return self._send(400, {"error": {"message": str(error)}})
            status = rest.refuse(f"{service}/{path}")
            if status:
                return self._send(status, {"error": {"message": "The caller does not have permission"}})
            rest.calls.append((f"{service}/{path}", body))
            self._send(200, {})
            if path.endswith(":run"):
                rest.end_vm()
            return None

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    return Handler
