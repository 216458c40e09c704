"""Requests that Google answers with 400 although every name and type is right.

Sources: facts on Compute Engine scheduling.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import promql_parser

from tests.google_cloud.errors import CloudError
from tests.google_cloud.machine_rules import machine_problems

Json = dict[str, Any]


def check(token: str, state: Json) -> None:
    """Raise CloudError 400 for the first rule that a resource breaks."""
    if rule := RULES.get(token):
        for why in rule(state):
            raise CloudError(400, "invalid", why)


def _template(state: Json) -> Iterator[str]:
    scheduling = _one(state.get("scheduling"))
    model = scheduling.get("provisioningModel") or "STANDARD"
    limits = [k for k in ("maxRunDuration", "terminationTime") if scheduling.get(k)]
    machine, gpus = str(state.get("machineType")), state.get("guestAccelerators") or []
    if len(limits) > 1:
        yield "Scheduling can have only one of maxRunDuration and terminationTime."
    if model == "SPOT" and (not scheduling.get("preemptible") or scheduling.get("automaticRestart") is not False):
        yield "Scheduling with provisioning model SPOT must be preemptible and have automaticRestart false."
    if model != "SPOT" and scheduling.get("preemptible"):
        yield f"Scheduling must not be preemptible with provisioning model {model}."
    if scheduling.get("instanceTerminationAction") and model == "STANDARD" and not limits:
        yield "instanceTerminationAction needs provisioning model SPOT, or a maxRunDuration or terminationTime."
    if limits and not scheduling.get("instanceTerminationAction"):
        yield f"{limits[0]} needs an instanceTerminationAction."
    if limits and scheduling.get("automaticRestart") is not False:
        yield f"{limits[0]} needs automaticRestart false."
    if model == "FLEX_START":
        if (
            scheduling.get("automaticRestart") is not False
            or scheduling.get("instanceTerminationAction") != "DELETE"
            or "maxRunDuration" not in limits
        ):
            yield "FLEX_START needs automaticRestart false, instanceTerminationAction DELETE and a maxRunDuration."
        if machine.startswith("n1-"):
            yield "FLEX_START is for accelerator-optimized machine types, not for N1."
        if _one(state.get("reservationAffinity")).get("type") not in (None, "NO_RESERVATION"):
            yield "FLEX_START cannot consume a reservation."
    notice = scheduling.get("preemptionNoticeDuration")
    if notice and model != "SPOT":
        yield "preemptionNoticeDuration is for provisioning model SPOT only."
    if notice and notice.get("seconds") not in (0, 120):
        yield "preemptionNoticeDuration must be 0 or 120 seconds."
    duration = _one(scheduling.get("maxRunDuration")).get("seconds", 30)
    if not 30 <= duration <= 120 * 86400:
        yield "maxRunDuration must be between 30 seconds and 120 days."
    if gpus and not machine.startswith("n1-"):
        yield f"guestAccelerators cannot be attached to {machine}; only N1 takes them."
    has_gpu = bool(gpus) or re.match(r"(a[234]|g[24])-", machine)
    if has_gpu and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield "Instances with GPUs must have onHostMaintenance TERMINATE."
    if model != "STANDARD" and scheduling.get("onHostMaintenance") == "MIGRATE":
        yield f"onHostMaintenance MIGRATE is not for provisioning model {model}."
    yield from machine_problems(state)
    if sum(bool(disk.get("boot")) for disk in state.get("disks") or []) != 1:
        yield "Exactly one disk must be the boot disk."
    for disk in state.get("disks") or []:
        if disk.get("boot") and not disk.get("sourceImage") and not disk.get("source"):
            yield "The boot disk needs a sourceImage."
        if machine.startswith("g2-") and "deeplearning-platform-release" in str(disk.get("sourceImage")):
            yield f"Deep Learning VM images cannot be boot disks of {machine}."


def _group(state: Json) -> Iterator[str]:
    policy = _one(state.get("updatePolicy"))
    surge, down = policy.get("maxSurgeFixed"), policy.get("maxUnavailableFixed")
    zones = len(state.get("distributionPolicyZones") or []) or 3
    for name, value in (("maxSurgeFixed", surge), ("maxUnavailableFixed", down)):
        if value and value < zones:
            yield f"updatePolicy.{name} must be 0 or at least the number of zones ({zones})."
    if surge == 0 and down == 0:
        yield "updatePolicy: maxSurgeFixed and maxUnavailableFixed cannot both be 0."
    if policy.get("replacementMethod") == "RECREATE" and surge:
        yield "updatePolicy: replacementMethod RECREATE needs maxSurgeFixed 0."
    shape = state.get("distributionPolicyTargetShape")
    if shape not in (None, "EVEN") and policy and policy.get("instanceRedistributionType") != "NONE":
        yield f"distributionPolicyTargetShape {shape} needs instanceRedistributionType NONE."
    lifecycle = _one(state.get("instanceLifecyclePolicy"))
    if _one(lifecycle.get("onRepair")).get("allowChangingZone") == "YES":
        if shape not in ("ANY", "BALANCED"):
            yield "instanceLifecyclePolicy.onRepair.allowChangingZone needs targetShape ANY or BALANCED."
        if lifecycle.get("forceUpdateOnRepair") != "YES":
            yield "instanceLifecyclePolicy.onRepair.allowChangingZone needs forceUpdateOnRepair YES."
    if (state.get("targetSize") or 0) < 0:
        yield "targetSize must not be negative."


def _scheduler_job(state: Json) -> Iterator[str]:
    fields = str(state.get("schedule") or "").split()
    if len(fields) != 5:
        yield f"Schedule or time zone is invalid: {state.get('schedule')!r} has not 5 fields."
    targets = [k for k in ("httpTarget", "pubsubTarget", "appEngineHttpTarget") if state.get(k)]
    if len(targets) != 1:
        yield "Job must have exactly one target."
    if re.search(r"\s", str(_one(state.get("httpTarget")).get("uri", ""))):
        yield "httpTarget.uri is invalid."


def _bucket(state: Json) -> Iterator[str]:
    for rule in state.get("lifecycleRules") or []:
        if not any(v is not None for v in _one(rule.get("condition")).values()):
            yield "A lifecycle rule needs a condition."
    seconds = _one(state.get("softDeletePolicy")).get("retentionDurationSeconds", 0)
    if seconds and not 7 * 86400 <= seconds <= 90 * 86400:
        yield "softDeletePolicy.retentionDurationSeconds must be 0, or between 7 and 90 days."


def _firewall(state: Json) -> Iterator[str]:
    if bool(state.get("allows")) == bool(state.get("denies")):
        yield "A firewall needs either allowed or denied, not both."
    if state.get("direction") != "EGRESS" and not any(
        state.get(k) for k in ("sourceRanges", "sourceTags", "sourceServiceAccounts")
    ):
        yield "An INGRESS firewall needs sourceRanges, sourceTags or sourceServiceAccounts."
    accounts = state.get("sourceServiceAccounts") or state.get("targetServiceAccounts")
    if accounts and (state.get("sourceTags") or state.get("targetTags")):
        yield "A firewall cannot use both tags and service accounts."


def _network(state: Json) -> Iterator[str]:
    if not 1300 <= int(state.get("mtu") or 1460) <= 8896:
        yield f"mtu: {state['mtu']} is not between 1300 and 8896."


def _subnetwork(state: Json) -> Iterator[str]:
    prefix = int(str(state["ipCidrRange"]).rpartition("/")[2])
    if not 8 <= prefix <= 29:
        yield f"ipCidrRange: a subnetwork is between /8 and /29, not /{prefix}."


def _alert(state: Json) -> Iterator[str]:
    if not 1 <= len(state.get("conditions") or []) <= 6:
        yield "An alert policy has between 1 and 6 conditions."
    for condition in state.get("conditions") or []:
        if "resource.type" not in str(_one(condition.get("conditionThreshold")).get("filter", "resource.type")):
            yield 'Field condition_threshold.filter must specify a restriction on "resource.type".'
        if condition.get("conditionMatchedLog") and not _one(state.get("alertStrategy")).get("notificationRateLimit"):
            yield "Field alert_strategy.notification_rate_limit is required for log-based alert policies."
        yield from _promql(_one(condition.get("conditionPrometheusQueryLanguage")))


def _promql(condition: Json) -> Iterator[str]:
    if condition:
        try:
            promql_parser.parse(condition.get("query", ""))
        except ValueError as error:
            yield f"Field condition_prometheus_query_language.query is invalid: {error}"
        if int(str(condition.get("evaluationInterval", "30s")).removesuffix("s")) % 30:
            yield "Field condition_prometheus_query_language.evaluation_interval must be a multiple of 30 seconds."
        # A metric with several resource types needs one: docs.cloud.google.com/monitoring/promql/promql-mapping.
        for labels in re.findall(r"(?:custom|logging)_googleapis_com:\w+(\{[^}]*\})?", condition.get("query", "")):
            if "monitored_resource=" not in labels:
                yield "The metric is associated with several monitored resource types: monitored_resource is missing."


def _one(value: Any) -> Json:
    found: Json = value if isinstance(value, dict) else {}
    return found


RULES: dict[str, Callable[[Json], Iterator[str]]] = {
    "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate": _template,
    "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager": _group,
    "gcp:compute/firewall:Firewall": _firewall,
    "gcp:compute/network:Network": _network,
    "gcp:compute/subnetwork:Subnetwork": _subnetwork,
    "gcp:cloudscheduler/job:Job": _scheduler_job,
    "gcp:storage/bucket:Bucket": _bucket,
    "gcp:monitoring/alertPolicy:AlertPolicy": _alert,
}
