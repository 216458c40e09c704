"""End the machines even if nobody is watching: a lost laptop or a hung trainer must not keep billing.

`Launch` records when a launch was declared; maxHours and maxCostUsd make a deadline of that. Google itself enforces it:
every VM has a termination time (with flex-start a longest run time instead), and the controller resizes all groups to
zero and looks until the machines are gone. The master of a run that is over asks the controller for that earlier. It
exists before any group does.
"""

import base64
import json
import math
import time
from contextlib import suppress
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult
from pulumi_gcp import billing, cloudscheduler, workflows

from infra import lifecycle
from infra.dynamic import Properties, Provider, changed, plain
from infra.fleet.deadline import deadline
from infra.google import controller
from infra.google.groups import Group
from infra.google.identity import Identity
from infra.google.zones import LaunchZones
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs.placement import MOST_MOVES, Launched, read_placement
from trainer.storage.base import NoBucket
from trainer.storage.factory import open_storage

# A change of these is written into the record of the same launch.
KEEPS_RUNNING = {"zone", "zones", "hours", "max_hours", "max_cost_usd"}
ALERTS = (0.5, 0.9, 1.0)  # parts of maxCostUsd at which a budget sends e-mail


class LaunchProvider(Provider):
    """Declare a launch in the run's bucket, and take it back on destroy."""

    def create(self, props: Properties) -> CreateResult:
        props = plain(props)
        storage, started = open_storage(props["bucket"]), int(time.time())
        lifecycle.begin(storage, props["run"], props["launch"])
        for path in (paths.placement, paths.end):  # of this launch, before a destroy
            storage.delete(path(props["run"], props["launch"]))
        return CreateResult(f"{props['run']}/{props['launch']}", _recorded({**props, "started": started}))

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        names = changed(olds, news) - {"started"}
        # Pulumi creates the new launch before it deletes the old one. The other way round, it would first delete the
        # templates that have the old date, and Google refuses that while their groups exist.
        return DiffResult(changes=bool(names), replaces=sorted(names - KEEPS_RUNNING))

    def update(self, _id: str, olds: Properties, news: Properties) -> UpdateResult:
        olds, news = plain(olds), plain(news)
        storage, run, launch = open_storage(news["bucket"]), news["run"], news["launch"]
        placement = read_placement(storage, run, launch)
        # The run was in a zone that the stack file no longer names, and whose groups go.
        if placement is not None and placement.zone not in news["zones"]:
            storage.delete(paths.placement(run, launch))
        return UpdateResult(_recorded({**news, "started": olds["started"]}))

    def delete(self, _id: str, props: Properties) -> None:
        props = plain(props)
        with suppress(NoBucket):  # the bucket was deleted by hand: there is nothing to take back
            lifecycle.end(open_storage(props["bucket"]), props["run"], props["launch"])


def _recorded(props: Properties) -> Properties:
    """Write the record of a launch, and return its properties."""
    record = Launched(**{name: props[name] for name in ("started", *KEEPS_RUNNING) if name in props})
    path = paths.launch(props["run"], props["launch"])
    open_storage(props["bucket"]).write(path, json.dumps(record.to_json()).encode())
    return props


class Launch(Resource, module="google", name="Launch"):
    """The record of a launch: when and where it started, and for how long."""

    started: pulumi.Output[int]  # seconds since the epoch

    def __init__(
        self, config: StackConfig, hours: float, zones: LaunchZones, job: JobSpec, opts: pulumi.ResourceOptions
    ):
        limits = config.file.limits
        props = {
            "bucket": config.bucket,
            "run": job.run,
            "launch": job.launch,
            "zone": zones.first,
            "zones": list(zones.candidates),
            "hours": hours,
            "max_hours": limits.max_hours,
            "max_cost_usd": limits.max_cost_usd,
            "started": None,
        }
        super().__init__(LaunchProvider(), "launch", props, opts)


