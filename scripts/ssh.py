"""Open a shell on a machine of a run on Google Cloud, or run a command there: `... worker -- nvidia-smi`.

Machines have no public address: gcloud goes through the Identity-Aware Proxy, for which an account needs
roles/iap.tunnelResourceAccessor and roles/compute.osLogin.
"""

import argparse
import os
import shlex
import shutil
import sys

from infra.fleet.fleet import role_counts
from scripts.support.common import UserError, google_stack, run_main
from scripts.support.google_groups import InstanceGroup, Json, instance_name, read_groups
from trainer.gcloud.api import ApiError, GoogleApi


def choose(groups: list[InstanceGroup], role: str, index: int, stack: str) -> tuple[str, str]:
    """Return the instance and zone of the index-th running machine of a role, by name. Raise UserError."""
    role_groups = [group for group in groups if group.role == role]
    if not role_groups:
        roles = ", ".join(dict.fromkeys(group.role for group in groups)) or "none"
        raise UserError(
            f"{role}: stack {stack} has no such machines now (it has: {roles}); `pulumi up --stack {stack}` makes them"
        )
    instances = [instance for group in role_groups for instance in group.instances]
    running = sorted((i for i in instances if i.get("instanceStatus") == "RUNNING"), key=instance_name)
    if not running:
        size = sum(group.size for group in role_groups)
        why = f"none of {size} runs yet" if size else "its group has size 0: the run has ended or was stopped"
        raise UserError(f"{role}: no machine now, {why}; `python -m scripts.watch --stack {stack}` tells more")
    if index >= len(running):
        raise UserError(f"--index {index}: {len(running)} machines of role {role} run; use 0 to {len(running) - 1}")
    return instance_name(running[index]), _zone(running[index])


def _zone(instance: Json) -> str:
    """Return the zone in an instance's address, .../zones/ZONE/instances/NAME."""
    return str(instance["instance"]).split("/zones/")[1].split("/")[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ssh", description=__doc__, usage="%(prog)s [options] ROLE [-- COMMAND ...]"
    )
    parser.add_argument("role", metavar="ROLE", choices=["master", "worker", "ps"], help="master, worker or ps")
    parser.add_argument("--stack", default="dev", help="the stack (default: %(default)s)")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="which of the role's machines, from 0")
    parser.add_argument("--print", action="store_true", help="print the gcloud command, do not run it")
    own, remote_command = _split(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    if options.index < 0:
        parser.error("--index: use 0 or more")
    config = google_stack(options.stack)
    roles = role_counts(config)
    if options.role not in roles:
        raise UserError(
            f"{options.role}: stack {config.stack} has no such machines by its stack file (it has: {', '.join(roles)})"
        )
    gcloud = shutil.which("gcloud")
    if gcloud is None and not options.print:
        raise UserError("there is no gcloud on PATH; install the Google Cloud CLI, or see the command with --print")
    try:
        groups = read_groups(GoogleApi(), config.project, config.region, config.stack)
    except ApiError as error:
        if error.status:
            raise
        raise UserError(
            f"the machine's name and zone, which Google must be asked for, are not known: {error}"
        ) from None
    instance, zone = choose(groups, options.role, options.index, config.stack)
    command = ["gcloud", "compute", "ssh", instance, "--tunnel-through-iap"]
    command += ["--project", config.project, "--zone", zone]
    if remote_command:
        command += ["--command", shlex.join(remote_command)]
    if gcloud is not None and not options.print:
        os.execv(gcloud, command)  # noqa: S606  the terminal is its own from here on
    print(shlex.join(command))
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first `--`."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


if __name__ == "__main__":
    run_main(main, ApiError)
