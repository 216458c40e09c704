"""Declare what only an owner of the project decides about a stack with a pipeline, as a program of its own.

It is what lets an account become another one or gain rights: the APIs, the accounts of the machines and of the
controller, the custom roles, every grant on the project, and the pipeline's login. `scripts.bootstrap` runs it once,
with a person's login. `pulumi up` of the stack then needs none of these rights, and so a job that runs it has none.
"""

from typing import get_args

import pulumi
import pulumi_gcp as gcp

from infra.google.existing import custom_roles
from infra.google.identity import Identity
from infra.google.pipeline import Pipeline
from infra.google.services import Services
from infra.stack.config import ConfigError, StackConfig
from trainer.contract.spec import Role


def declare_access(config: StackConfig) -> None:
    """Declare accounts, roles, grants and login, and export the variables of the GitHub workflows.

    Raise ConfigError for a stack without a pipeline, whose own `up` declares what it needs of this.
    """
    settings = config.file.pipeline
    if settings is None:
        raise ConfigError(["gpt2-training:pipeline: missing; without a pipeline `pulumi up` makes all accounts itself"])
    labels = {"gpt2-stack": config.stack}
    provider = gcp.Provider("google", project=config.project, region=config.region, default_labels=labels)
    existing = custom_roles(config.project, pulumi.InvokeOptions(provider=provider))
    services = Services(config, pulumi.ResourceOptions(provider=provider))
    after = pulumi.ResourceOptions(provider=provider, depends_on=[services])
    # All roles, also those without machines: a stack file that gets servers later needs no owner for that.
    identity = Identity(config, get_args(Role), existing, after)
    pipeline = Pipeline(config, settings, existing, identity, after)
    pulumi.export("PIPELINE_PROVIDER", pipeline.provider)
    pulumi.export("PIPELINE_DEPLOYER", pipeline.deployer)
    pulumi.export("PIPELINE_PREVIEWER", pipeline.previewer)
    if account := config.file.limits.billing_account:
        _ask_for_billing(config, account)


def _ask_for_billing(config: StackConfig, billing_account: str) -> None:
    """Say which grants on the billing account are missing, as an owner of the project may not make them."""
    for name, role in (("deploy", "costsManager"), ("preview", "viewer")):
        member = f"serviceAccount:gpt2-{config.stack}-{name}@{config.project}.iam.gserviceaccount.com"
        pulumi.log.warn(
            "limits.billingAccount: the pipeline needs this of an administrator of the billing account: gcloud billing"
            f" accounts add-iam-policy-binding {billing_account} --role roles/billing.{role} --member {member}"
        )
