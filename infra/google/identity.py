"""Give each role a service account with its rights, and one to the controller, which may resize groups.

Grants on a bucket or a repository are declared with it, in storage.py and image.py; these are the grants that Google
has for whole projects only. Resizing cannot be granted for one group, so no machine may do it: the master may run the
scheduler's job, which starts the controller, and the controller resizes the groups by its own account.
"""

import pulumi
from pulumi_gcp import projects, serviceaccount

from infra.fleet.fleet import Fleet
from infra.stack.config import StackConfig
from trainer.contract.spec import Role

MACHINE_ROLES = ("roles/logging.logWriter", "roles/monitoring.metricWriter")
RUN_JOBS = ["cloudscheduler.jobs.run"]
# Look at the groups and their machines, resize them, and pause the job that starts the controller.
CONTROL = ["compute.instanceGroupManagers.get", "compute.instanceGroupManagers.update", "cloudscheduler.jobs.pause"]
CONTROLLER_ROLES = ("roles/logging.logWriter", "roles/workflows.invoker")


class Identity(pulumi.ComponentResource):
    """The service accounts of the machines and of the controller, and what they may do in the project."""

    machines: dict[Role, serviceaccount.Account]
    controller: serviceaccount.Account  # of the workflow, and of the job that starts it

    def __init__(self, config: StackConfig, fleet: Fleet, existing_roles: set[str], opts: pulumi.ResourceOptions):
        """Declare the accounts; `existing_roles` has ids of custom roles that an earlier stack of this name left."""
        super().__init__("gpt2-training:google:Identity", "identity", {}, opts)
        self._config, self._there, self._child = config, existing_roles, pulumi.ResourceOptions(parent=self)
        self.machines = {}
        for role in (machines.role for machines in fleet.roles):
            account = self.machines[role] = self._account(role, f"{role} of the stack {config.stack}")
            for granted in MACHINE_ROLES:
                self._grant(f"{role}-{granted.rpartition('.')[2]}", granted, account)
        self.controller = self._account("controller", f"ends the machines of the stack {config.stack}")
        for granted in CONTROLLER_ROLES:
            self._grant(f"controller-{granted.rpartition('.')[2]}", granted, self.controller)
        self._custom("runner", "Runs scheduler jobs", RUN_JOBS, self.machines["master"])
        self._custom("controller", "Ends and moves machines", CONTROL, self.controller)
        self.register_outputs({})

    def _account(self, name: str, display_name: str) -> serviceaccount.Account:
        return serviceaccount.Account(
            name, account_id=f"gpt2-{self._config.stack}-{name}", display_name=display_name, opts=self._child
        )

    def _grant(self, name: str, role: pulumi.Input[str], account: serviceaccount.Account) -> None:
        projects.IAMMember(
            f"{name}-grant", project=self._config.project, role=role, member=account.member, opts=self._child
        )

    def _custom(self, name: str, title: str, permissions: list[str], account: serviceaccount.Account) -> None:
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
