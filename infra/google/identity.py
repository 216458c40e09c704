"""Give each role a service account with its rights, and one to the controller, which may resize groups.

Grants on a bucket or a repository are declared with it, in storage.py and image.py; these are the grants that Google
has for whole projects only. Resizing cannot be granted for one group, so no machine may do it: the master may run the
scheduler's job, which starts the controller, and the controller resizes the groups by its own account.

In a stack with a pipeline an owner declares all of this (access.py), and `up` knows the accounts by their names.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pulumi
from pulumi_gcp import projects, serviceaccount

from infra.stack.config import StackConfig
from trainer.contract.spec import Role

MACHINE_ROLES = ("roles/logging.logWriter", "roles/monitoring.metricWriter")
RUN_JOBS = ["cloudscheduler.jobs.run"]
# Look at the groups and their machines, resize them, and pause the job that starts the controller.
CONTROL = ["compute.instanceGroupManagers.get", "compute.instanceGroupManagers.update", "cloudscheduler.jobs.pause"]
CONTROLLER_ROLES = ("roles/logging.logWriter", "roles/workflows.invoker")


@dataclass(frozen=True)
class NamedAccount:
    """A service account that exists already."""

    email: pulumi.Output[str]
    member: pulumi.Output[str]


Account = serviceaccount.Account | NamedAccount


def account_email(config: StackConfig, name: str) -> str:
    """Return the address of one of the stack's accounts."""
    return f"gpt2-{config.stack}-{name}@{config.project}.iam.gserviceaccount.com"


class Identity(pulumi.ComponentResource):
    """The service accounts of the machines and of the controller, and what they may do in the project."""

    machines: dict[Role, Account]
    controller: Account  # of the workflow, and of the job that starts it

    def __init__(
        self,
        config: StackConfig,
        roles: Iterable[Role],
        existing_roles: set[str],
        opts: pulumi.ResourceOptions,
        *,
        by_name: bool = False,
    ):
        """Declare the accounts, or take them by their names.

        Args:
            config: the stack.
            roles: the roles that have machines.
            existing_roles: ids of the custom roles that an earlier stack of this name left.
            opts: the parent.
            by_name: whether an owner has declared all of it already.
        """
        super().__init__("gpt2-training:google:Identity", "identity", {}, opts)
        self._config, self._there, self._child = config, existing_roles, pulumi.ResourceOptions(parent=self)
        self._by_name = by_name
        self.machines = {}
        for role in roles:
            account = self.machines[role] = self._account(role, f"{role} of the stack {config.stack}")
            for granted in MACHINE_ROLES:
                self._grant(f"{role}-{granted.rpartition('.')[2]}", granted, account)
        self.controller = self._account("controller", f"ends the machines of the stack {config.stack}")
        for granted in CONTROLLER_ROLES:
            self._grant(f"controller-{granted.rpartition('.')[2]}", granted, self.controller)
        self._custom("runner", "Runs scheduler jobs", RUN_JOBS, self.machines["master"])
        self._custom("controller", "Ends and moves machines", CONTROL, self.controller)
        self.register_outputs({})

    def _account(self, name: str, display_name: str) -> Account:
        if self._by_name:
            email = account_email(self._config, name)
            return NamedAccount(pulumi.Output.from_input(email), pulumi.Output.from_input(f"serviceAccount:{email}"))
        return serviceaccount.Account(
            name, account_id=f"gpt2-{self._config.stack}-{name}", display_name=display_name, opts=self._child
        )

    def _grant(self, name: str, role: pulumi.Input[str], account: Account) -> None:
        if self._by_name:
            return
        projects.IAMMember(
            f"{name}-grant", project=self._config.project, role=role, member=account.member, opts=self._child
        )

    def _custom(self, name: str, title: str, permissions: list[str], account: Account) -> None:
        if self._by_name:
            return
        role_id = f"gpt2_{self._config.stack.replace('-', '_')}_{name}"
        full = f"projects/{self._config.project}/roles/{role_id}"
        role = projects.IAMCustomRole(
            f"{name}-role",
            role_id=role_id,
            title=f"{title} of gpt2-{self._config.stack}",
            permissions=permissions,
            # Google blocks the id of a deleted role for weeks, in which the next `up` would fail. A role that is kept
            # has no holders, as its grants are deleted.
            opts=pulumi.ResourceOptions(
                parent=self, retain_on_delete=True, import_=full if role_id in self._there else None
            ),
        )
        self._grant(name, role.name, account)
