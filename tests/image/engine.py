"""A Docker engine and a registry for the tests of the image.

An engine of our own takes root. A part that is missing skips the test with a line that says what to install.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tools.go_tools import cache_root

PATIENCE = 60.0  # seconds in which a server must answer
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
USER, TOKEN = "oauth2accesstoken", "ya29.test"  # the user of the registry: the VMs of tests.trainer.google_vm
HTPASSWD = f"{USER}:$2b$04$4Q3sISMlEFF6Y6VamsUdreO95LB5VZ97ABupLsUrAhNri7.pGNqwS\n"  # the token's bcrypt hash

Answer = TypeVar("Answer")


def missing(part: str, packages: str) -> NoReturn:
    """Skip the test. Fail it where .ci/run has seen that the parts are here."""
    reason = f"{part}; as root: apt-get install {packages}"
    if os.environ.get("GPT2_TRAINING_ENGINE") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def clients() -> list[str]:
    """Return the docker commands on PATH, each program once."""
    found = [Path(folder, "docker") for folder in os.get_exec_path()]
    return list({path.resolve(): str(path) for path in reversed(found) if os.access(path, os.X_OK)}.values())[::-1]


class Engine:
    """The docker command with one engine behind it."""

    def __init__(self, client: str, host: str | None, **variables: str) -> None:
        self.client, self.host = client, host
        self.variables = {**({"DOCKER_HOST": host} if host else {}), **variables}

    def docker(self, *arguments: str, check: bool = True, given: str | None = None) -> str:
        """Run a docker command; return its stdout, stripped. A failure fails the test with the command's last lines."""
        done = subprocess.run(
            [self.client, *arguments], env={**os.environ, **self.variables}, capture_output=True, text=True, input=given
        )
        if check and done.returncode:
            pytest.fail(f"docker {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[-3000:]}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return bool(self.docker("images", "--quiet", image))

    def push(self, image: str) -> str:
        """Push an image; return NAME@sha256:DIGEST. The login lasts for that moment only."""
        address = image.partition("/")[0]
        with tempfile.TemporaryDirectory() as login:
            configured = ("--config", login)
            self.docker(*configured, "login", "--username", USER, "--password-stdin", address, given=TOKEN)
            self.docker(*configured, "push", image)
        return self.docker("inspect", "--format", "{{index .RepoDigests 0}}", image)

    def build(self, folder: Path, tag: str, *options: str, network: str = "host", **arguments: str) -> None:
        words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        words += [f"--build-arg={name}" for name in PROXIES if name in os.environ]
        self.docker("build", "--network", network, "--tag", tag, *words, *options, str(folder))

    def has_buildkit(self) -> bool:
        """Return whether this client can build with BuildKit, by its plugin buildx or, before version 23, by itself."""
        if self.docker("buildx", "version", check=False):
            return True
        return int(self.docker("version", "--format", "{{.Client.Version}}").partition(".")[0]) < 23


@contextmanager
def running(*, keep: bool = False) -> Iterator[Engine]:
    """Yield the engine of this machine, or one of our own, whose images are kept if `keep`.

    Skips where there is none.
    """
    client = shutil.which("docker")
    if client is None:
        missing("there is no Docker here", "docker.io")
    if Engine(client, None).docker("info", "--format", "{{.ServerVersion}}", check=False):
        yield Engine(client, None)
        return
    daemon = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if daemon is None or os.geteuid() != 0:
        missing("no Docker engine answers, and none can be started", "docker.io")
    # A socket's path has 107 bytes at most, so it is not below the images.
    with tempfile.TemporaryDirectory(prefix="gpt2-docker-") as folder, ExitStack() as stack:
        images = stack.enter_context(_kept("engine")) if keep else Path(folder)
        host, log = f"unix://{folder}/docker.sock", images / "log"
        # The engine runs in mounts of its own, which end with it, and without a network of its own: all containers use
        # the host's, and the firewall stays as it is.
        command = [
            "unshare", "--mount", daemon, "--host", host, "--data-root", str(images / "data"),
            "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
            "--iptables=false", "--ip6tables=false", "--bridge=none",
        ]  # fmt: skip
        with _server(command, log) as process:
            engine = Engine(client, host)

            def version() -> str:
                if process.poll() is not None:  # for example in a container that may not mount
                    missing(f"no Docker engine can be started here: {log.read_text()[-500:].strip()}", "docker.io")
                return engine.docker("info", "--format", "{{.ServerVersion}}", check=False)

            _wait(version, log)
            yield engine
            if keep:
                engine.docker("image", "prune", "--force")  # this removes images that a newer build replaced


@contextmanager
def registry() -> Iterator[str]:
    """Yield the loopback address of a registry; Docker trusts those without TLS. Its layers are kept for the next test.

    It wants a login, as Google's does.
    """
    program = shutil.which("docker-registry")
    if program is None:
        missing("there is no registry here", "docker-registry")
    with _kept("registry") as kept:
        configuration, passwords, log = kept / "config.yml", kept / "htpasswd", kept / "log"
        passwords.write_text(HTPASSWD)
        configuration.write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {kept / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"auth: {{htpasswd: {{realm: test, path: {passwords}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n"
        )
        with _server([program, "serve", str(configuration)], log):
            yield _wait(lambda: re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()), log)[1]
        collect = [program, "garbage-collect", "--delete-untagged", str(configuration)]
        subprocess.run(collect, capture_output=True, check=True)


@contextmanager
def _kept(name: str) -> Iterator[Path]:
    """Return a folder of the cache for one test at a time: the layers of an earlier one save minutes."""
    folder = cache_root() / "image-test" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextmanager
def _server(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    dies_with_us = ["setpriv", "--pdeathsig", "TERM"]
    with log.open("wb") as file:
        process = subprocess.Popen([*dies_with_us, *command], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def _wait(answer: Callable[[], Answer | None], log: Path) -> Answer:
    end = time.monotonic() + PATIENCE
    while not (answered := answer()):
        if time.monotonic() > end:
            pytest.fail(f"no answer in {PATIENCE:.0f} s: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return answered
