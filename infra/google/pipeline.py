"""Let the workflows of one GitHub repository preview and deploy this stack, without a key (docs/pipeline.md).

`pulumi destroy` keeps all of it, as the deployer itself may be running that, and the next `up` adopts it.
"""

from collections.abc import Iterable

import pulumi
from pulumi_gcp import iam, projects, serviceaccount, storage

from infra.google.identity import CONTROLLER_ROLES, MACHINE_ROLES
from infra.stack.config import StackConfig

ISSUER = "https://token.actions.githubusercontent.com"
ENVIRONMENT = "gpt2-training"  # the repository's environment: whoever may approve its jobs decides who deploys
# Google's predefined roles for each account on the project; section 1 of docs/google-cloud.md gives the reasons.
DEPLOYER_ROLES = (
    "roles/artifactregistry.admin",
    "roles/cloudscheduler.admin",
    "roles/compute.instanceAdmin.v1",
    "roles/compute.networkAdmin",
    "roles/compute.securityAdmin",
    "roles/iam.roleAdmin",
    "roles/iam.serviceAccountAdmin",
    "roles/iam.serviceAccountUser",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/logging.configWriter",
    "roles/monitoring.editor",
    "roles/serviceusage.serviceUsageAdmin",
    "roles/workflows.editor",
)
PREVIEWER_ROLES = (
    "roles/artifactregistry.reader",
    "roles/cloudscheduler.viewer",
    "roles/compute.viewer",
    "roles/iam.roleViewer",
    "roles/iam.securityReviewer",  # reads grants, which `preview --refresh` compares
    "roles/iam.serviceAccountViewer",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/logging.viewer",
    "roles/monitoring.viewer",
    "roles/serviceusage.serviceUsageViewer",
    "roles/workflows.viewer",
)
BUCKETS = ["storage.buckets.create", "storage.buckets.list"]  # these cannot be limited to a bucket's name


class Pipeline(pulumi.ComponentResource):
    """An identity pool and a provider for one repository, an account that deploys, and one that reads."""

    provider: pulumi.Output[str]  # full name, for google-github-actions/auth
    deployer: pulumi.Output[str]  # e-mail
    previewer: pulumi.Output[str]

    def __init__(
        self,
        config: StackConfig,
        repository: str,
        existing_roles: set[str],
        buckets: Iterable[storage.Bucket],
        opts: pulumi.ResourceOptions,
    ):
        """Declare the pipeline's identities.

        Args:
            config: the stack.
            repository: owner/name.
            existing_roles: ids of the custom roles that an earlier stack of this name left.
            buckets: the run's bucket and the data bucket.
            opts: the parent.
        """
        super().__init__("gpt2-training:google:Pipeline", "pipeline", {}, opts)
        self._config = config
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
                "google.subject": "assertion.sub",  # required; no grant uses it, as GitHub writes it in two ways
                "attribute.repository": "assertion.repository",
                "attribute.deployer": "assertion.repository + ':'"
                " + ('environment' in assertion ? assertion.environment : '')",
            },
            # GitHub signs for all of its users: without this, any repository in the world could log in.
            attribute_condition=f"assertion.repository == '{repository}'",
            opts=self._kept(f"{pools}/providers/github"),
        )
        deployer = self._account("deploy", f"deploys the stack {config.stack}")
        previewer = self._account("preview", f"previews the stack {config.stack}")
        # A job that GitHub let into this environment may deploy, whatever its branch.
        approved = f"/attribute.deployer/{repository}:{ENVIRONMENT}"
        for name, account, principals in (
            ("deployer", deployer, approved),
            ("previewer", previewer, f"/attribute.repository/{repository}"),
        ):
            member = pulumi.Output.concat("principalSet://iam.googleapis.com/", pool.name, principals)
            self._may_be(name, account, member)
        self._deployer(deployer, role_id, [pool, provider])
        for role in PREVIEWER_ROLES:
            self._grant(f"previewer-{role.removeprefix('roles/')}", role, previewer)
        for key, bucket in zip(("artifacts", "data"), buckets, strict=True):
            for role in ("roles/storage.legacyBucketReader", "roles/storage.objectViewer"):
                storage.BucketIAMMember(
                    f"previewer-{key}-{role.rpartition('.')[2]}",
                    bucket=bucket.name,
                    role=role,
                    member=previewer.member,
                    opts=self._kept(),
                )
        self.provider, self.deployer, self.previewer = provider.name, deployer.email, previewer.email
        self.register_outputs({})

    def _deployer(self, account: serviceaccount.Account, role_id: str, first: list[pulumi.Resource]) -> None:
        """Grant the deployer what it needs; its custom role is made after the resources of `first`."""
        config = self._config
        for role in DEPLOYER_ROLES:
            self._grant(f"deployer-{role.removeprefix('roles/')}", role, account)
        # An account that may change any grant is as good as the project's owner, so it may change only the stack's own.
        prefix = f"projects/{config.project}/roles/gpt2_{config.stack.replace('-', '_')}"
        granted = [*MACHINE_ROLES, *CONTROLLER_ROLES[1:], f"{prefix}_runner", f"{prefix}_controller"]
        listed = ", ".join(f"'{role}'" for role in granted)
        self._grant(
            "deployer-grants",
            "roles/resourcemanager.projectIamAdmin",
            account,
            "its stack's grants alone",
            f"api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly([{listed}])",
        )
        names = [url.removeprefix("gs://") for url in (config.bucket, config.data_bucket)]
        owned = [f"resource.name == 'projects/_/buckets/{name}'" for name in names]
        owned += [f"resource.name.startsWith('projects/_/buckets/{name}/')" for name in names]
        self._grant(
            "deployer-buckets",
            "roles/storage.admin",
            account,
            "its stack's buckets alone",
            " || ".join(owned),
        )
        full = f"projects/{config.project}/roles/{role_id}"
        custom = projects.IAMCustomRole(
            "deployer-role",
            role_id=role_id,
            title=f"Makes buckets of gpt2-{config.stack}",
            permissions=BUCKETS,
            opts=self._kept(full, first),
        )
        self._grant("deployer-bucket-maker", custom.name, account)

    def _kept(self, adopted: str | None = None, first: list[pulumi.Resource] | None = None) -> pulumi.ResourceOptions:
        """Return options to keep a resource on destroy, and to adopt it under this id if an earlier stack left it."""
        return pulumi.ResourceOptions(
            parent=self, retain_on_delete=True, import_=adopted if self._adopt else None, depends_on=first
        )

    def _account(self, name: str, display_name: str) -> serviceaccount.Account:
        return serviceaccount.Account(
            name,
            account_id=f"gpt2-{self._config.stack}-{name}",
            display_name=display_name,
            create_ignore_already_exists=True,
            opts=self._kept(),
        )

    def _may_be(self, name: str, account: serviceaccount.Account, member: pulumi.Input[str]) -> None:
        """Let a principal of the pool log in as an account."""
        serviceaccount.IAMMember(
            f"{name}-login",
            service_account_id=account.name,
            role="roles/iam.workloadIdentityUser",
            member=member,
            opts=self._kept(),
        )

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
            opts=self._kept(),
        )
