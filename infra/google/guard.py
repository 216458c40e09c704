"""End the machines even if nobody is watching: a lost laptop or a hung trainer must not keep billing.

`Launch` records when a launch was declared; maxHours and maxCostUsd make a deadline of that. Google itself enforces it:
every VM has a termination time, and a scheduler job for each role resizes its group to zero. The master of a run that
is over runs these jobs early. They exist before any group does.
"""

import json
import math
import time
from contextlib import suppress

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, UpdateResult
from pulumi_gcp import billing, cloudscheduler

from infra import lifecycle
from infra.dynamic import Properties, Provider, changed, plain
from infra.fleet.deadline import cron, launch_hours
from infra.fleet.fleet import Fleet
from infra.google.groups import Group
from infra.google.identity import Identity
from infra.google.zones import LaunchZones
from infra.stack.config import StackConfig
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs.placement import Launched
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
        storage.delete(paths.placement(props["run"], props["launch"]))  # of this launch, before a destroy
        return CreateResult(f"{props['run']}/{props['launch']}", _recorded({**props, "started": started}))

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        names = changed(olds, news) - {"started"}
        # Pulumi creates the new launch before it deletes the old one. The other way round, it would first delete the
        # templates that have the old date, and Google refuses that while their groups exist.
        return DiffResult(changes=bool(names), replaces=sorted(names - KEEPS_RUNNING))

    def update(self, _id: str, olds: Properties, news: Properties) -> UpdateResult:
        return UpdateResult(_recorded({**plain(news), "started": plain(olds)["started"]}))

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
    """A scheduler job for each role that ends its machines, and a budget if the stack file names a billing account."""

    def __init__(
        self,
        config: StackConfig,
        fleet: Fleet,
        launch: Launch,
        groups: list[Group],
        identity: Identity,
        opts: pulumi.ResourceOptions,
    ):
        super().__init__("gpt2-training:google:Guard", "guard", {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        hours = launch_hours(config.file.limits, fleet)
        for group in groups:
            if not group.target:  # in a zone where the run is not
                continue
            cloudscheduler.Job(
                f"{group.role}-deadline",
                name=group.deadline,
                region=config.region,
                description=f"Ends the {group.role} machines of the stack {config.stack}",
                schedule=launch.started.apply(lambda started: cron(started, hours)),
                time_zone="Etc/UTC",
                attempt_deadline="60s",
                retry_config={"retry_count": 5, "min_backoff_duration": "5s", "max_backoff_duration": "60s"},
                http_target={
                    "uri": group.resize_url(config),
                    "http_method": "POST",
                    "oauth_token": {
                        "service_account_email": identity.reaper.email,
                        "scope": "https://www.googleapis.com/auth/cloud-platform",
                    },
                },
                opts=child,
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
