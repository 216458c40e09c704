"""A Docker engine and a registry for the image test, and a Debian base that needs no other registry's images.

All of it takes root, so each part that is missing skips the test with a line that says what to install.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tools.go_tools import cache_root, cached

SUITE = "bookworm"  # Python 3.11
PACKAGES = "python3,python3-pip,ca-certificates"
INSTALL = "as root: apt-get install docker.io debootstrap docker-registry"
PATIENCE = 60.0  # seconds for a server to answer
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# What pip may need to be told to find packages where this machine finds them.
PIP_KEYS = ("default-timeout", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
USER, TOKEN = "oauth2accesstoken", "ya29.test"  # who may use the registry: the VMs of tests.trainer.google_vm
HTPASSWD = f"{USER}:$2b$04$4Q3sISMlEFF6Y6VamsUdreO95LB5VZ97ABupLsUrAhNri7.pGNqwS\n"  # bcrypt of the token
BASE_DOCKERFILE = """ARG SYSTEM
FROM ${SYSTEM}
COPY ca-certificates.crt /etc/ssl/certs/
COPY pip.conf /etc/pip.conf
# The python:* images have no such mark: theirs is the image's own Python, as Debian's is here.
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
"""

Answer = TypeVar("Answer")


class Engine:
    """The docker command with one engine behind it."""

    def __init__(self, client: str, host: str | None) -> None:
        self.client = client
        self.variables = {"DOCKER_HOST": host} if host else {}

    def docker(self, *arguments: str, check: bool = True, given: str | None = None) -> str:
        """What it prints on stdout, stripped. A failure fails the test with the command's last lines."""
        done = subprocess.run(
            [self.client, *arguments], env={**os.environ, **self.variables}, capture_output=True, text=True, input=given
        )
        if check and done.returncode:
            pytest.fail(f"docker {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[-3000:]}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        return bool(self.docker("images", "--quiet", image))

    def push(self, image: str) -> str:
        """NAME@sha256:DIGEST of what was pushed; logged in for that moment only."""
        address = image.partition("/")[0]
        with tempfile.TemporaryDirectory() as login:
            configured = ("--config", login)
            self.docker(*configured, "login", "--username", USER, "--password-stdin", address, given=TOKEN)
            self.docker(*configured, "push", image)
        return self.docker("inspect", "--format", "{{index .RepoDigests 0}}", image)

    def build(self, folder: Path, tag: str, **arguments: str) -> None:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--build-arg={name}" for name in PROXIES if name in os.environ]
        self.docker("build", "--network", "host", "--tag", tag, *options, str(folder))


@contextmanager
def running() -> Iterator[Engine]:
    """The engine that answers here, else one of our own. Skips where there is none."""
    client = shutil.which("docker")
    if client is None:
        pytest.skip(f"the image test needs Docker; {INSTALL}")
    if Engine(client, None).docker("info", "--format", "{{.ServerVersion}}", check=False):
        yield Engine(client, None)
        return
    daemon = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if daemon is None or os.geteuid() != 0:
        pytest.skip(f"no Docker engine answers; start one, or {INSTALL}")
    # The socket lies elsewhere, under a short name: its path has 107 bytes at most.
    with _kept("engine") as kept, tempfile.TemporaryDirectory(prefix="gpt2-docker-") as folder:
        host = f"unix://{folder}/docker.sock"
        # In mounts of its own, which end with it, and without a network of its own: all containers use the host's, and
        # the firewall stays as it is.
        command = [
            "unshare", "--mount", daemon, "--host", host, "--data-root", str(kept / "data"),
            "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
            "--iptables=false", "--ip6tables=false", "--bridge=none",
        ]  # fmt: skip
        with _server(command, kept / "log"):
            engine = Engine(client, host)
            _wait(lambda: engine.docker("info", "--format", "{{.ServerVersion}}", check=False), kept / "log")
            yield engine
            engine.docker("image", "prune", "--force")  # what a newer build replaced


@contextmanager
def registry() -> Iterator[str]:
    """The loopback address of a registry; Docker trusts those without TLS. Its layers are kept for the next test.

    It wants a login, as Google's does.
    """
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip(f"the image test needs a registry; {INSTALL}")
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


def base_image(engine: Engine) -> str:
    """A Debian with Python, pip and this machine's certificates and settings of pip. Skips without debootstrap."""
    system = f"gpt2-training-test-system:{SUITE}"
    if not engine.has(system):
        tree = cached(f"debian-{SUITE}", "root/bin/sh", _debootstrap)
        with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
            archive = f"{folder}/system.tar"
            subprocess.run(["tar", "--create", "--file", archive, "--directory", tree / "root", "."], check=True)
            engine.docker("import", archive, system)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "Dockerfile").write_text(BASE_DOCKERFILE)
        (context / "pip.conf").write_text(_pip_settings())
        shutil.copyfile(os.environ.get("SSL_CERT_FILE", BUNDLE), context / "ca-certificates.crt")
        engine.build(context, "gpt2-training-test-base", SYSTEM=system)
    return "gpt2-training-test-base"


def _debootstrap(folder: Path) -> None:
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        pytest.skip(f"the image's base is made by debootstrap; {INSTALL}")
    # In mounts of its own, so that none is left when it is killed.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, "root"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"debootstrap: {(done.stdout + done.stderr)[-2000:]}")
    for rubbish in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(folder / "root" / rubbish)


def _pip_settings() -> str:
    """pip's settings on this machine, from its files and its environment, as one file."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines = [f"{key} = {found[key]}" for key in PIP_KEYS if key in found]
    return "\n".join(["[global]", *lines, ""])


@contextmanager
def _kept(name: str) -> Iterator[Path]:
    """A folder of the cache for one test at a time: layers of an earlier one spare minutes."""
    folder = cache_root() / "image-test" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextmanager
def _server(command: list[str], log: Path) -> Iterator[None]:
    dies_with_us = ["setpriv", "--pdeathsig", "TERM"]
    with log.open("wb") as file:
        process = subprocess.Popen([*dies_with_us, *command], stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
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
