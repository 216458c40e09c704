"""tools/get_pulumi.py and tools/go_tools.py, run as by a person, with scripts in place of pulumi, curl and go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
# The system's commands that these sh scripts need; the tests' PATH has nothing else.
SYSTEM_COMMANDS = ["sh", "cat", "chmod", "mkdir", "dirname", "mktemp", "rm"]

GO = """#!/bin/sh
case "$1 $2" in
"version ") echo "go version ${GO_VERSION:-go1.26.8} linux/amd64" ;;
"list -deps") echo "one two three" ;;
"list -m") echo "$STAND/sdk" ;;
"build -v")
    echo built >> "$STAND/builds"
    if [ -p "$STAND/started" ]; then echo yes > "$STAND/started"; read line < "$STAND/gate"; fi
    if [ -n "$GO_FAILS" ]; then echo "go: some/module: 403 Forbidden" >&2; exit 1; fi
    while [ "$1" != -o ]; do shift; done
    printf '#!/bin/sh\\necho v3.259.0\\n' > "$2" && chmod 755 "$2" ;;
esac
"""
INSTALLER = """#!/bin/sh
[ "$1 $2 $3 $5" = "--version 3.259.0 --install-root --no-edit-path" ] || exit 9
mkdir -p "$4/bin"
printf '#!/bin/sh\\necho v3.259.0\\n' > "$4/bin/pulumi"
printf '#!/bin/sh\\n' > "$4/bin/pulumi-language-python"
chmod 755 "$4/bin/"*
"""


class Machine:
    """A machine with a checkout, an empty home and a PATH of scripts only."""

    def __init__(self, root: Path) -> None:
        self.stand, self.path, self.home, self.cache = (root / n for n in ("stand", "path", "home", "cache"))
        self.checkout = root / "checkout"
        for folder in (self.stand, self.path, self.home, self.checkout / ".venv"):
            folder.mkdir(parents=True)
        shutil.copytree(TOOLS, self.checkout / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        for name in SYSTEM_COMMANDS:
            (self.path / name).symlink_to(str(shutil.which(name)))
        provider = self.stand / "sdk/python/dist/pulumi-resource-pulumi-python"
        provider.parent.mkdir(parents=True)
        provider.write_text("#!/bin/sh\n")
        self.environment = {
            "PATH": str(self.path),
            "HOME": str(self.home),
            "GPT2_TRAINING_CACHE": str(self.cache),
            "STAND": str(self.stand),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def script(self, name: str, text: str, folder: Path | None = None) -> Path:
        file = (folder or self.path) / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *(command or ("tools/get_pulumi.py",))],
            cwd=self.checkout,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> tuple[int, str, str]:
        process = self.start(*command)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err

    def builds(self) -> int:
        file = self.stand / "builds"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def gate(self) -> None:
        """Let the script for `go build` report its start and then wait."""
        for name in ("started", "gate"):
            os.mkfifo(self.stand / name)

    def open_gate(self) -> None:
        (self.stand / "started").unlink()
        (self.stand / "gate").write_text("go on\n")

    def wait_until_started(self) -> None:
        assert (self.stand / "started").read_text() == "yes\n"

    def entries(self) -> list[str]:
        """Return the cache's entries, without locks and logs."""
        return sorted(f.name for f in self.cache.glob("*") if f.suffix not in (".lock", ".log"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.script("go", GO)
    machine.script("curl", "#!/bin/sh\nexit 6\n")
    return machine


def own_pulumi(machine: Machine, version: str, host: bool = True) -> Path:
    folder = machine.path.parent / "own"
    machine.script("pulumi", f"#!/bin/sh\n{version}\n", folder)
    if host:
        machine.script("pulumi-language-python", "#!/bin/sh\n", folder)
    machine.environment["PATH"] += f"{os.pathsep}{folder}"
    return folder


@pytest.mark.parametrize("version", ["v3.248.0", "3.300.1", "v4.0.0", "v3.301.0-alpha.1+dirty"])
def test_recent_pulumi_on_path_is_used(machine: Machine, version: str) -> None:
    folder = own_pulumi(machine, f"echo {version}")
    assert machine.run() == (0, str(folder), "")
    assert not machine.cache.exists()
    assert (machine.checkout / ".venv/pulumi-path").read_text() == f"{folder}\n"


def test_language_host_beside_the_target_of_a_link_on_path_is_used(machine: Machine) -> None:
    folder = own_pulumi(machine, "echo v3.300.0")
    machine.environment["PATH"] = str(machine.path)
    (machine.path / "pulumi").symlink_to(folder / "pulumi")
    assert machine.run() == (0, str(machine.path), "")


@pytest.mark.parametrize(
    ("version", "host", "why"),
    [
        ("echo v3.247.9", True, "it is 3.247.9, this project needs 3.248.0 or later"),
        ("echo v2.99.0", True, "it is 2.99.0"),
        ("echo segmentation fault; exit 139", True, "`pulumi version` does not work"),
        ("echo hello", True, "`pulumi version` does not work"),
        ("echo v3.300.0", False, "it has no pulumi-language-python"),
    ],
)
def test_unusable_pulumi_on_path_is_left_alone_and_one_is_built(
    machine: Machine, version: str, host: bool, why: str
) -> None:
    folder = own_pulumi(machine, version, host)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    status, out, err = machine.run()
    assert status == 0
    assert f"{folder}/pulumi stays as it is, but cannot be used here: {why}" in err
    assert Path(out).is_relative_to(machine.cache)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_pulumi_built_with_go_is_complete_and_built_once(machine: Machine) -> None:
    status, out, err = machine.run()
    assert status == 0, err
    names = {f.name for f in Path(out).iterdir() if os.access(f, os.X_OK)}
    assert names == {"pulumi", "pulumi-language-python", "language_host.py", "pulumi-resource-pulumi-python"}
    assert machine.run() == (0, out, "")
    # An activated environment has our own build on PATH: it must not be taken for the person's.
    machine.environment["PATH"] += f"{os.pathsep}{out}"
    assert machine.run() == (0, out, "")
    assert machine.builds() == 1
    assert list(machine.home.iterdir()) == []


def test_changed_language_host_gives_a_new_folder(machine: Machine) -> None:
    _, before, _ = machine.run()
    with (machine.checkout / "tools/language_host.py").open("a") as file:
        file.write("# changed\n")
    machine.environment["PATH"] += f"{os.pathsep}{before}"
    _, after, _ = machine.run()
    assert after != before
    assert (Path(after) / "language_host.py").read_text().endswith("# changed\n")


def test_official_installer_is_tried_before_a_build(machine: Machine) -> None:
    (machine.stand / "install.sh").write_text(INSTALLER)
    machine.script("curl", '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncat "$STAND/install.sh" > "$2"\n')
    status, out, err = machine.run()
    assert status == 0, err
    assert "with its official installer" in err
    assert sorted(f.name for f in Path(out).iterdir()) == ["pulumi", "pulumi-language-python"]
    assert machine.builds() == 0
    assert list(machine.home.iterdir()) == []


@pytest.mark.parametrize(
    ("installer", "why"),
    [
        ("exit 1\n", "installer failed"),
        (INSTALLER.replace("echo v3.259.0", "echo v3.1.0"), "did not bring a working 3.259.0"),
    ],
)
def test_failed_installer_is_followed_by_a_build(machine: Machine, installer: str, why: str) -> None:
    (machine.stand / "install.sh").write_text(installer)
    machine.script("curl", '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncat "$STAND/install.sh" > "$2"\n')
    status, out, err = machine.run()
    assert status == 0
    assert why in err
    assert machine.builds() == 1
    assert (Path(out) / "language_host.py").exists()


def last_line(err: str) -> str:
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_missing_go_and_installer_say_what_to_install(machine: Machine) -> None:
    (machine.path / "go").unlink()
    (machine.path / "curl").unlink()
    status, out, err = machine.run()
    assert (status, out) == (1, "")
    assert last_line(err) == (
        "error: no Pulumi CLI: no Go on PATH: install Go 1.21 or later and put it on PATH; "
        "or install Pulumi 3.248 or later"
    )
    assert machine.entries() == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("GO_VERSION", "go1.19.8", "install Go 1.21 or later"), ("GO_FAILS", "1", "go: some/module: 403 Forbidden")],
)
def test_unusable_go_is_one_line(machine: Machine, variable: str, value: str, said: str) -> None:
    machine.environment[variable] = value
    status, out, err = machine.run()
    assert (status, out) == (1, "")
    assert said in last_line(err)
    assert machine.entries() == []


