"""Enable the APIs that a run needs, and leave them enabled: others in the project may use them by then."""

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


class Services(pulumi.ComponentResource):
    """The enabled APIs. Everything else waits for them."""

    def __init__(self, config: StackConfig, opts: pulumi.ResourceOptions):
        super().__init__("gpt2-training:google:Services", "services", {}, opts)
        names = [*APIS, "billingbudgets"] if config.file.limits.billing_account else list(APIS)
        for name in names:
            projects.Service(
                name,
                service=f"{name}.googleapis.com",
                disable_on_destroy=False,
                disable_dependent_services=False,
                opts=pulumi.ResourceOptions(parent=self),
            )
        self.register_outputs({})
