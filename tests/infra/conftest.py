"""A copy of the project with a trainer that only sleeps, and the real Pulumi CLI on it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra import load
from infra.job import job_spec
from infra.local import processes
from trainer.contract.spec import JobSpec
from trainer.runs.records import Status
from trainer.runs.status import read_status
from trainer.storage.factory import open_storage

CHECKOUT = Path(__file__).resolve().parents[2]
# The trainer does the worst that a supervisor may do: it has a child in a session of its own, and both ignore SIGTERM
# if the file `stubborn` exists. It ends by itself after a while, so that no test leaves anything for long.
TRAINER = """
import pathlib, signal, subprocess, sys, time
CHILD = "import signal, time; {}; time.sleep(120)"
ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
stubborn = pathlib.Path("stubborn").exists()
if stubborn:
    exec(ignore)
subprocess.Popen([sys.executable, "-c", CHILD.format(ignore if stubborn else "0")], start_new_session=stubborn)
print("up", sys.argv[1:], flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="session", autouse=True)
def nobody_is_logged_in() -> Iterator[None]:
    """Hide the login of the person who runs the tests: the program asks Google for quotas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
        yield


@dataclass(frozen=True)
class Project:
    root: Path
    environment: dict[str, str]

    def run(self, *arguments: str, ok: bool = True) -> str:
        """Run a pulumi command and return its whole output; with ok, it must succeed."""
        command = ["pulumi", *arguments, "--non-interactive", "--stack", "local"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert not ok or done.returncode == 0, done.stdout
        return done.stdout

    def up(self, *arguments: str, ok: bool = True) -> str:
        return self.run("up", "--skip-preview", *arguments, ok=ok)

    def destroy(self) -> str:
        return self.run("destroy", "--skip-preview")

    def steps(self) -> dict[str, str]:
        """Return the operations of a preview as {resource name: operation}, without unchanged resources."""
        preview = json.loads(self.run("preview", "--json"))
        return {s["urn"].rsplit("::", 1)[1]: s["op"] for s in preview["steps"] if s["op"] != "same"}

    def edit(self, old: str, new: str) -> None:
        path = self.root / "Pulumi.local.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def bucket(self) -> Path:
        return self.root / "artifacts" / "local"

    def job(self) -> JobSpec:
        return job_spec(load.from_file("local", self.root))

    def machine(self, name: str) -> processes.MachineProcess:
        return processes.MachineProcess(self.bucket, self.job().run, name)

    def pid(self, name: str) -> int:
        return int(json.loads(self.machine(name).lock.read_text())["pid"])

    def living(self) -> set[str]:
        """Return the names of the declared run's machines that are alive."""
        names = [name for name, _ in self.job().cluster.machines()]
        return {name for name in names if processes.alive(self.machine(name))}

    def status(self) -> Status:
        found = read_status(open_storage(self.bucket.as_uri()), self.job().run)
        assert found is not None
        return found

    def set_status(self, **changes: Any) -> None:
        new = self.status().model_copy(update=changes)
        path = f"runs/{self.job().run}/status.json"
        open_storage(self.bucket.as_uri()).write(path, json.dumps(new.to_json()).encode())


@pytest.fixture
def project(tmp_path: Path, virtual_environment: Path, cli_environment: dict[str, str]) -> Iterator[Project]:
    answer = CHECKOUT / ".venv" / "pulumi-path"
    if not answer.exists():
        pytest.fail("there is no Pulumi CLI for this checkout: run `make setup`")
    root = tmp_path / "project"
    for folder in ("infra", "trainer"):
        shutil.copytree(CHECKOUT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__main__.py", "Pulumi.yaml", "Pulumi.local.yaml"):
        shutil.copy(CHECKOUT / name, root)
    (root / "trainer" / "__main__.py").write_text(TRAINER)
    (root / "data").mkdir()
    (root / "data" / "default.txt").write_text("To be, or not to be, that is the question.\n" * 500)
    (root / ".venv").symlink_to(virtual_environment)
    for name in ("state", "home"):
        (tmp_path / name).mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PULUMI_")},
        "PATH": answer.read_text().strip() + os.pathsep + os.environ["PATH"],
        **cli_environment,
        "PULUMI_HOME": str(tmp_path / "home"),
        "PULUMI_BACKEND_URL": (tmp_path / "state").as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "true",
    }
    made = Project(root, environment)
    subprocess.run(["pulumi", "stack", "init", "local"], cwd=root, env=environment, check=True, capture_output=True)
    yield made
    processes.sweep(made.bucket, grace=0)
