"""infra/google/boot.sh as a machine runs it: a metadata server, and a docker and nvidia-smi that note what is asked."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.google_cloud.metadata import MetadataServer, tree

BOOT = Path(__file__).resolve().parents[2] / "infra/google/boot.sh"
IMAGE = "us-central1-docker.pkg.dev/my-project/gpt2-dev/trainer@sha256:" + "ab" * 32
PATIENCE = 30.0  # seconds for anything to happen on a busy machine

# Each call takes the next line of the plan for its first word (such as `pull`): `CODE WORDS`; none left: 0.
DOCKER = """#!/bin/bash
cd "$(dirname "$0")"
echo "$(basename "$0") $*" >> calls
what=$1
[[ $(basename "$0") == docker ]] || what=nvidia-smi
if [[ $what == login ]]; then cat > password; fi
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
[[ -z $words ]] || echo "$words" >&2
exit "$code"
"""


class Boot:
    """A machine of its own folder; see the plans in DOCKER."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("docker", "nvidia-smi"):
            (self.bin / name).write_text(DOCKER)
            (self.bin / name).chmod(0o755)
        self.attributes = {
            "gpt2-bucket": "gs://my-project-dev-gpt2", "gpt2-run": "gpt2-0123abcd", "gpt2-launch": "1",
            "gpt2-role": "worker", "gpt2-image": IMAGE, "gpt2-gpus": "0", "gpt2-stack": "dev",
        }  # fmt: skip
        self.environment = {"BOOT_PAUSE": "0"}
        self._servers: list[MetadataServer] = []

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
        token = {"access_token": "ya29.secret", "expires_in": 3599, "token_type": "Bearer"}
        server = MetadataServer(tree("my-project", instance, self.attributes, "a@b.c", lambda: token))
        self._servers.append(server)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GCE_", "STORAGE_", "CLOUDSDK_"))}
        environment |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "GCE_METADATA_HOST": server.address}
        self.host = server.address
        return subprocess.Popen(
            [BOOT], env={**environment, **self.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> tuple[int, str]:
        """The exit code and all that was printed, every line of which is said to be ours."""
        process = self.start()
        output = process.communicate(timeout=PATIENCE)[0]
        return process.returncode, output

    def close(self) -> None:
        for server in self._servers:
            server.close()


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    made = Boot(tmp_path)
    yield made
    made.close()


def test_shellcheck_is_content() -> None:
    assert shutil.which("shellcheck"), "run `make setup`: shellcheck is in the environment"
    result = subprocess.run(["shellcheck", BOOT], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert os.access(BOOT, os.X_OK)


def test_a_worker_without_a_gpu(boot: Boot) -> None:
    boot.environment |= {
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": "http://127.0.0.1:2/compute/v1/",
    }
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
            f" --env GCE_METADATA_HOST={boot.host} --env STORAGE_EMULATOR_HOST=http://127.0.0.1:1"
            " --env CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE=http://127.0.0.1:2/compute/v1/"
            f" {IMAGE} --bucket gs://my-project-dev-gpt2 --run gpt2-0123abcd --name worker-x7kq --role worker"
            " --address 10.0.0.7 --platform google"
        ),
    ]
    assert (boot.bin / "password").read_text() == "ya29.secret\n"
    assert "ya29.secret" not in output


def test_a_master_with_gpus_waits_for_the_driver(boot: Boot) -> None:
    boot.attributes |= {"gpt2-role": "master", "gpt2-gpus": "2"}
    boot.plan("nvidia-smi", "9 NVIDIA-SMI has failed", "9 NVIDIA-SMI has failed", "0")
    code, output = boot.run()
    assert code == 0, output
    assert output.count("gpt2-training: waiting for the NVIDIA driver (NVIDIA-SMI has failed)\n") == 2
    assert " --gpus all " in boot.calls("docker run")[0]
    assert " --name master-0 --role master " in boot.calls("docker run")[0]


def test_what_a_fresh_machine_lacks_is_waited_for(boot: Boot) -> None:
    boot.plan("info", "1 Cannot connect to the Docker daemon", "0")
    boot.plan("login", "1 denied: 403", "1 denied: 403", "0")
    boot.plan("pull", "1 denied: Permission artifactregistry.repositories.downloadArtifacts denied", "0")
    code, output = boot.run()
    assert code == 0, output
    assert "waiting for docker (Cannot connect to the Docker daemon)" in output
    assert output.count("waiting for the login to the registry (denied: 403)") == 2
    assert "waiting for the image (denied: Permission artifactregistry" in output
    assert len(boot.calls("docker run")) == 1


def test_it_does_not_wait_for_ever(boot: Boot) -> None:
    boot.environment["BOOT_PATIENCE"] = "0"
    boot.plan("pull", *["1 denied"] * 100)
    code, output = boot.run()
    assert code == 1
    assert output.splitlines()[-1] == "gpt2-training: gave up: waited 0 s for the image: denied"
    assert boot.calls("docker run") == []


@pytest.mark.parametrize("image", ["", "r/trainer:latest", "r/trainer@sha256:abcd", f"r/{IMAGE} --privileged"])
def test_only_a_digest_is_run(boot: Boot, image: str) -> None:
    boot.attributes["gpt2-image"] = image
    code, output = boot.run()
    assert code == 1
    assert f"the metadata attribute gpt2-image is '{image}', which is no NAME@sha256:DIGEST" in output
    assert boot.calls() == []


def test_a_lost_container_is_started_again(boot: Boot) -> None:
    boot.plan("run", "137", "125 docker: Error response from daemon", "0")
    code, output = boot.run()
    assert code == 0, output
    assert "the trainer ended with code 137; restart 1 of 5" in output
    assert "docker: Error response from daemon" in output
    assert "the trainer ended with code 125; restart 2 of 5" in output
    assert len(boot.calls("docker run")) == 3


def test_the_restarts_have_a_budget(boot: Boot) -> None:
    boot.plan("run", *["1"] * 20)
    code, output = boot.run()
    assert code == 1
    assert len(boot.calls("docker run")) == 6
    assert "gpt2-training: gave up: the trainer ended 6 times, last with code 1" in output.splitlines()[-1]


def test_who_lived_long_has_its_restarts_counted_anew(boot: Boot) -> None:
    boot.environment["BOOT_LIFE"] = "0"  # any container lived that long
    boot.plan("run", *["1"] * 20)
    code, output = boot.run()
    assert code == 0, output
    assert len(boot.calls("docker run")) == 21


def test_a_shutdown_is_passed_on(boot: Boot) -> None:
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
    assert len(boot.calls("docker run")) == 1  # and not started again
    assert output.splitlines()[-2:] == [
        "gpt2-training: told to shut down: stopping the trainer",
        "gpt2-training: the trainer has left",
    ]


def test_a_shutdown_while_it_waits(boot: Boot) -> None:
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


def test_the_metadata_server_is_waited_for(boot: Boot) -> None:
    del boot.attributes["gpt2-run"]
    boot.environment["BOOT_PATIENCE"] = "0"
    code, output = boot.run()
    assert code == 1
    assert output.startswith("gpt2-training: gave up: waited 0 s for the metadata server: curl: ")
    assert json.dumps(boot.calls()) == "[]"
