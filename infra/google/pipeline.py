"""Lets the workflows of one GitHub repository preview and deploy this stack, without a key (docs/pipeline.md).

All of it stays on `pulumi destroy`, which the deployer itself may be running, and the next `up` adopts it.
"""

from collections.abc import Iterable

import pulumi
from pulumi_gcp import iam, projects, serviceaccount, storage

from infra.google.identity import MACHINE_ROLES
from infra.stack.config import StackConfig

ISSUER = "https://token.actions.githubusercontent.com"
ENVIRONMENT = "gpt2-training"  # of the repository: who may approve its jobs decides who deploys
# What each account may do on the project. Google's predefined roles; section 1 of docs/google-cloud.md says what for.
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
)
PREVIEWER_ROLES = (
    "roles/artifactregistry.reader",
    "roles/cloudscheduler.viewer",
    "roles/compute.viewer",
    "roles/iam.roleViewer",
    "roles/iam.securityReviewer",  # who may do what, which `preview --refresh` compares
    "roles/iam.serviceAccountViewer",
    "roles/iam.workloadIdentityPoolViewer",
    "roles/logging.viewer",
    "roles/monitoring.viewer",
    "roles/serviceusage.serviceUsageViewer",
)
BUCKETS = ["storage.buckets.create", "storage.buckets.list"]  # no name to limit them by


class Pipeline(pulumi.ComponentResource):
    """A pool and a provider for one repository; an account that deploys, and one that reads."""

    provider: pulumi.Output[str]  # full name, for google-github-actions/auth
    deployer: pulumi.Output[str]  # e-mail
    previewer: pulumi.Output[str]

    def __init__(
        self,
        config: StackConfig,
        repository: str,
        there: set[str],
        buckets: Iterable[storage.Bucket],
        opts: pulumi.ResourceOptions,
    ):
        """repository: owner/name. there: ids of the custom roles that an earlier stack of this name left."""
        super().__init__("gpt2-training:google:Pipeline", "pipeline", {}, opts)
        self._config = config
        role_id = f"gpt2_{config.stack.replace('-', '_')}_deployer"
        self._adopt = role_id in there  # it is made last, so that pool and provider are there when it is
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
                "google.subject": "assertion.sub",  # Google wants one; GitHub has two ways to write it, so none asks
                "attribute.repository": "assertion.repository",
                "attribute.deployer": "assertion.repository + ':'"
                " + ('environment' in assertion ? assertion.environment : '')",
            },
            # GitHub signs for all of its users: without this, any repository of the world could ask.
            attribute_condition=f"assertion.repository == '{repository}'",
            opts=self._kept(f"{pools}/providers/github"),
        )
        deployer = self._account("deploy", f"deploys the stack {config.stack}")
        previewer = self._account("preview", f"previews the stack {config.stack}")
        # A job says which environment it is in: whom GitHub let into this one may deploy, whatever its branch.
        approved = f"/attribute.deployer/{repository}:{ENVIRONMENT}"
        for name, account, who in (
            ("deployer", deployer, approved),
            ("previewer", previewer, f"/attribute.repository/{repository}"),
        ):
            member = pulumi.Output.concat("principalSet://iam.googleapis.com/", pool.name, who)
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
        config = self._config
        for role in DEPLOYER_ROLES:
            self._grant(f"deployer-{role.removeprefix('roles/')}", role, account)
        # Whoever may change grants without a limit is the project's owner. The stack's own grants are these.
        prefix = f"projects/{config.project}/roles/gpt2_{config.stack.replace('-', '_')}"
        granted = [*MACHINE_ROLES, f"{prefix}_runner", f"{prefix}_reaper"]
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
        """Stays on destroy; adopted, under this id, where an earlier stack left it."""
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

    def _may_be(self, name: str, account: serviceaccount.Account, who: pulumi.Input[str]) -> None:
        serviceaccount.IAMMember(
            f"{name}-login",
            service_account_id=account.name,
            role="roles/iam.workloadIdentityUser",
            member=who,
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
