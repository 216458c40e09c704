"""infra/google/boot.sh as a machine runs it.

Servers answer for metadata, storage and scheduler; docker and what else an image may have are scripts that note their
calls. test_boot_image.py has what the images lack.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.google_cloud import vm_image
from tests.google_cloud.metadata import MetadataServer, tree
from trainer.runs.records import MachineStatus
from trainer.storage.factory import open_storage

BOOT = Path(__file__).resolve().parents[3] / "infra/google/boot.sh"
IMAGE = "us-central1-docker.pkg.dev/my-project/gpt2-dev/trainer@sha256:" + "ab" * 32
PATIENCE = 30.0  # seconds that anything may take on a busy machine
BUCKET = "my-project-dev-gpt2"
DATA = f"{BUCKET}-data"
WORDS = "runs/gpt2-0123abcd/machines/{}.json"
JOB = "projects/my-project/locations/us-central1/jobs/gpt2-dev-controller-0123abcd"
END = "runs/gpt2-0123abcd/ends/1.json"
# Each call takes the next line of the plan for its name, for docker of its first word (such as `pull`): `CODE WORDS`.
# Without a line its code is 0.
COMMAND = """#!/bin/bash
cd FOLDER
echo "NAME $*" >> calls
what=$1
[[ NAME == docker ]] || what=NAME
if [[ $* == --list-gpus ]]; then cat gpus; exit; fi
if [[ $what == login ]]; then cat >> passwords; fi
if [[ $what == stop ]]; then kill "$(cat running)"; fi
code=0 words=
if [[ -s plan-$what ]]; then
    read -r code words < "plan-$what"
    sed -i 1d "plan-$what"
fi
if [[ $code == wait ]]; then
    echo $$ > starting && mv starting running
    trap 'exit 143' TERM
    sleep 60 &>/dev/null & wait
