"""Let four workflows of one GitHub repository preview and deploy this stack, without a key (docs/pipeline.md).

An owner declares all of it (access.py): neither account may change its own rights.
"""

import pulumi
from pulumi_gcp import iam, projects, serviceaccount

from infra.google.identity import Identity
from infra.stack.config import StackConfig
from infra.stack.keys import PipelineSettings

ISSUER = "https://token.actions.githubusercontent.com"
ENVIRONMENT = "gpt2-training"  # the repository's environment: whoever may approve its jobs decides who deploys
MAIN = "refs/heads/main"
# Google's predefined roles for each account on the project; section 1 of docs/google-cloud.md gives the reasons.
DEPLOYER_ROLES = (
    "roles/artifactregistry.admin",
    "roles/cloudscheduler.admin",
    "roles/compute.instanceAdmin.v1",
    "roles/compute.networkAdmin",
    "roles/compute.securityAdmin",
    "roles/compute.viewer",
    "roles/iam.serviceAccountViewer",
    "roles/logging.configWriter",
    "roles/monitoring.editor",
    "roles/serviceusage.serviceUsageConsumer",
    "roles/workflows.editor",
)
PREVIEWER_ROLES = (
    "roles/artifactregistry.reader",
    "roles/cloudscheduler.viewer",
    "roles/compute.viewer",
    "roles/iam.securityReviewer",  # reads grants, which `preview --refresh` compares
    "roles/iam.serviceAccountViewer",
    "roles/logging.viewer",
    "roles/monitoring.viewer",
    "roles/serviceusage.serviceUsageConsumer",  # a budget's questions are charged to the project
    "roles/workflows.viewer",
)
BUCKETS = ["storage.buckets.create", "storage.buckets.list"]  # these cannot be limited to a bucket's name


def account_mapping(repository: str) -> str:
    """Return the account that a job may be, as an expression over GitHub's claims: deploy, preview or none.

    The claim `workflow_ref` has the repository, the workflow's file and the ref that the file was read from. A job that
    is started by a push to main, by an issue's label or by pull_request_target has main's; one of a pull request has
    refs/pull/NUMBER/merge, which nobody can push to.
    """
    workflow = f"{repository}/.github/workflows"
    deploys = ", ".join(f"'{workflow}/{file}.yml@{MAIN}'" for file in ("deploy", "destroy"))
    deployer = (
        f"assertion.ref == '{MAIN}' && assertion.workflow_ref in [{deploys}]"
        f" && 'environment' in assertion && assertion.environment == '{ENVIRONMENT}'"
    )
    previewer = (
        f"assertion.workflow_ref == '{workflow}/drift.yml@{MAIN}'"
        f" || assertion.workflow_ref.startsWith('{workflow}/review.yml@refs/pull/')"
    )
    return f"({deployer}) ? 'deploy' : (({previewer}) ? 'preview' : 'none')"