class Guard(pulumi.ComponentResource):
    """The controller of the stack, and a budget if the stack file names a billing account."""

    def __init__(
        self,
        config: StackConfig,
        job: JobSpec,
        launch: Launch,
        hours: float,
        groups: list[Group],
        identity: Identity,
        opts: pulumi.ResourceOptions,
    ):
        """Declare the controller and the budget.

        Args:
            config: the stack.
            job: the run.
            launch: the record of its launch.
            hours: how long the launch may last.
            groups: all groups of the launch, in the order of the zones.
            identity: the accounts.
            opts: the parent.
        """
        super().__init__("gpt2-training:google:Guard", "guard", {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        workflow = workflows.Workflow(
            "controller",
            name=controller.workflow_name(config),
            region=config.region,
            description=f"Ends the machines of the stack {config.stack}, and moves them where Google has some",
            service_account=identity.controller.email.apply(
                lambda email: f"projects/{config.project}/serviceAccounts/{email}"
            ),
            source_contents=controller.SOURCE.read_text(encoding="utf-8"),
            call_log_level="LOG_NONE",  # it logs what it does, and an execution its error
            deletion_protection=False,
            opts=child,
        )
        cloudscheduler.Job(
            "controller-job",
            name=controller.job_name(config, job),
            region=config.region,
            description=f"Starts the controller of the stack {config.stack}",
            schedule=controller.SCHEDULE,
            time_zone="Etc/UTC",
            attempt_deadline="60s",
            retry_config={"retry_count": 3, "min_backoff_duration": "5s", "max_backoff_duration": "30s"},
            http_target={
                "uri": controller.executions_url(config),
                "http_method": "POST",
                "headers": {"Content-Type": "application/json"},
                "body": launch.started.apply(
                    lambda started: _body(_argument(config, job, groups, deadline(started, hours)))
                ),
                "oauth_token": {
                    "service_account_email": identity.controller.email,
                    "scope": "https://www.googleapis.com/auth/cloud-platform",
                },
            },
            opts=pulumi.ResourceOptions(parent=self, depends_on=[workflow]),
        )
        limits = config.file.limits
        if limits.billing_account is not None and limits.max_cost_usd is not None:
            billing.Budget(
                "budget",
                billing_account=limits.billing_account,
                display_name=f"gpt2-{config.stack}",
                amount={"specified_amount": {"currency_code": "USD", "units": str(math.ceil(limits.max_cost_usd))}},
                budget_filter={"labels": {"gpt2-stack": config.stack}},
                threshold_rules=[{"threshold_percent": part} for part in ALERTS],
                opts=child,
            )
        self.register_outputs({})


def _argument(config: StackConfig, job: JobSpec, groups: list[Group], ends: int) -> dict[str, Any]:
    """Return what the controller must know of a launch. ends: its deadline, in seconds since the epoch."""
    return {
        "project": config.project,
        "region": config.region,
        "bucket": config.bucket.removeprefix("gs://"),
        "run": job.run,
        "launch": job.launch,
        "started": paths.launch(job.run, job.launch),
        "placement": paths.placement(job.run, job.launch),
        "end": paths.end(job.run, job.launch),
        "current": paths.CURRENT,
        "ends": ends,
        "job": controller.job_path(config, job),
        "wait_seconds": controller.WAIT_SECONDS,
        "max_moves": MOST_MOVES,
        "zones": [zone for zone in dict.fromkeys(group.zone for group in groups) if zone],
        "groups": [
            {
                "name": group.name,
                "role": group.role,
                "zone": group.zone,
                "count": group.count,
                "required": group.required,
            }
            for group in groups
        ],
    }


def _body(argument: dict[str, Any]) -> str:
    """Return the body of a call that makes an execution, in Base64 as the scheduler's job keeps it."""
    return base64.b64encode(json.dumps({"argument": json.dumps(argument)}).encode()).decode()
