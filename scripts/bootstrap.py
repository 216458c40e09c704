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


def run(config: StackConfig, *, yes: bool, destroy: bool = False, checkout: Path = CHECKOUT) -> int:
    """Run the owner's program for a stack, or destroy what it made, and return Pulumi's exit code. Raise UserError."""
    types = _resource_types(config.stack, checkout)
    if destroy and any(kind.startswith("gcp:") for kind in types):
        raise UserError(
            f"stack {config.stack}: its machines use these accounts; run `pulumi destroy --stack {config.stack}` first"
            " (models and data stay)"
        )
    if config.file.pipeline is None:
        raise UserError(
            f"gpt2-training:pipeline: stack {config.stack} has none; `pulumi up` makes all accounts itself, and nothing"
            " needs a bootstrap"
        )
    if ACCOUNT in types:
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
        [*pulumi, "destroy" if destroy else "up", "--stack", config.stack, *(["--yes"] if yes else [])],
    ]
    for command in commands:
        if code := subprocess.run(command, env=environment, check=False).returncode:
            return code
    return 0


def _resource_types(stack: str, checkout: Path) -> set[str]:
    """Return the types of the resources in the stack's own state. A stack that does not exist yet has none."""
    command = ["pulumi", "--cwd", str(checkout), "stack", "export", "--stack", stack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if f"no stack named '{stack}' found" in done.stderr:
            return set()
        raise UserError(f"stack {stack}: its state cannot be read: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return {resource["type"] for resource in json.loads(done.stdout)["deployment"].get("resources") or []}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bootstrap", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack (default: %(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--destroy", action="store_true", help="end the pipeline: delete its accounts and all grants")
    options = parser.parse_args(arguments)
    return run(google_stack(options.stack), yes=options.yes, destroy=options.destroy)


if __name__ == "__main__":
    run_main(main)
