"""Check what the controller of a stack rests on at Google: two services in its region, and their service agents."""

from infra.google.availability import unknown
from infra.google.quotas import Check
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

SERVICES = {"cloudscheduler": "Cloud Scheduler", "workflows": "Workflows"}


def check_controller(api: GoogleApi, config: StackConfig, number: str) -> list[Check]:
    """Return the checks. number: of the project, empty if it is not known."""
    regions = {service: _region(api, config, service) for service in SERVICES}
    return [*regions.values(), *_agents(api, config, number, [s for s, c in regions.items() if c.state != "unknown"])]


def _region(api: GoogleApi, config: StackConfig, service: str) -> Check:
    """Check whether a service is in the stack's region, as not every service is in each."""
    name = SERVICES[service]
    try:
        locations = api.pages(service, f"projects/{config.project}/locations", "locations")
    except ApiError as error:
        return unknown(name, error)
    if config.region in {location.get("locationId") for location in locations}:
        return Check(name, "ok", f"is in {config.region}")
    return Check(name, "problem", f"is not in {config.region}", "use another gcp:region, in another stack")


def _agents(api: GoogleApi, config: StackConfig, number: str, services: list[str]) -> list[Check]:
    """Check the roles of the service agents, without which a service cannot work as our accounts.

    services: those whose API is enabled, as Google makes an agent when its API is.
    """
    if not services:
        return []
    name = "agents of Cloud Scheduler and Workflows"
    if not number:
        return [Check(name, "unknown", "the project's number is not known, and so not their names")]
    try:
        policy = api.call("cloudresourcemanager", "POST", f"projects/{config.project}:getIamPolicy", body={})
    except ApiError as error:
        return [unknown(name, error)]
    held = {(binding["role"], member) for binding in policy.get("bindings", []) for member in binding["members"]}
    missing = []
    for service in services:
        role, member = (
            f"roles/{service}.serviceAgent",
            f"serviceAccount:service-{number}@gcp-sa-{service}.iam.gserviceaccount.com",
        )
        if (role, member) not in held:
            missing.append(f"`gcloud projects add-iam-policy-binding {config.project} --member {member} --role {role}`")
    if missing:
        return [Check(name, "problem", "a role is missing, so the controller cannot start", " and ".join(missing))]
    return [Check(name, "ok", "have their roles")]
