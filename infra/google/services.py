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
        names = [] if enabled else api_names(config)
        services = {
            name: projects.Service(
                name,
                service=f"{name}.googleapis.com",
                disable_on_destroy=False,
                disable_dependent_services=False,
                opts=pulumi.ResourceOptions(parent=self),
            )
            for name in names
        }
        if not enabled:
            self._agent(config, services["workflows"])
        self.register_outputs({})

    def _agent(self, config: StackConfig, service: projects.Service) -> None:
        """Make the account in whose name Workflows starts a workflow, with the role that Google gives it.

        In some projects the first workflow is refused, as Google has not made its agent yet. Other workflows of the
        project have the same agent, so neither is taken back.
        """
        agent = projects.ServiceIdentity(
            "workflows-agent",
            service="workflows.googleapis.com",
            opts=pulumi.ResourceOptions(parent=self, depends_on=[service]),
        )
        projects.IAMMember(
            "workflows-agent-grant",
            project=config.project,
            role="roles/workflows.serviceAgent",
            member=agent.member,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )
