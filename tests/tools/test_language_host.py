"""tools/language_host.py: each call over gRPC, and programs run by the real CLI with it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from pulumi.runtime.proto import language_pb2 as lang
from pulumi.runtime.proto import language_pb2_grpc

ROOT = Path(__file__).parents[2]
POINTER = ROOT / ".venv" / "pulumi-path"


@pytest.fixture
def host() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", ROOT / "tools" / "language_host.py", "127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def calls(host: subprocess.Popen[str]) -> Iterator[Any]:
    assert host.stdout
    with grpc.insecure_channel(f"127.0.0.1:{int(host.stdout.readline())}") as channel:
        yield language_pb2_grpc.LanguageRuntimeStub(channel)


def program(folder: Path, text: str = "", **options: str) -> lang.ProgramInfo:
    (folder / "__main__.py").write_text(text)
    struct = Struct()
    struct.update(options)
    return lang.ProgramInfo(root_directory=str(folder), program_directory=str(folder), entry_point=".", options=struct)


def test_start_imports_nothing_of_pulumi_but_its_messages() -> None:
    command = [sys.executable, "-X", "importtime", "-u", ROOT / "tools" / "language_host.py", "127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert int(process.stdout.readline())
        process.kill()
        imported = {line.split("|")[-1].strip() for line in process.stderr if line.startswith("import time:")}
    ours = {name for name in imported if name.split(".")[0] == "pulumi"}
    assert "pulumi.runtime.proto.language_pb2" in ours
    assert {name for name in ours if not name.startswith("pulumi.runtime.proto")} == set()


def test_handshake_info_and_other_simple_calls_are_answered(calls: Any, tmp_path: Path) -> None:
    info = program(tmp_path)
    calls.Handshake(lang.LanguageHandshakeRequest(engine_address="127.0.0.1:1"))
    assert calls.GetPluginInfo(Empty()).version == version("pulumi")
    about = calls.About(lang.AboutRequest(info=info))
    assert (about.executable, about.version) == (sys.executable, sys.version.split()[0])
    said = list(calls.InstallDependencies(lang.InstallDependenciesRequest(info=info)))
    assert b"make setup" in said[0].stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "__main__.py"]  # nothing was installed into the project
    calls.Cancel(Empty())


def test_required_packages_are_the_installed_pulumi_packages(calls: Any, tmp_path: Path) -> None:
    answer = calls.GetRequiredPackages(lang.GetRequiredPackagesRequest(info=program(tmp_path)))
    found = {p.name: (p.kind, p.version) for p in answer.packages}
    assert found["gcp"] == ("resource", version("pulumi_gcp"))


def test_required_packages_are_those_of_the_projects_virtual_environment(calls: Any, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    packages = next((tmp_path / "env" / "lib").iterdir()) / "site-packages"
    (packages / "ours.pth").write_text(f"{Path(grpc.__file__).parents[1]}\n")  # with this file it can run the host
    for name, plugin in [("pulumi_mine", '{"resource": true, "version": "7.0.0", "server": "x"}'), ("other", "{}")]:
        (packages / f"{name}-1.2.dist-info").mkdir()
        (packages / f"{name}-1.2.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.2\n")
        (packages / name).mkdir()
        (packages / name / "pulumi-plugin.json").write_text(plugin)
    answer = calls.GetRequiredPackages(lang.GetRequiredPackagesRequest(info=program(tmp_path, virtualenv="env")))
    assert ("mine", "7.0.0", "x") in {(p.name, p.version, p.server) for p in answer.packages}
    assert "other" not in {p.name for p in answer.packages}


def test_program_dependencies_are_direct_or_all_packages(calls: Any, tmp_path: Path) -> None:
    def names(transitive: bool) -> set[str]:
        request = lang.GetProgramDependenciesRequest(info=program(tmp_path), transitiveDependencies=transitive)
        return {d.name for d in calls.GetProgramDependencies(request).dependencies}

    assert {"pulumi_gcp", "pulumi", "grpcio"} <= names(True)
    assert names(False) < names(True)
    assert "grpcio" not in names(False)


def test_missing_virtual_environment_is_named(calls: Any, tmp_path: Path) -> None:
    info = program(tmp_path, virtualenv="gone")
    said = calls.Run(lang.RunRequest(info=info, pwd=str(tmp_path))).error
    assert "virtualenv is 'gone'" in said
    assert "make setup" in said
    with pytest.raises(grpc.RpcError, match="virtualenv is 'gone'"):
        calls.GetRequiredPackages(lang.GetRequiredPackagesRequest(info=info))


def test_run_plugin_streams_its_output_and_status(calls: Any, tmp_path: Path) -> None:
    text = "import os, sys\nprint(sys.argv[1:], os.environ['WHO'], os.getcwd())\nsys.exit(3)\n"
    info = program(tmp_path, text)
    request = lang.RunPluginRequest(
        info=info, kind="resource", args=["127.0.0.1:1"], env=["WHO=a=b"], pwd=str(tmp_path.parent)
    )
    answers = list(calls.RunPlugin(request))
    assert b"".join(a.stdout for a in answers).decode() == f"['127.0.0.1:1'] a=b {tmp_path.parent}\n"
    assert answers[-1].exitcode == 3


def test_run_plugin_runs_a_policy_pack_in_its_own_folder(calls: Any, tmp_path: Path) -> None:
    info = program(tmp_path, "import os\nprint('pack', os.getcwd())\n")
    request = lang.RunPluginRequest(info=info, kind="analyzer", args=["127.0.0.1:1"], pwd="/")
    assert f"pack {tmp_path}\n".encode() in b"".join(a.stdout for a in calls.RunPlugin(request))


def test_interrupted_host_ends_its_plugins(calls: Any, host: subprocess.Popen[str], tmp_path: Path) -> None:
    text = "import os, signal, sys\nprint(os.getpid(), flush=True)\nsignal.pause()\n"
    request = lang.RunPluginRequest(info=program(tmp_path, text), kind="resource", pwd=str(tmp_path))
    answers = calls.RunPlugin(request)  # kept: a call that nobody holds is cancelled, and its plugin ends with it
    plugin = int(next(answers).stdout)
    handle = os.pidfd_open(plugin)
    host.send_signal(signal.SIGINT)
    assert host.wait(timeout=30) == 0
    assert select.select([handle], [], [], 30)[0]  # it is readable when the process has ended
    os.close(handle)


def test_missing_sdk_is_one_line_with_the_command_to_run(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    command = [tmp_path / "bare" / "bin" / "python", ROOT / "tools" / "language_host.py", "127.0.0.1:1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "run `make setup`" in result.stderr


# The real CLI, with this language host and not the one that a person's CLI may have brought.

THINGS = """
import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider, UpdateResult
class Provider(ResourceProvider):
    def create(self, props): return CreateResult("id-1", {**props, "made": True})
    def diff(self, id, old, new): return DiffResult(changes=old["spec"] != new["spec"])
    def update(self, id, old, new): return UpdateResult({**new, "made": True})
    def read(self, id, props): return ReadResult(id, props)
