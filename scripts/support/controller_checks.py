"""Check whether the two services that the controller of a stack rests on are in its region."""

from infra.google.availability import unknown
from infra.google.quotas import Check
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi

SERVICES = {"cloudscheduler": "Cloud Scheduler", "workflows": "Workflows"}


def check_regions(api: GoogleApi, config: StackConfig) -> dict[str, Check]:
    """Return the check of each service. It is unknown where the service's API is not enabled."""
    return {service: _region(api, config, service) for service in SERVICES}


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
