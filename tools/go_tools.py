"""Build pinned Go programs into a cache outside the checkout: `python3 -m tools.go_tools fake-gcs-server`.

Each folder tools/<name>/ has a go.mod with a `tool` line and its go.sum, so that a build never changes by itself. This
module needs only the standard library, as it runs before there is a virtual environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
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

TOOLS = Path(__file__).resolve().parent
PROGRESS_SECONDS = 15
# The first Go that fetches a newer Go by itself when a go.mod asks for one.
OLDEST_GO = (1, 21)


class ToolError(Exception):
    """A tool cannot be downloaded or built. The message is one line that says what to do."""


def say(message: str) -> None:
    """Print one line of progress on stderr, as stdout is for the answer."""
    print(message, file=sys.stderr, flush=True)


def cache_root() -> Path:
    """Return the folder that all checkouts of one person share. It may not exist yet."""
    if own := os.environ.get("GPT2_TRAINING_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "gpt2-training"


def fingerprint(*files: Path) -> str:
    """Return 12 hex digits for these files and the kind of machine, as several kinds may share a home folder."""
    digest = hashlib.sha256(f"{sys.platform} {platform.machine()}".encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\n{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


@contextmanager
def _locked(name: str) -> Iterator[None]:
    path = cache_root() / f".{name}.lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up is making {name}, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, proof: str, fill: Callable[[Path], None]) -> Path:
    """Return the cache's folder `name`. If it is not there, `fill(folder)` makes it, once, and it appears as a whole.

    `proof` is a file in the folder that must be there and executable. If several processes need the folder, one fills
    it and the others wait. A process removes the remains of an interrupted one. Raise ToolError.
    """
    final = cache_root() / name
    if os.access(final / proof, os.X_OK):
        return final
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        with _locked(name):
            if os.access(final / proof, os.X_OK):
                return final
            # We hold the lock, so these are from a process that died, or have lost their program.
            for stale in [final, *cache_root().glob(f".{name}.part-*")]:
                shutil.rmtree(stale, ignore_errors=True)
            part = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=cache_root()))
            try:
                fill(part)
                if not os.access(part / proof, os.X_OK):
                    raise ToolError(f"{name} was made without its {proof}: please report this")
                part.chmod(0o755)
                part.rename(final)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    except OSError as error:
        raise ToolError(
            f"cannot write to {cache_root()} ({error.strerror}): set GPT2_TRAINING_CACHE to a folder"
        ) from None
    return final


def go_version() -> tuple[int, int]:
    """Return the version of the `go` on PATH. Raise ToolError if there is none that is recent enough."""
    need = f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or later and put it on PATH"
    try:
        answer = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ToolError(f"no Go on PATH: {need}") from None
    found = re.search(r"\bgo(\d+)\.(\d+)", answer)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST_GO:
        raise ToolError(f"`go version` says {answer.strip()!r}: {need}")
    return version


def go(source: Path, *arguments: str, log: Path, label: str) -> str:
    """Run one go command in the module `source`, report progress now and then, and return its stdout.

    The command's stderr goes to `log`. Raise ToolError with its last line.
    """
    environment = {
        **os.environ,
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly",
        "CGO_ENABLED": "0",
    }  # only Go is needed
    environment.setdefault("GOTOOLCHAIN", "auto")  # some distributions switch off fetching the Go that go.mod asks for
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, log.open("w") as err:
        process = subprocess.Popen(["go", *arguments], cwd=source, env=environment, stdout=out, stderr=err)
        try:
            while True:
                try:
                    status = process.wait(timeout=PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    lines = log.read_bytes().count(b"\n")
                    minutes, seconds = divmod(int(time.monotonic() - started), 60)
                    say(f"  {label}: {lines:5d} done, {minutes}:{seconds:02d}")
        except BaseException:
            process.send_signal(signal.SIGINT)  # go stops its compilers on this one
            process.wait()
            raise
        if status:
            last = (log.read_text(errors="replace").strip() or "no message").splitlines()[-1].strip()
            raise ToolError(f"`go {arguments[0]}` failed in {source.relative_to(TOOLS.parent)}: {last}")
        out.seek(0)
        return out.read()


def go_build(source: Path, output: Path, log: Path, linker_flags: str = "") -> None:
    """Build the program of the `tool` line in `source`/go.mod to the file `output`. Raise ToolError."""
    go_version()
    tool = re.search(r"^tool (\S+)$", (source / "go.mod").read_text(), re.MULTILINE)
    assert tool, f"{source}/go.mod has no tool line"
    name = output.name
    say(f"building {name} from its pinned Go modules (the first time takes minutes)")
    packages = go(source, "list", "-deps", tool[1], log=log, label=f"{name}: fetching Go modules")
    label = f"{name}: packages compiled, of at most {len(packages.split())}"
    flags = f"-s -w {linker_flags}".strip()  # no symbol tables: a third smaller
    go(source, "build", "-v", "-ldflags", flags, "-o", str(output), tool[1], log=log, label=label)


def build(name: str) -> Path:
    """Return the program of tools/<name>/go.mod, which is built if the cache does not have it. Raise ToolError."""
    source = TOOLS / name
    if not (source / "go.mod").is_file():
        raise ToolError(f"no pinned Go tool {name!r}: there is no {source.relative_to(TOOLS.parent)}/go.mod")
    folder = f"{name}-{fingerprint(source / 'go.mod', source / 'go.sum')}"
    log = cache_root() / f"{name}.log"
    return cached(folder, name, lambda part: go_build(source, part / name, log)) / name


def run_main(main: Callable[[], object]) -> int:
    """Print the result of `main`, or one line on stderr for ToolError and interruption. Return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # this is an exception, so half-made folders are removed
    try:
        print(main())
        return 0
    except ToolError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made was kept, run it again")
        return 130


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        say("usage: python3 -m tools.go_tools NAME   (a folder of tools/ with a go.mod); prints the program's path")
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    sys.exit(run_main(lambda: build(sys.argv[1])))
