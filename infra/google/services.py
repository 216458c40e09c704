"""Enable the APIs that a run needs, and leave them enabled: others in the project may use them by then.

In a stack with a pipeline an owner enables them (access.py), and `up` takes them as they are.
"""

import pulumi
from pulumi_gcp import projects

from infra.stack.config import StackConfig

APIS = (
    "artifactregistry",
    "cloudresourcemanager",
    "cloudscheduler",
    "compute",
    "iam",
    "logging",
    "monitoring",
    "storage",
    "workflowexecutions",
    "workflows",
)
PIPELINE_APIS = ("iamcredentials", "sts")  # a job trades GitHub's token for Google's, and that for an account's


def api_names(config: StackConfig) -> list[str]:
    """Return the short names of the APIs that a stack needs."""
    names = list(APIS)
    if config.file.limits.billing_account:
        names.append("billingbudgets")
    return [*names, *PIPELINE_APIS] if config.file.pipeline else names


class Services(pulumi.ComponentResource):
    """The enabled APIs. Everything else waits for them."""

    def __init__(self, config: StackConfig, opts: pulumi.ResourceOptions, *, enabled: bool = False):
        """Declare the APIs; `enabled` says that an owner has declared them already."""
        super().__init__("gpt2-training:google:Services", "services", {}, opts)
        for name in [] if enabled else api_names(config):
            projects.Service(
                name,
                service=f"{name}.googleapis.com",
                disable_on_destroy=False,
                disable_dependent_services=False,
                opts=pulumi.ResourceOptions(parent=self),
            )
        self.register_outputs({})