fi
[[ -z $words || $code != 0 ]] || echo "$words"
[[ -z $words || $code == 0 ]] || echo "$words" >&2
exit "$code"
"""


class Google:
    """The parts of Storage's JSON API that boot.sh calls, and the scheduler's jobs.run. Both want a token."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}  # the objects of BUCKET
        self.data: dict[str, bytes] = {}  # the objects of DATA
        self.jobs: list[str] = []  # the jobs that were run
        self.enough = 1  # after so many of them the VM is ended, as the controller does at last
        self.end_vm: Callable[[], None] = lambda: None
        self.refusals: dict[str, int] = {}  # the number of first refusals of a path that ends like this
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self._server, self.url = server, f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def answer(self, verb: str, address: str, token: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(address)
        if not token.startswith("Bearer ya29."):
            return 401, b""
        for ending in [ending for ending, left in self.refusals.items() if left and url.path.endswith(ending)]:
            self.refusals[ending] -= 1
            return 403, b""
        query = parse_qs(url.query)
        if verb == "POST" and url.path == f"/upload/storage/v1/b/{BUCKET}/o" and query["uploadType"] == ["media"]:
            self.objects[query["name"][0]] = body
            return 200, b"{}"
        for bucket, objects in ((BUCKET, self.objects), (DATA, self.data)):
            if verb != "GET" or not url.path.startswith(f"/storage/v1/b/{bucket}/o/") or query["alt"] != ["media"]:
                continue
            found = objects.get(unquote(url.path.rpartition("/")[2]))
            return (404, b"") if found is None else (200, found)
        if verb == "POST" and url.path.startswith("/v1/") and url.path.endswith(":run") and json.loads(body) == {}:
            self.jobs.append(url.path.removeprefix("/v1/").removesuffix(":run"))
            if len(self.jobs) == self.enough:
                self.end_vm()
            return 200, b"{}"
        return 404, b""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(google: Google) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = google.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815  (the base class asks for these)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Boot:
    """A machine with a folder of its own, whose image has Docker and NVIDIA's toolkit; see the plans in COMMAND."""

    def __init__(self, folder: Path) -> None:
        self.google = Google()
        self.bin, self.root = folder / "bin", folder / "root"
        for path in (self.bin, *(self.root / name for name in ("dev", "etc/systemd/system", "usr/bin", "var/tmp"))):
            path.mkdir(parents=True)
        (self.root / "usr/local/bin").mkdir(parents=True)
        for name in vm_image.REAL.split():
            (self.root / "usr/bin" / name).symlink_to(str(shutil.which(name)))
        self.has("docker", "nvidia-smi", "nvidia-ctk", "systemctl")
        self.gpus(0)
        self.attributes = {
            "gpt2-bucket": f"gs://{BUCKET}", "gpt2-run": "gpt2-0123abcd", "gpt2-launch": "1",
            "gpt2-role": "worker", "gpt2-image": IMAGE, "gpt2-gpus": "0", "gpt2-stack": "dev",
        }  # fmt: skip
        self.environment = {
            "BOOT_PAUSE": "0",
            "BOOT_ROOT": str(self.root),
            "STORAGE_EMULATOR_HOST": self.google.url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDSCHEDULER": f"{self.google.url}/v1/",
        }
        self._servers: list[MetadataServer] = []

    def has(self, *names: str) -> None:
        """Put commands on PATH that note their calls."""
        for name in names:
            (self.bin / name).write_text(self.command(name))
            (self.bin / name).chmod(0o755)

    def lacks(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    def command(self, name: str) -> str:
        return COMMAND.replace("FOLDER", str(self.bin)).replace("NAME", name)

    def gpus(self, count: int) -> None:
        """Let nvidia-smi list this many GPUs."""
        (self.bin / "gpus").write_text("".join(f"GPU {i}: NVIDIA L4 (UUID: GPU-{i})\n" for i in range(count)))

    def plan(self, what: str, *lines: str) -> None:
        (self.bin / f"plan-{what}").write_text("".join(f"{line}\n" for line in lines))

    def calls(self, what: str = "docker ") -> list[str]:
        calls = self.bin / "calls"
        return [line for line in calls.read_text().splitlines() if line.startswith(what)] if calls.exists() else []

    def start(self) -> "subprocess.Popen[str]":
        instance = {
            "id": "1", "name": "dev-worker-0123abcd-x7kq", "zone": "us-central1-a", "machineType": "n1-highmem-16",
            "ip": "10.0.0.7", "preemptible": "TRUE",
        }  # fmt: skip
        issued = itertools.count(1)

        def issue() -> dict[str, object]:
            return {"access_token": f"ya29.secret{next(issued)}", "expires_in": 3599, "token_type": "Bearer"}

        server = MetadataServer(tree("my-project", instance, self.attributes, "a@b.c", issue))
        self._servers.append(server)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GCE_", "STORAGE_", "CLOUDSDK_"))}
        path = f"{self.bin}:{self.root}/usr/local/bin:{self.root}/usr/bin"
        environment |= {"PATH": path, "GCE_METADATA_HOST": server.address}
        self.host = server.address
        process = subprocess.Popen(
            [BOOT], env={**environment, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.google.end_vm = process.terminate
        return process

    def run(self) -> tuple[int, str]:
        """Run the script to its end; return its exit code and its output."""
        process = self.start()
        output = process.communicate(timeout=PATIENCE)[0]
        return process.returncode, output

    def words(self, name: str = "worker-x7kq") -> MachineStatus:
        """Return the machine's last status in the bucket, which must have the trainer's own format."""
        return MachineStatus.model_validate_json(self.google.objects[WORDS.format(name)])

    def close(self) -> None:
        for server in (*self._servers, self.google):
            server.close()


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    made = Boot(tmp_path)
    yield made
    made.close()


def test_boot_passes_shellcheck() -> None:
    assert shutil.which("shellcheck"), "run `make setup`: shellcheck is in the environment"
    result = subprocess.run(["shellcheck", BOOT], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert os.access(BOOT, os.X_OK)


def test_boot_of_a_worker_without_a_gpu_runs_the_trainer(boot: Boot) -> None:
    code, output = boot.run()
    assert code == 0, output
    assert all(line.startswith("gpt2-training: ") for line in output.splitlines())
    assert boot.calls("nvidia-smi") == []
    assert boot.calls() == [
        "docker info",
        "docker login --username oauth2accesstoken --password-stdin https://us-central1-docker.pkg.dev",
        f"docker pull --quiet {IMAGE}",
        "docker rm --force trainer",
        (
            "docker run --rm --name trainer --network host --shm-size 2g --stop-timeout 110"
            " --label gpt2-run=gpt2-0123abcd --label gpt2-role=worker"
            " --log-driver gcplogs --log-opt labels=gpt2-run,gpt2-role"
            f" --env GPT2_TRAINING_IMAGE={IMAGE} --env GPT2_TRAINING_ZONE=us-central1-a"
            f" --env GCE_METADATA_HOST={boot.host} --env STORAGE_EMULATOR_HOST={boot.google.url}"
            f" --env CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDSCHEDULER={boot.google.url}/v1/"
            f" {IMAGE} --bucket gs://my-project-dev-gpt2 --run gpt2-0123abcd --name worker-x7kq --role worker"
            " --address 10.0.0.7 --platform google"
        ),
    ]
    assert (boot.bin / "passwords").read_text() == "ya29.secret1\n"
    assert "ya29.secret" not in output
    assert boot.google.objects == {}  # the trainer's own status stays


def test_boot_of_a_master_with_gpus_waits_for_the_driver(boot: Boot) -> None:
    boot.attributes |= {"gpt2-role": "master", "gpt2-gpus": "2"}
    boot.plan("nvidia-smi", "9 NVIDIA-SMI has failed", "9 NVIDIA-SMI has failed", "0")
    boot.plan("info", "0", '0 {"nvidia": {}, "runc": {}}')
    boot.gpus(2)
    code, output = boot.run()
    assert code == 0, output
    assert output.count("gpt2-training: waiting for the NVIDIA driver (NVIDIA-SMI has failed)\n") == 2
    assert "--runtime nvidia --env NVIDIA_VISIBLE_DEVICES=all --env NVIDIA_DRIVER_CAP" in boot.calls("docker run")[0]
    assert boot.calls("nvidia-ctk") == []  # Docker knows the runtime already
    assert " --name master-0 --role master " in boot.calls("docker run")[0]


def test_boot_waits_for_docker_its_login_and_the_image(boot: Boot) -> None:
    boot.plan("info", "1 Cannot connect to the Docker daemon", "0")
    boot.plan("login", "1 denied: 403", "1 denied: 403", "0")
    boot.plan("pull", "1 denied: Permission artifactregistry.repositories.downloadArtifacts denied", "0")
    code, output = boot.run()
    assert code == 0, output
    assert "waiting for docker (Cannot connect to the Docker daemon)" in output
    assert output.count("waiting for the image (denied: 403)") == 2
    assert "waiting for the image (denied: Permission artifactregistry" in output
    assert len(boot.calls("docker run")) == 1


def test_boot_logs_in_again_before_each_pull(boot: Boot) -> None:
    """A token may have expired while the machine waited for a grant."""
    boot.plan("pull", "1 unauthorized", "1 unauthorized", "0")
    code, output = boot.run()
    assert code == 0, output
    words = [call.split()[1] for call in boot.calls()]
    assert words == ["info", *["login", "pull"] * 3, "rm", "run"]
    passwords = (boot.bin / "passwords").read_text().split()
    assert passwords == ["ya29.secret1", "ya29.secret2", "ya29.secret3"]


def test_boot_gives_up_on_the_image_after_its_patience(boot: Boot) -> None:
    boot.environment["BOOT_PATIENCE"] = "0"
    boot.plan("pull", *["1 denied"] * 100)
    code, output = boot.run()
    assert code == 1
    assert output.splitlines()[-1] == "gpt2-training: gave up: waited 0 s for the image: denied"
    assert boot.calls("docker run") == []
    words = boot.words()
    assert (words.state, words.message) == ("failed", "waited 0 s for the image: denied")
    assert (words.name, words.role, words.host != "", words.pid > 1) == ("worker-x7kq", "worker", True, True)
    assert time.time() - PATIENCE < words.started <= words.heartbeat <= time.time()
    assert boot.google.jobs == []


def test_boot_writes_its_last_status_as_json_for_any_message(boot: Boot) -> None:
    boot.environment["BOOT_PATIENCE"] = "0"
    boot.plan("pull", '1 "denied" \\d {\t} \x1b[31m Stöße & $HOME `id` ' + "x" * 600)
    assert boot.run()[0] == 1
    message = boot.words().message
    assert message.startswith('waited 0 s for the image: "denied" \\d { }  [31m St')
    assert " & $HOME `id` xxx" in message
    assert 400 < len(message) <= 500


def test_boot_writes_a_last_status_that_the_trainers_storage_reads(boot: Boot, gcs_bucket: str) -> None:
    boot.attributes |= {"gpt2-image": "latest", "gpt2-bucket": gcs_bucket}
    boot.environment["STORAGE_EMULATOR_HOST"] = os.environ["STORAGE_EMULATOR_HOST"]
    storage = open_storage(gcs_bucket)
    storage.write(WORDS.format("worker-x7kq"), b"{}")  # this file is of an earlier launch
    assert boot.run()[0] == 1
    words = MachineStatus.model_validate_json(storage.read(WORDS.format("worker-x7kq")))
    assert "gpt2-image is 'latest'" in words.message


def test_boot_waits_for_the_bucket(boot: Boot) -> None:
    boot.attributes["gpt2-image"] = "latest"
    boot.google.refusals = {"/o": 2}
    code, output = boot.run()
    assert code == 1
    assert output.count("gpt2-training: waiting for the bucket (curl: (22)") == 2
    assert "gpt2-image is 'latest'" in boot.words().message


def test_boot_reports_a_bucket_that_does_not_answer(boot: Boot) -> None:
    boot.environment["BOOT_PATIENCE"] = "0"
    boot.attributes |= {"gpt2-image": "latest", "gpt2-role": "master", "gpt2-controller": JOB}
    boot.google.refusals = {"/o": 1}
    code, output = boot.run()
    assert code == 0
    assert "gpt2-training: the bucket does not take the last words: curl: (22)" in output
    assert boot.google.jobs == [JOB]


def test_boot_of_a_master_that_gives_up_asks_for_the_end_until_it_comes(boot: Boot) -> None:
    boot.environment["BOOT_AGAIN"] = "0"
    boot.attributes |= {"gpt2-image": "latest", "gpt2-role": "master", "gpt2-controller": JOB}
    boot.google.refusals = {f"{JOB}:run": 2}
    boot.google.enough = 3
    code, output = boot.run()
    assert code == 0  # the VM was ended, as the controller does with the master last
    assert boot.words("master-0").state == "failed"
    assert json.loads(boot.google.objects[END])["reason"] == "the master gave up"
    assert len(boot.google.jobs) >= 3
    assert output.count("gpt2-training: waiting for the controller (curl: (22)") == 2


def test_boot_tries_again_when_the_controller_cannot_be_asked(boot: Boot) -> None:
    boot.environment |= {"BOOT_PATIENCE": "0", "BOOT_AGAIN": "0"}
    boot.attributes |= {"gpt2-image": "latest", "gpt2-role": "master", "gpt2-controller": JOB}
    boot.google.refusals = {f"{JOB}:run": 1}
    code, output = boot.run()
    assert code == 0
    assert "the controller could not be asked: the deadline remains (curl: (22)" in output
    assert boot.google.jobs == [JOB]


@pytest.mark.parametrize("image", ["", "r/trainer:latest", "r/trainer@sha256:abcd", f"r/{IMAGE} --privileged"])
def test_boot_refuses_an_image_without_a_digest(boot: Boot, image: str) -> None:
    boot.attributes["gpt2-image"] = image
    code, output = boot.run()
    assert code == 1
    assert f"the metadata attribute gpt2-image is '{image}', which is no NAME@sha256:DIGEST" in output
    assert boot.calls() == []


def test_boot_restarts_a_lost_container(boot: Boot) -> None:
    boot.plan("run", "137", "1 Traceback", "0")
    code, output = boot.run()
    assert code == 0, output
    assert "the trainer ended with code 137; restart 1 of 5" in output
    assert "Traceback\ngpt2-training: the trainer ended with code 1; restart 2 of 5" in output
    assert len(boot.calls("docker run")) == 3


def test_boot_does_not_count_containers_that_docker_refused_as_restarts(boot: Boot) -> None:
    refusal = "125 docker: Error response from daemon: failed to initialize logging driver"
    boot.plan("run", *[refusal] * 10, "1", *[refusal] * 10, "0")
    code, output = boot.run()
    assert code == 0, output
    assert len(boot.calls("docker run")) == 22
    waiting = "gpt2-training: waiting for docker to start the trainer (Error response from daemon: failed to initialize"
    assert output.count(waiting) == 20
    assert output.count("restart 1 of 5") == 1
    assert "restart 2" not in output
    assert boot.google.objects == {}


def test_boot_gives_up_on_docker_after_its_patience(boot: Boot) -> None:
    boot.environment["BOOT_PATIENCE"] = "0"
    boot.plan("run", *["125 docker: could not select device driver"] * 20)
    assert boot.run()[0] == 1
    assert len(boot.calls("docker run")) == 1
    assert boot.words().message == "waited 0 s for docker to start the trainer: could not select device driver"


def test_boot_counts_a_lost_connection_to_docker_as_a_restart(boot: Boot) -> None:
    boot.environment["BOOT_REFUSAL"] = "0"  # with zero any container has lived longer, so the trainer had started
    boot.plan("run", *["125"] * 20)
    code, output = boot.run()
    assert code == 1
    assert len(boot.calls("docker run")) == 6
    assert "the trainer ended with code 125; restart 5 of 5" in output


def test_boot_gives_up_after_five_restarts(boot: Boot) -> None:
    boot.plan("run", *["1 no such run"] * 20)
    code, output = boot.run()
    assert code == 1
    assert len(boot.calls("docker run")) == 6
    assert "gpt2-training: gave up: the trainer ended 6 times, last with code 1 (no such run);" in output
    assert boot.words().message.startswith("the trainer ended 6 times, last with code 1 (no such run);")


@pytest.mark.parametrize(
    ("state", "age", "kept"),
    [("failed", -PATIENCE, True), ("failed", 3600.0, False), ("running", -PATIENCE, False)],
    ids=["its own", "of a launch before", "killed"],
)
def test_boot_keeps_the_trainers_own_last_status(boot: Boot, state: str, age: float, kept: bool) -> None:
    """age: seconds, negative while the newest container runs or later."""
    now = time.time()
    status = {"name": "worker-x7kq", "role": "worker", "state": state, "message": "CUDA error", "heartbeat": now - age}
    own = json.dumps({**status, "started": now - age, "pid": 7, "log": ['"state": "failed", "heartbeat": 9999999999']})
    boot.google.objects[WORDS.format("worker-x7kq")] = own.encode()
    boot.plan("run", *["1"] * 6)
    assert boot.run()[0] == 1
    assert (boot.words().message == "CUDA error") == kept


def test_boot_counts_restarts_anew_after_a_container_that_lived_long(boot: Boot) -> None:
    boot.environment["BOOT_LIFE"] = "0"  # with zero any container has lived long enough
    boot.plan("run", *["1"] * 20)
    code, output = boot.run()
    assert code == 0, output
    assert len(boot.calls("docker run")) == 21


def test_boot_passes_a_shutdown_to_the_container(boot: Boot) -> None:
    boot.plan("run", "wait")
    process = boot.start()
    end = time.monotonic() + PATIENCE
    while not (boot.bin / "running").exists():
        assert time.monotonic() < end, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    assert boot.calls("docker stop") == ["docker stop trainer"]
    assert len(boot.calls("docker run")) == 1  # the container is not started again
    assert output.splitlines()[-2:] == [
        "gpt2-training: told to shut down: stopping the trainer",
        "gpt2-training: the trainer has left",
    ]


def test_boot_ends_at_a_shutdown_while_it_waits(boot: Boot) -> None:
    boot.environment |= {"BOOT_PAUSE": "60"}
    boot.plan("pull", *["1 denied"] * 100)
    process = boot.start()
    assert process.stdout is not None
    for line in process.stdout:
        if "waiting for the image" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert boot.calls("docker run") == []


def test_boot_waits_for_the_metadata_server(boot: Boot) -> None:
    del boot.attributes["gpt2-run"]
    boot.environment["BOOT_PATIENCE"] = "0"
    code, output = boot.run()
    assert code == 1
    assert output.startswith("gpt2-training: gave up: waited 0 s for the metadata server: curl: ")
    assert json.dumps(boot.calls()) == "[]"
