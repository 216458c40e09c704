"""The `cloud` fixture: a project copy, the real CLI, the plugins in a PULUMI_HOME of its own, and a stand-in cloud."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from tests.google_cloud.bill import nothing_runs_on
from tests.google_cloud.client import Client
from tests.google_cloud.install import environment, install, without_google
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

CHECKOUT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@dataclass
class StandIn:
    """One test's project, CLI and Google Cloud.

    root: the project's copy; environment: for subprocesses (CLI, scripts); project: an id that no other test uses;
    url: the daemon's address; folder: the daemon's files (state.json, log, VMs).
    """

    root: Path
    environment: dict[str, str]
    project: str
    url: str
    folder: Path
    stacks: set[str] = field(default_factory=set)

    # Pulumi. -----------------------------------------------------------------------------------------------------

    def pulumi(self, *arguments: str, stack: str = "dev", ok: bool | None = True) -> str:
        """Run a pulumi command; return its whole output, with --json without stderr.

        ok: it must succeed; False: it must fail; None: either.
        """
        if stack not in self.stacks:
            self._run("pulumi", "stack", "init", stack)
            self.stacks.add(stack)
        done = self._run("pulumi", *arguments, "--non-interactive", "--stack", stack, check=False)
        if ok is not None and ok != (done.returncode == 0):
            said = done.stdout + (done.stderr or "")
            pytest.fail(f"pulumi {' '.join(arguments)} ended with {done.returncode}:\n{said}\n{self.log()}")
        return done.stdout

    def up(self, *arguments: str, stack: str = "dev", ok: bool | None = True) -> str:
        return self.pulumi("up", "--skip-preview", *arguments, stack=stack, ok=ok)

    def destroy(self, *arguments: str, stack: str = "dev", ok: bool | None = True) -> str:
        return self.pulumi("destroy", "--skip-preview", *arguments, stack=stack, ok=ok)

    def preview(self, *arguments: str, stack: str = "dev") -> list[Json]:
        """Return the steps of `preview --json`."""
        steps: list[Json] = json.loads(self.pulumi("preview", "--json", *arguments, stack=stack))["steps"]
        return steps

    def steps(self, stack: str = "dev", *arguments: str) -> dict[str, str]:
        """Return the operations of a preview as {resource name: operation}, without unchanged resources."""
        steps = self.preview(*arguments, stack=stack)
        return {s["urn"].rsplit("::", 1)[1]: s["op"] for s in steps if s["op"] != "same"}

    def outputs(self, stack: str = "dev") -> Json:
        """Return the stack's outputs."""
        found: Json = json.loads(self.pulumi("stack", "output", "--json", "--show-secrets", stack=stack))
        return found

    # The cloud. --------------------------------------------------------------------------------------------------

    def call(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Call any route of the daemon; return (status, JSON)."""
        return Client(self.url).request(verb, path, body)

    def fault(self, token: str = "*", operation: str = "*", **fields: Any) -> None:
        """Let the next provider call of that type and operation fail.

        fields: status, reason, message, times (-1: all).
        """
        self._post("/faults", {"token": token, "operation": operation, **fields})

    def slow(self, seconds: float) -> None:
        """Let every provider call take this long."""
        self._post("/faults", {"delay": seconds})

    def heal(self) -> None:
        """End all faults and delays."""
        self._post("/faults", {"clear": True})

    def resources(self) -> dict[str, list[str]]:
        """Return the cloud's resources as {type token: [ids]}."""
        found: dict[str, list[str]] = {}
        for resource in self.call("GET", "/resources")[1]:
            found.setdefault(resource["token"], []).append(resource["id"])
        return found

    def state(self, token: str, id: str = "") -> Json:  # noqa: A002
        """Return inputs and outputs of a resource, as the cloud has them.

        Without an id, it is the only one of its type.
        """
        every = self.call("GET", "/resources")[1]
        found = [r["state"] for r in every if r["token"] == token and id in ("", r["id"])]
        assert len(found) == 1, f"{len(found)} of {token} {id}"
        state: Json = found[0]
        return state

    def change(self, token: str, id: str, **props: Any) -> None:  # noqa: A002
        """Change a resource as a person in the console does."""
        self._post("/resources", {"token": token, "id": id, "props": props})

    def remove(self, token: str, id: str) -> None:  # noqa: A002
        """Delete a resource as a person in the console does."""
        self._post("/resources", {"token": token, "id": id})

    def account(self) -> Json:
        """Return what is billed: see account.py."""
        found: Json = self.call("GET", "/account")[1]
        return found

    def allowed(self, member: str, permission: str, resource: str, attributes: Json | None = None) -> bool:
        """See Cloud.allowed."""
        asked = {"member": member, "permission": permission, "resource": resource, "attributes": attributes}
        return bool(self._post("/allowed", asked))

    def images(self) -> dict[str, str]:
        """Return the registry's images as {NAME:TAG or NAME@digest: digest}."""
        found: dict[str, str] = self.call("GET", "/images")[1]
        return found

    def storage(self, url: str) -> Storage:
        """Open gs://bucket/... as the trainer does."""
        return open_storage(url)

    def gcs(self) -> gcs.Client:
        """Return Google's own client on the emulator."""
        return gcs.Client(project=self.project, credentials=AnonymousCredentials())

    def enable(self, *services: str) -> None:
        """Enable APIs ("compute") by hand, for tests whose program does not declare them."""
        self._post("/apis", {"enable": [f"{self.project}/{service}.googleapis.com" for service in services]})

    def script(self, *arguments: str, ok: bool | None = True) -> str:
        """Run `python -m ...` in the project's copy; return stdout and stderr."""
        done = self._run(str(self.root / ".venv" / "bin" / "python"), "-m", *arguments, check=False)
        if ok is not None and ok != (done.returncode == 0):
            pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{self.log()}")
        return done.stdout

    # Files. -------------------------------------------------------------------------------------------------------

    def program(self, text: str) -> None:
        """Put a small program in the place of the project's __main__.py."""
        (self.root / "__main__.py").write_text(text)

    def edit(self, stack: str, old: str, new: str) -> None:
        """Replace a text of a stack file."""
        path = self.root / f"Pulumi.{stack}.yaml"
        assert old in path.read_text(), f"{old!r} is not in {path.read_text()}"
        path.write_text(path.read_text().replace(old, new))

    def log(self) -> str:
        """Return the daemon's log."""
        return (self.folder / "log").read_text()[-4000:]

    def _post(self, path: str, body: Json) -> Any:
        status, answer = self.call("POST", path, body)
        assert status == 200, answer
        return answer

    def _run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        errors = subprocess.PIPE if "--json" in command else subprocess.STDOUT
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert not check or done.returncode == 0, done.stdout
        return done


@pytest.fixture
def cloud(
    tmp_path: Path,
    gcs_address: str,
    virtual_environment: Path,
    cli_environment: dict[str, str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StandIn]:
    answer = CHECKOUT / ".venv" / "pulumi-path"
    if not answer.exists():
        pytest.fail("there is no Pulumi CLI for this checkout: run `make setup`")
    for name in ("home", "state", "cloud"):
        (tmp_path / name).mkdir()
    project, storage = f"gpt2-{uuid.uuid4().hex[:8]}", f"http://{gcs_address}"
    root = tmp_path / "project"
    copy_project(root, project)
    (root / ".venv").symlink_to(virtual_environment)
    install(tmp_path / "home", virtual_environment / "bin" / "python")
    base = without_google()
    machines = {"STORAGE_EMULATOR_HOST": storage, "GPT2_TRAINING_STANDIN_ROOT": str(root)}
    if "life" in request.fixturenames and not request.node.get_closest_marker("cold"):
        trainer: Path = request.getfixturevalue("forked_trainer")
        machines["GPT2_TRAINING_STANDIN_PYTHON"] = str(trainer / "bin" / "python")
    daemon = start_daemon(tmp_path / "cloud", {**base, **machines})
    url = ""
    try:
        url = wait_for(lambda: daemon_url(tmp_path / "cloud", daemon), "the stand-in cloud's daemon")
        ours = {
            **base,
            **environment(url, storage, tmp_path / "cloud"),
            "PATH": answer.read_text().strip() + os.pathsep + os.environ["PATH"],
            **cli_environment,
            "PULUMI_HOME": str(tmp_path / "home"),
            "PULUMI_BACKEND_URL": (tmp_path / "state").as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": "test",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "true",
        }
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage)
        stand_in, failed = StandIn(root, ours, project, url, tmp_path / "cloud"), request.session.testsfailed
        yield stand_in
        if request.session.testsfailed == failed:
            nothing_runs_on(stand_in.account, request.node)
    finally:
        stop(daemon, url)


@pytest.fixture
def life(cloud: StandIn) -> Callable[..., Any]:
    """Return a function that makes a small run, a tests.google_cloud.life.Life, from its settings."""
    from tests.google_cloud.life import Life  # life.py imports this module

    return lambda **settings: Life(cloud, **settings)


@pytest.fixture
def lab(tmp_path: Path, gcs_address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return the stand-in cloud without Pulumi: a tests.google_cloud.lab.Lab."""
    from tests.google_cloud.lab import laboratory  # lab.py imports this module

    failed = request.session.testsfailed
    with laboratory(tmp_path / "cloud", gcs_address) as found:
        yield found
        if request.session.testsfailed == failed:
            nothing_runs_on(found.bill, request.node)


def copy_project(root: Path, project: str) -> None:
    """Make the checkout of a person who has cloned the repository and set gcp:project, without its .venv."""
    ignore = shutil.ignore_patterns("__pycache__", "logs")
    for name in ("infra", "trainer", "scripts", "bootstrap", "requirements"):
        shutil.copytree(CHECKOUT / name, root / name, ignore=ignore)
    for path in (CHECKOUT / "__main__.py", *CHECKOUT.glob("Pulumi*.yaml")):
        shutil.copy(path, root)
    for path in root.glob("Pulumi.*.yaml"):
        if re.search("^  gcp:region:", path.read_text(), re.MULTILINE):
            path.write_text(path.read_text().replace("config:\n", f"config:\n  gcp:project: {project}\n", 1))
    (root / "data").mkdir()
    for name in ("default.txt", "my-data.txt"):
        (root / "data" / name).write_text("To be, or not to be, that is the question.\n" * 5000)


def start_daemon(folder: Path, base: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.google_cloud.daemon"]
    options = ["--folder", str(folder), "--port-file", str(folder / "port")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, *options], cwd=CHECKOUT, env=base, stdout=log, stderr=log, start_new_session=True
        )


def daemon_url(folder: Path, daemon: "subprocess.Popen[bytes]") -> str | None:
    if daemon.poll() is not None:
        pytest.fail(f"the stand-in cloud's daemon did not start:\n{(folder / 'log').read_text()}")
    return f"http://127.0.0.1:{(folder / 'port').read_text()}" if (folder / "port").exists() else None


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60, every: float = 0.02) -> Any:
    """Return the first truthy value of a condition. Fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    return pytest.fail(f"{what}: nothing within {seconds} s")


def stop(daemon: "subprocess.Popen[bytes]", url: str) -> None:
    """End the daemon and every process that carries its mark, such as VMs and the processes on them."""
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    if not url:
        return
    mark = f"GPT2_TRAINING_STANDIN={url}".encode()
    # A process may start another one during the search.
    while marked := [pid for pid in living() if carries(pid, mark)]:
        for pid in marked:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def living() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]


def carries(pid: int, mark: bytes) -> bool:
    """Return whether a process was started with this variable (a zombie has no environment left)."""
    try:
        return mark in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