def test_unwritable_cache_is_one_line(machine: Machine) -> None:
    machine.cache.write_text("a file, not a folder")
    status, _, err = machine.run()
    assert status == 1
    assert "set GPT2_TRAINING_CACHE to a folder" in last_line(err)


def test_two_set_ups_at_once_build_once(machine: Machine) -> None:
    machine.gate()
    first = machine.start()
    machine.wait_until_started()
    second = machine.start()
    assert second.stderr
    assert any("another set-up is making pulumi-3.259.0" in line for line in iter(second.stderr.readline, ""))
    machine.open_gate()
    (answer, _), (other, err) = (process.communicate(timeout=60) for process in (first, second))
    assert (first.returncode, second.returncode, err) == (0, 0, "")
    assert answer == other
    assert machine.builds() == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_build_leaves_nothing(machine: Machine, number: signal.Signals, status: int) -> None:
    machine.gate()
    process = machine.start()
    machine.wait_until_started()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert machine.entries() == []


def test_killed_build_is_cleared_away_by_the_next(machine: Machine) -> None:
    machine.gate()
    process = machine.start()
    machine.wait_until_started()
    process.kill()
    process.wait()
    assert len(machine.entries()) == 1  # this is a hidden, partial folder
    machine.open_gate()  # the orphaned go can end now
    status, out, _ = machine.run()
    assert status == 0
    assert machine.entries() == [Path(out).parent.name]


def test_go_tools_builds_any_pinned_tool(machine: Machine) -> None:
    status, out, _ = machine.run("-m", "tools.go_tools", "fake-gcs-server")
    assert status == 0
    assert Path(out).name == "fake-gcs-server"
    assert os.access(out, os.X_OK)
    status, _, err = machine.run("-m", "tools.go_tools", "unknown")
    assert (status, err) == (1, "error: no pinned Go tool 'unknown': there is no tools/unknown/go.mod\n")
