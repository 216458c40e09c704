"""Make the Python environment of requirements/workflows.txt in the cache: `python -m tools.workflows` prints its path.

It is one of its own, because workflows-emulator needs an older FastAPI than scripts.serve.
"""

import subprocess
import sys
from pathlib import Path

from tools.go_tools import TOOLS, ToolError, cached, fingerprint, run_main, say

REQUIREMENTS = TOOLS.parent / "requirements" / "workflows.txt"


def environment() -> Path:
    """Return the environment, which is made if the cache does not have it. Raise ToolError."""
    return cached(f"workflows-{fingerprint(REQUIREMENTS)}", "bin/python", _fill)


def _fill(folder: Path) -> None:
    say("set-up: installing the Python packages of the workflows' emulator (10 seconds)")
    make = [sys.executable, "-m", "venv", str(folder)]
    install = [str(TOOLS / "install_packages"), str(folder), str(REQUIREMENTS), "--quiet"]
    for command in (make, install):
        done = subprocess.run(command, cwd=TOOLS.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            last_line = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ToolError(f"requirements {REQUIREMENTS.name} cannot be installed: {last_line}")


if __name__ == "__main__":
    sys.exit(run_main(environment))