class Pipeline(pulumi.ComponentResource):
    """An identity pool and a provider for one repository, an account that deploys, and one that reads."""

    provider: pulumi.Output[str]  # full name, for google-github-actions/auth
    deployer: pulumi.Output[str]  # e-mail
    previewer: pulumi.Output[str]

    def __init__(
        self,
        config: StackConfig,
        settings: PipelineSettings,
        existing_roles: set[str],
        identity: Identity,
        opts: pulumi.ResourceOptions,
    ):
        """Declare the pipeline's identities.

        Args:
            config: the stack.
            settings: the repository.
            existing_roles: ids of the custom roles that an earlier stack of this name left.
            identity: the accounts that the deployer hands to the machines and to the controller.
            opts: the parent.
        """
        super().__init__("gpt2-training:google:Pipeline", "pipeline", {}, opts)
        self._config, self._child = config, pulumi.ResourceOptions(parent=self)
        role_id = f"gpt2_{config.stack.replace('-', '_')}_deployer"
        self._adopt = role_id in existing_roles  # the role is made last: if it exists, pool and provider do too
        pool_id = f"gpt2-{config.stack}"
        pools = f"projects/{config.project}/locations/global/workloadIdentityPools/{pool_id}"
        pool = iam.WorkloadIdentityPool(
            "pool",
            workload_identity_pool_id=pool_id,
            display_name=f"GitHub, stack {config.stack}"[:32],
            opts=self._kept(pools),
        )
        provider = iam.WorkloadIdentityPoolProvider(
            "github",
            workload_identity_pool_id=pool.workload_identity_pool_id,
            workload_identity_pool_provider_id="github",
            oidc={"issuer_uri": ISSUER},
            attribute_mapping={
                # Google allows 127 bytes, and GitHub's own subject may be longer. The audit log leads to the job.
                "google.subject": "assertion.repository_id + ':' + assertion.run_id",
                "attribute.account": account_mapping(settings.repository),
            },
            # GitHub signs for all of its users: without this, any repository in the world could log in. A name may be
            # given up and taken by others, a number may not.
            attribute_condition=f"assertion.repository_id == '{settings.repository_id}'"
            f" && assertion.repository == '{settings.repository}' && attribute.account != 'none'",
            opts=self._kept(f"{pools}/providers/github"),
        )
        deployer = self._account("deploy", f"deploys the stack {config.stack}")
        previewer = self._account("preview", f"previews the stack {config.stack}")
        for name, job, account in (("deployer", "deploy", deployer), ("previewer", "preview", previewer)):
            member = pulumi.Output.concat("principalSet://iam.googleapis.com/", pool.name, f"/attribute.account/{job}")
            self._on_account(f"{name}-login", account.name, "roles/iam.workloadIdentityUser", member)
        self._deployer(deployer, role_id, [pool, provider])
        for name, handed in (*identity.machines.items(), ("controller", identity.controller)):
            full = pulumi.Output.concat(f"projects/{config.project}/serviceAccounts/", handed.email)
            self._on_account(f"deployer-acts-as-{name}", full, "roles/iam.serviceAccountUser", deployer.member)
        self._previewer(previewer)
        self.provider, self.deployer, self.previewer = provider.name, deployer.email, previewer.email
        self.register_outputs({})

    def _deployer(self, account: serviceaccount.Account, role_id: str, first: list[pulumi.Resource]) -> None:
        """Grant the deployer what it needs; its custom role is made after the resources of `first`."""
        config = self._config
        for role in DEPLOYER_ROLES:
            self._grant(f"deployer-{role.removeprefix('roles/')}", role, account)
        self._on_own_buckets("deployer-buckets", "roles/storage.admin", account)
        full = f"projects/{config.project}/roles/{role_id}"
        custom = projects.IAMCustomRole(
            "deployer-role",
            role_id=role_id,
            title=f"Makes buckets of gpt2-{config.stack}",
            permissions=BUCKETS,
            opts=self._kept(full, first),
        )
        self._grant("deployer-bucket-maker", custom.name, account)

    def _previewer(self, account: serviceaccount.Account) -> None:
        """Grant the previewer what it reads."""
        for role in PREVIEWER_ROLES:
            self._grant(f"previewer-{role.removeprefix('roles/')}", role, account)
        # The buckets do not exist before the first `up`, so these grants are on the project, for these names alone.
        for role in ("roles/storage.bucketViewer", "roles/storage.objectViewer"):
            self._on_own_buckets(f"previewer-{role.rpartition('.')[2]}", role, account)

    def _kept(self, adopted: str, first: list[pulumi.Resource] | None = None) -> pulumi.ResourceOptions:
        """Return options to keep a resource on destroy, and to adopt it under this id if an earlier stack left it.

        Google blocks the ids of deleted pools and roles for weeks. Without accounts and grants they allow nothing.
        """
        return pulumi.ResourceOptions(
            parent=self, retain_on_delete=True, import_=adopted if self._adopt else None, depends_on=first
        )

    def _account(self, name: str, display_name: str) -> serviceaccount.Account:
        return serviceaccount.Account(
            name, account_id=f"gpt2-{self._config.stack}-{name}", display_name=display_name, opts=self._child
        )

    def _on_account(self, name: str, account: pulumi.Input[str], role: str, member: pulumi.Input[str]) -> None:
        """Grant a role on one account."""
        serviceaccount.IAMMember(name, service_account_id=account, role=role, member=member, opts=self._child)

    def _on_own_buckets(self, name: str, role: str, account: serviceaccount.Account) -> None:
        """Grant a role on the project for the stack's two buckets and their objects alone."""
        names = [url.removeprefix("gs://") for url in (self._config.bucket, self._config.data_bucket)]
        owned = [f"resource.name == 'projects/_/buckets/{name}'" for name in names]
        owned += [f"resource.name.startsWith('projects/_/buckets/{name}/')" for name in names]
        self._grant(name, role, account, "its stack's buckets alone", " || ".join(owned))

    def _grant(
        self,
        name: str,
        role: pulumi.Input[str],
        account: serviceaccount.Account,
        title: str = "",
        expression: str = "",
    ) -> None:
        projects.IAMMember(
            f"{name}-grant",
            project=self._config.project,
            role=role,
            member=account.member,
            condition={"title": title, "expression": expression} if expression else None,
            opts=self._child,
        )
