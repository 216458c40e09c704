"""Check whether Google has what a stack asks for: its machine types in a zone, and enough quota.

`up` reports what is missing before anything is made and continues: Google may know better, and a quota may be raised
meanwhile. Whether a machine is free is not known beforehand; with too few, groups wait.
"""

from collections.abc import Callable, Sequence

import pulumi

from infra.fleet.caveats import network_caveats
from infra.fleet.fleet import Fleet
from infra.google.quotas import Check, QuotaLimits, check_quotas
from infra.stack.config import StackConfig
from trainer.gcloud.api import API_OFF, ApiError, GoogleApi

NO_QUOTA_PROJECT = "requires a quota project"


def report(
    config: StackConfig,
    fleet: Fleet,
    zones: Sequence[str],
    parent: pulumi.Resource,
    connect: Callable[[], GoogleApi] = GoogleApi,
) -> None:
    """Warn of each thing that Google will not give, and log one line of what could not be checked. Never raises."""
    for sentence in network_caveats(fleet):
        pulumi.log.warn(sentence, parent)
    try:
        api = connect()
        checks = machine_types(api, config, fleet, zones)
        checks += check_quotas(config, fleet, QuotaLimits(api, config.project, config.region))
    except ApiError as error:
        not_checked(str(error), parent)
        return
    except Exception as error:  # an answer of an unexpected shape is no reason to stop
        not_checked(f"{type(error).__name__}: {error}", parent)
        return
    if all(check.state == "unknown" for check in checks):  # as before the first `up` in a project, with its APIs off
        not_checked(checks[0].found, parent)
        return
    for check in checks:
        if check.state == "problem":
            pulumi.log.warn(f"{check.name}: {check.found}; {check.fix}", parent)
    names = [check.name for check in checks if check.state == "unknown"]
    more = f"; `python -m scripts.preflight --stack {config.stack}` tells why" if names else ""
    capacity = f"whether machines are free in {' or '.join(zones)}"
    pulumi.log.info(f"not checked: {', '.join([capacity, *names])}{more}", parent)


def not_checked(why: str, parent: pulumi.Resource) -> None:
    """Log in one line why quotas and machine types are not checked."""
    pulumi.log.info(f"not checked: quotas and machine types ({why.splitlines()[0]})", parent)


def machine_types(api: GoogleApi, config: StackConfig, fleet: Fleet, zones: Sequence[str]) -> list[Check]:
    """Check whether each of these zones has the machines. All must have them, as the run may move to any."""
    types: dict[str, None] = {}
    for machines in fleet.roles:
        types[f"machineTypes/{machines.machine.name}"] = None
        if machines.accelerator:
            types[f"acceleratorTypes/{machines.accelerator}"] = None
    checks = []
    for zone in zones:
        try:
            missing = [name for name in types if not _exists(api, f"projects/{config.project}/zones/{zone}/{name}")]
        except ApiError as error:
            checks.append(unknown(f"machines in {zone}", error))
            continue
        if not missing:
            finding = "all types are there; whether one is free shows only when it is asked for"
            checks.append(Check(f"machines in {zone}", "ok", finding))
        else:
            lacks = ", ".join(name.partition("/")[2] for name in missing)
            fix = f"take {zone} out of machines.zones, or use another machine type"
            checks.append(Check(f"machines in {zone}", "problem", f"has no {lacks}", fix))
    return checks


def _exists(api: GoogleApi, path: str) -> bool:
    """Return whether Compute Engine has an object of this path. Raise ApiError."""
    try:
        api.call("compute", "GET", path)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def unknown(name: str, error: ApiError, fix: str = "") -> Check:
    """Return the check of a question that was not answered. An API that is off is no problem: the stack enables it."""
    if NO_QUOTA_PROJECT in str(error):
        fix = "run `gcloud auth application-default set-quota-project` with the project's id"
        return Check(name, "unknown", "your login names no project to which questions are counted", fix)
    if any(sign in str(error) for sign in API_OFF):
        return Check(name, "unknown", "its API is not enabled yet", "ask again after the first `pulumi up`")
    return Check(name, "unknown", str(error), fix)
