"""Check, before money is spent, whether a stack can be made: text and Docker here; rights, quotas, machines at Google.

A line each: ok, a problem with what to do, or unknown, which is never taken for ok. Exit code: 1 if there are problems
or Google does not tell of the project.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console

from infra.estimate import measured
from infra.fleet.boot_image import contents, image_project
from infra.fleet.caveats import image_caveats, network_caveats, sharing_caveats, untried_caveats, waiting_caveats
from infra.fleet.fleet import Fleet, resolve_fleet
from infra.google.availability import NO_QUOTA_PROJECT, machine_types, unknown
from infra.google.org_policies import policy_checks
from infra.google.quotas import Check, QuotaLimits, check_quotas
from infra.job import job_spec
from infra.stack.config import ConfigError, StackConfig
from scripts.support.common import google_stack, run_main
from scripts.support.controller_checks import check_regions
from scripts.support.findings import FindingRow, print_findings
from scripts.support.service_agents import check_agents
from trainer.contract.errors import InputError
from trainer.gcloud.api import API_OFF, CHECK_NETWORK, ApiError, GoogleApi

# The rights to create what the stack makes. An account that may create one of these may as a rule delete it too.
PERMISSIONS = [
    "artifactregistry.repositories.create",
    "artifactregistry.repositories.uploadArtifacts",
    "cloudscheduler.jobs.create",
    "compute.firewalls.create",
    "compute.instanceGroupManagers.create",
    "compute.instanceTemplates.create",
    "compute.instances.create",
    "compute.networks.create",
    "compute.subnetworks.create",
    "logging.logMetrics.create",
    "monitoring.alertPolicies.create",
    "monitoring.dashboards.create",
    "storage.buckets.create",
    "workflows.workflows.create",
]
# With a pipeline only an owner's bootstrap needs these.
OWNER_PERMISSIONS = [
    "iam.roles.create",
    "iam.serviceAccounts.actAs",
    "iam.serviceAccounts.create",
    "resourcemanager.projects.setIamPolicy",
    "serviceusage.services.enable",
]
STYLES = {"ok": "green", "problem": "bold red", "unknown": "yellow", "note": "cyan"}
DOCKER_SECONDS = 30


def run(config: StackConfig, connect: Callable[[], GoogleApi] = GoogleApi) -> list[Check]:
    """Run all checks of a stack, in the order in which a person fixes them."""
    fleet = resolve_fleet(config)
    checks = here(config, fleet)
    try:
        api = connect()
        project, number = _project(api, config.project)
    except ApiError as error:  # all else would say the same
        finding, _, fix = str(error).partition("; ")
        name = "network" if fix == CHECK_NETWORK else "credentials"
        return [*checks, Check(name, "problem", finding, fix)]
    checks += [Check("credentials", "ok", "Google accepts them"), project]
    if project.state == "problem":  # all else would say the same
        return checks
    fix = f"`gcloud billing projects describe {config.project}` must say billingEnabled: true"
    if any(machines.accelerators for machines in fleet.roles):
        fix += "; an account on Google's free trial gets no GPU until it is upgraded"
    checks.append(Check("billing", "unknown", "a deployer cannot see it", fix))
    regions = check_regions(api, config)
    checks += [_apis(api, config), _permissions(api, config), *regions.values()]
    checks += check_agents(api, config, number, [name for name, check in regions.items() if check.state != "unknown"])
    checks += policy_checks(api, config, image_project(config.file.machines.image_family))
    checks += machine_types(api, config, fleet, fleet.zones)
    checks += [_image(api, config), *_caveats(config, fleet)]
    return checks + check_quotas(config, fleet, QuotaLimits(api, config.project, config.region))


def here(config: StackConfig, fleet: Fleet) -> list[Check]:
    """Check what `pulumi up` needs of this machine: the inputs of the run, and Docker to build the image."""
    problems: list[str] = []
    try:
        job = job_spec(config, fleet)
    except ConfigError as error:
        problems = error.problems
    except InputError as error:
        problems = [f"lock file: {error}"]
    checks = []
    for problem in problems:
        name, _, rest = problem.partition(": ")
        finding, _, fix = rest.partition("; ")
        checks.append(Check(name, "problem", finding, fix))
    if not problems:
        checks.append(Check("inputs", "ok", f"all that {job.run} starts from is there"))
    if config.file.image is None:
        checks.append(_docker(config))
    return checks


def _docker(config: StackConfig) -> Check:
    fix = f"or run `python -m scripts.build_image --stack {config.stack}` and write the image: that it prints"
    if (docker := shutil.which("docker")) is None:
        return Check("docker", "problem", "is not on PATH, and `pulumi up` builds the image", f"install it, {fix}")
    fix = f"start it, {fix}"
    try:
        done = subprocess.run(
            [docker, "info"], capture_output=True, text=True, errors="replace", timeout=DOCKER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Check("docker", "problem", f"`docker info` does not answer in {DOCKER_SECONDS} s", fix)
    if done.returncode:
        error_line = (done.stderr.strip().splitlines() or ["without a word"])[-1][:200].rstrip(".?! ")
        return Check("docker", "problem", f"`docker info` fails: {error_line}", fix)
    return Check("docker", "ok", "answers, to build the image")


def _project(api: GoogleApi, project: str) -> tuple[Check, str]:
    """Check the project, and return its number if known. Raise ApiError if Google or a login is out of reach."""
    try:
        reply = api.call("cloudresourcemanager", "GET", f"projects/{project}")
    except ApiError as error:
        if error.status in (403, 404) and not any(sign in str(error) for sign in (*API_OFF, NO_QUOTA_PROJECT)):
            fix = "check gcp:project in the stack file, or ask its owner for access"
            return Check("project", "problem", f"{project} is not there, or this account may not see it", fix), ""
        if error.status in (0, 401):
            raise
        if any(sign in str(error) for sign in API_OFF):
            fix = f"run `gcloud services enable cloudresourcemanager.googleapis.com --project {project}`"
            return Check("project", "unknown", "the API that tells of projects is not enabled", fix), ""
        return unknown("project", error), ""
    state = reply.get("lifecycleState", "unspecified")
    if state != "ACTIVE":
        return Check("project", "problem", f"{project} is {state}", "restore it, or use another gcp:project"), ""
    return Check("project", "ok", f"{project} is there"), str(reply.get("projectNumber", ""))


def _apis(api: GoogleApi, config: StackConfig) -> Check:
    from infra.google.services import api_names  # pulumi_gcp, 0.02 s of imports that --help does not need

    names = [f"projects/{config.project}/services/{name}.googleapis.com" for name in api_names(config)]
    try:
        reply = api.call("serviceusage", "GET", f"projects/{config.project}/services:batchGet", query={"names": names})
    except ApiError as error:
        return unknown("APIs", error)
    off = [str(s["name"]).rpartition("/")[2] for s in reply.get("services", []) if s.get("state") != "ENABLED"]
    if off:
        by = f"python -m scripts.bootstrap --stack {config.stack}" if config.file.pipeline else "pulumi up"
        return Check("APIs", "note", f"not enabled yet: {', '.join(off)}; `{by}` enables them")
    return Check("APIs", "ok", f"all {len(names)} are enabled")


def _permissions(api: GoogleApi, config: StackConfig) -> Check:
    wanted = PERMISSIONS if config.file.pipeline else PERMISSIONS + OWNER_PERMISSIONS
    if config.file.machines.compact_placement:
        wanted = [*wanted, "compute.resourcePolicies.create"]
    try:
        reply = api.call(
            "cloudresourcemanager",
            "POST",
            f"projects/{config.project}:testIamPermissions",
            body={"permissions": wanted},
        )
    except ApiError as error:
        return unknown("your permissions", error)
    missing = [permission for permission in wanted if permission not in reply.get("permissions", [])]
    if not missing:
        return Check("your permissions", "ok", f"all {len(wanted)} that making the stack takes")
    fix = "docs/google-cloud.md lists the roles that a deployer needs"
    return Check("your permissions", "problem", f"missing: {', '.join(missing)}", fix)


def _image(api: GoogleApi, config: StackConfig) -> Check:
    name, machines = "image family", config.file.machines
    family = machines.image_family
    project = image_project(family)
    shown = f"`gcloud compute images list --project {project} --no-standard-images` shows what is"
    try:
        image = api.call("compute", "GET", f"projects/{project}/global/images/family/{family}")
    except ApiError as error:
        if error.status == 404:
            return Check(name, "problem", f"there is no {family} in {project}", f"set machines.imageFamily; {shown}")
        return unknown(name, error)
    size = int(image.get("diskSizeGb", 0))
    if size > machines.boot_disk_gb:
        fix = f"raise machines.bootDiskGb to {size} or more"
        return Check(name, "problem", f"{family} needs {size} GB, bootDiskGb is {machines.boot_disk_gb}", fix)
    state = image.get("deprecated", {}).get("state", "ACTIVE")
    if state != "ACTIVE":
        return Check(name, "note", f"{family} is {state}", f"choose another machines.imageFamily soon; {shown}")
    found = f"{family} is {image.get('name', 'there')}"
    if (what := contents(family)) is not None:
        return Check(name, "ok", f"{found}; it {what}")
    found += ", which is not known here"
    fix = (
        "boot.sh brings Docker if it has none, and gives up without NVIDIA's driver or toolkit; start with one machine"
    )
    return Check(name, "unknown", found, fix)


def _caveats(config: StackConfig, fleet: Fleet) -> list[Check]:
    """Return notes on the machines that no question to Google answers."""
    tried = {run.machine for run in measured.read(config.root)}
    named = [("network of machines", sentence) for sentence in network_caveats(fleet)]
    named += [("image of machines", sentence) for sentence in image_caveats(fleet, config.file.machines.image_family)]
    named += [("sharing of a step", sentence) for sentence in sharing_caveats(config, fleet)]
    named += [("waiting for machines", sentence) for sentence in waiting_caveats(fleet)]
    named += [("machines tried", sentence) for sentence in untried_caveats(fleet, tried)]
    return [Check(name, "note", *sentence.split("; ", 1)) for name, sentence in named]


def show(checks: list[Check], console: Console) -> None:
    """Print the checks: as a table on a terminal, as lines into a log."""
    rows = []
    for check in checks:
        fix = f"; {check.fix}" if check.fix else ""
        line = f"{check.state}: {check.name}: {check.found}{fix}"
        rows.append(FindingRow(line, check.state, STYLES[check.state], (check.name, check.found, check.fix)))
    print_findings(rows, ("what", "found", "what to do"), console)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.preflight", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead")
    options = parser.parse_args(arguments)
    checks = run(google_stack(options.stack))
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        console = Console()
        show(checks, console)
        counted = [f"{sum(c.state == state for c in checks)} {state}" for state in STYLES]
        console.print(", ".join(counted), highlight=False)
    unasked = any(check.name == "project" and check.state == "unknown" for check in checks)
    return 1 if unasked or any(check.state == "problem" for check in checks) else 0


if __name__ == "__main__":
    run_main(main, ApiError)