class Thing(Resource):
    made: pulumi.Output[bool]
    def __init__(self, name, spec): super().__init__(Provider(), name, {"spec": spec, "made": None})
"""
MAIN = """
import pulumi
from mine.things import Thing
pulumi.export("made", Thing("thing", pulumi.Config().require_object("spec")).made)
"""


class Project:
    """A Pulumi project in a folder of its own, with state, home and plugins of its own."""

    def __init__(self, root: Path) -> None:
        bin_folder = root / "bin"
        bin_folder.mkdir()
        for name in ("pulumi", "pulumi-resource-pulumi-python"):
            shutil.copy(Path(POINTER.read_text().strip(), name), bin_folder)
        shutil.copy(ROOT / "tools" / "pulumi" / "pulumi-language-python", bin_folder)
        shutil.copy(ROOT / "tools" / "language_host.py", bin_folder)
        self.folder = root / "project"
        (self.folder / "mine").mkdir(parents=True)
        (self.folder / ".venv").symlink_to(sys.prefix)
        (self.folder / "Pulumi.yaml").write_text("name: demo\nruntime: {name: python, options: {virtualenv: .venv}}\n")
        self.spec(1)
        (self.folder / "mine" / "things.py").write_text(THINGS)
        self.main(MAIN)
        for name in ("home", "state"):
            (root / name).mkdir()
        self.environment = {
            "PATH": f"{bin_folder}:/usr/bin:/bin",
            "HOME": str(root / "home"),
            "PULUMI_HOME": str(root / "plugins"),
            "PULUMI_BACKEND_URL": f"file://{root}/state",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "true",
        }
        assert self.run("stack", "init", "local")[0] == 0

    def spec(self, workers: int) -> None:
        (self.folder / "Pulumi.local.yaml").write_text(
            f"config:\n  demo:spec: {{workerCount: {workers}, batchSize: 32}}\n"
            # With this line, which fits the empty passphrase, the CLI has no reason to change the file.
            "encryptionsalt: v1:aJNqciafA4w=:v1:Al2dPjnB8JDQDyDi:tqbUGv7LCadSFpQ+ffC7CzqRCp9Yjg==\n"
        )

    def main(self, text: str) -> None:
        (self.folder / "__main__.py").write_text(text)

    def run(self, *arguments: str) -> tuple[int, str]:
        result = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return result.returncode, result.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    if not POINTER.exists():
        pytest.skip("no Pulumi CLI: run `make setup`")
    return Project(tmp_path)


@pytest.mark.slow
def test_stack_is_previewed_made_and_destroyed_with_the_host(project: Project) -> None:
    stack_file = (project.folder / "Pulumi.local.yaml").read_bytes()
    status, said = project.run("preview")
    assert status == 0, said
    assert "2 to create" in said
    assert "made: true" in project.run("up", "--yes", "--skip-preview")[1]
    assert "2 unchanged" in project.run("up", "--yes", "--skip-preview")[1]
    assert "2 unchanged" in project.run("refresh", "--yes", "--skip-preview")[1]
    assert (project.folder / "Pulumi.local.yaml").read_bytes() == stack_file
    project.spec(2)
    said = project.run("preview", "--diff")[1]
    assert "~ workerCount: 1 => 2" in said
    assert "~ batchSize" not in said
    assert "1 updated" in project.run("up", "--yes", "--skip-preview")[1]
    status, said = project.run("destroy", "--yes", "--skip-preview")
    assert status == 0, said
    assert "2 deleted" in said
    assert list((project.folder.parent / "home").iterdir()) == []


@pytest.mark.slow
def test_error_of_a_program_is_shown_without_the_hosts_frames(project: Project) -> None:
    project.main("import pulumi\nraise pulumi.RunError('trainingInput.workerCount: -1, use 0 or more')\n")
    status, said = project.run("preview")
    assert status != 0
    assert said.split("Diagnostics:")[1].count("error:") == 1
    assert "error: trainingInput.workerCount: -1, use 0 or more\n" in said

    project.main("def f():\n    return 1 / 0\nf()\n")
    status, said = project.run("preview")
    assert status != 0
    assert "ZeroDivisionError" in said
    assert "language_host.py" not in said  # only the person's own frames are shown

    project.main("raise SystemExit(3)\n")
    status, said = project.run("preview")
    assert status != 0
    assert "the program ended with status 3" in said

    (project.folder / ".venv").unlink()
    project.environment["VIRTUAL_ENV"] = sys.prefix
    status, said = project.run("preview")
    assert status != 0
    assert "virtualenv is '.venv'" in said
    assert "make setup" in said
