"""Get a Pulumi CLI that runs this project: `python3 tools/get_pulumi.py` prints the folder to put on PATH.

It uses the first of these that works:

1. The `pulumi` on PATH, if it is recent enough and has its Python language host.
2. The CLI that an earlier run has put into the cache.
3. The official installer, which fills the cache.
4. If releases cannot be downloaded, a build from pinned Go modules (about 5 minutes on 2 cores), with our own Python
   language host (language_host.py), because the official one is not served as a Go module.

It writes nothing outside of the cache (GPT2_TRAINING_CACHE, default ~/.cache/gpt2-training), except the answer, which
.venv/pulumi-path keeps for tools/activate. Progress goes to stderr.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS.parent))  # this file runs as a script, before anything is installed

from tools.go_tools import ToolError, cache_root, cached, fingerprint, go, go_build, run_main, say  # noqa: E402

# The newest version whose Go modules could be downloaded where this was written. It is tested with the pulumi SDK of
# requirements/infra.txt.
VERSION = "3.259.0"
# `pulumi` has --skip-plugin-pre-install since a version between 3.229 and 3.248. Without it, the `local` stack would
# download the Google Cloud plugin (100 MB), which it never uses. Flags can be PULUMI_OPTION_* since 3.208.
OLDEST = (3, 248, 0)
INSTALLER = "https://get.pulumi.com/install.sh"
INSTALL_SECONDS = 600
SOURCE = TOOLS / "pulumi"
LANGUAGE_HOST = "pulumi-language-python"


def version_of(pulumi: Path) -> tuple[int, ...] | None:
    """Return the version that `pulumi version` prints, or None if it does not run or prints something else."""
    # It gets a home of its own: even `pulumi version` writes into its home, and must not write into the person's.
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PULUMI_HOME": home, "PULUMI_SKIP_UPDATE_CHECK": "true"}
        try:
            answer = subprocess.run([pulumi, "version"], env=environment, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", answer.stdout.strip())
    return tuple(map(int, found.groups())) if found and answer.returncode == 0 else None


def on_path() -> Path | None:
    """Return the folder of the person's `pulumi` on PATH. Return None, and say why, if it cannot be used here."""
    own = cache_root()
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if f and not Path(f).is_relative_to(own)]
    path = os.pathsep.join(folders)
    found = shutil.which("pulumi", path=path)
    if not found:
        return None
    pulumi = Path(found).absolute()
    version = version_of(pulumi)
    if version is None:
        problem = "`pulumi version` does not work"
    elif version < OLDEST:
        problem = f"it is {'.'.join(map(str, version))}, this project needs {'.'.join(map(str, OLDEST))} or later"
    elif not shutil.which(LANGUAGE_HOST, path=os.pathsep.join([path, str(pulumi.resolve().parent)])):
        problem = f"it has no {LANGUAGE_HOST}"
    else:
        return pulumi.parent
    say(f"{pulumi} stays as it is, but cannot be used here: {problem}")
    return None


def install(folder: Path) -> bool:
    """Run the official installer into `folder`. Return False, and say why, if that fails."""
    script = folder / "install.sh"
    # The time-outs are short: in a closed network the set-up must lose seconds here, not minutes.
    fetch = [
        "curl",
        "-fsSL",
        "--proto",
        "=https",
        "--connect-timeout",
        "4",
        "--max-time",
        "30",
        "-o",
        str(script),
        INSTALLER,
    ]
    run = ["sh", str(script), "--version", VERSION, "--install-root", str(folder), "--no-edit-path", "--silent"]
    try:
        subprocess.run(fetch, check=True, capture_output=True)
        say(f"installing Pulumi {VERSION} with its official installer")
        # The installer ships no checksums; the transport is HTTPS, and the result must say the version asked for.
        subprocess.run(run, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except FileNotFoundError:
        say("no curl here, so no official installer")
        return False
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        what = "cannot be reached" if error.cmd is fetch else "failed"
        say(f"the official Pulumi installer {what}")
        return False
    finally:
        script.unlink(missing_ok=True)
    complete = os.access(folder / "bin" / LANGUAGE_HOST, os.X_OK)
    if not complete or version_of(folder / "bin" / "pulumi") != tuple(map(int, VERSION.split("."))):
        say(f"the official Pulumi installer did not bring a working {VERSION}")
        return False
    return True


def build(folder: Path) -> None:
    """Build the CLI into `folder`/bin, with our language host and Pulumi's dynamic provider. Raise ToolError."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    log = cache_root() / "pulumi.log"
    sdk = "github.com/pulumi/pulumi/sdk/v3"
    go_build(SOURCE, bin_folder / "pulumi", log, f"-X {sdk}/go/common/version.Version=v{VERSION}")
    module = Path(go(SOURCE, "list", "-m", "-f", "{{.Dir}}", sdk, log=log, label="pulumi").strip())
    provider = "pulumi-resource-pulumi-python"
    for source, name in [
        (SOURCE / LANGUAGE_HOST, LANGUAGE_HOST),
        (TOOLS / "language_host.py", "language_host.py"),
        (module / "python" / "dist" / provider, provider),
    ]:
        shutil.copyfile(source, bin_folder / name)
        (bin_folder / name).chmod(0o755)
    if version_of(bin_folder / "pulumi") is None:
        raise ToolError("the `pulumi` that Go built does not run here: please report this with the output of `go env`")


def fill(folder: Path) -> None:
    """Install the CLI into `folder`/bin with the installer, else build it with Go. Raise ToolError."""
    if install(folder):
        return
    shutil.rmtree(folder / "bin", ignore_errors=True)
    try:
        build(folder)
    except ToolError as error:
        raise ToolError(f"no Pulumi CLI: {error}; or install Pulumi {OLDEST[0]}.{OLDEST[1]} or later") from None


def get() -> Path:
    """Return the folder that has a usable `pulumi`, which is fetched or built if necessary. Raise ToolError."""
    folder = on_path()
    if not folder:
        inputs = [SOURCE / "go.mod", SOURCE / "go.sum", SOURCE / LANGUAGE_HOST, TOOLS / "language_host.py"]
        folder = cached(f"pulumi-{VERSION}-{fingerprint(*inputs)}", "bin/pulumi", fill) / "bin"
    environment = TOOLS.parent / ".venv"
    if environment.is_dir():
        part = environment / f"pulumi-path.{os.getpid()}"
        part.write_text(f"{folder}\n")
        part.replace(environment / "pulumi-path")
    return folder


if __name__ == "__main__":
    if len(sys.argv) > 1:
        say(__doc__ or "")
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    sys.exit(run_main(get))
