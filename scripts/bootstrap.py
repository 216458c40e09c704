"""Make what only an owner of the project may make for a stack with a pipeline: accounts, roles, grants, the login.

It shows every grant and asks before it makes them. Run it once with an owner's login, before the first `pulumi up`,
and again when gpt2-training:pipeline changes or a newer version of this project says so. docs/pipeline.md has the rest.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import yaml

from infra.stack.config import StackConfig
from scripts.support.common import CHECKOUT, UserError, google_stack, run_main

ACCOUNT = "gcp:serviceaccount/account:Account"


def run(config: StackConfig, yes: bool, checkout: Path = CHECKOUT) -> int:
    """Run the owner's program for a stack, and return Pulumi's exit code. Raise UserError."""
    if config.file.pipeline is None:
        raise UserError(
            f"gpt2-training:pipeline: stack {config.stack} has none; `pulumi up` makes all accounts itself, and nothing"
            " needs a bootstrap"
        )
    if _has_own_accounts(config.stack, checkout):
        raise UserError(
            f"stack {config.stack}: its own `up` made the accounts, and would delete them now; run `pulumi destroy"
            f" --stack {config.stack}` before you add gpt2-training:pipeline (models and data stay), then this again"
        )
    environment = dict(os.environ)
    settings = yaml.safe_load((checkout / "Pulumi.yaml").read_text(encoding="utf-8"))
    if backend := (settings.get("backend") or {}).get("url"):
        environment.setdefault("PULUMI_BACKEND_URL", backend)
    stack_file = yaml.safe_load((checkout / f"Pulumi.{config.stack}.yaml").read_text(encoding="utf-8"))
    secrets = ["--secrets-provider", stack_file["secretsprovider"]] if "secretsprovider" in stack_file else []
    pulumi = ["pulumi", "--cwd", str(checkout / "bootstrap")]
    commands = [
        [*pulumi, "stack", "select", "--create", config.stack, *secrets],
        [*pulumi, "up", "--stack", config.stack, *(["--yes"] if yes else [])],
    ]
    for command in commands:
        if code := subprocess.run(command, env=environment, check=False).returncode:
            return code
    return 0


def _has_own_accounts(stack: str, checkout: Path) -> bool:
    """Return whether the stack's own state has service accounts. A stack that does not exist yet has none."""
    command = ["pulumi", "--cwd", str(checkout), "stack", "export", "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if f"no stack named '{stack}' found" in done.stderr:
            return False
        raise UserError(f"stack {stack}: its state cannot be read: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    resources = json.loads(done.stdout)["deployment"].get("resources") or []
    return any(resource["type"] == ACCOUNT for resource in resources)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bootstrap", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack (default: %(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    return run(google_stack(options.stack), options.yes)


if __name__ == "__main__":
    run_main(main)
