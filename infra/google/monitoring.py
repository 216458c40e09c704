"""Show a run in Google's console and send alerts: a dashboard, a count of preemptions, three alert policies.

Loss, speed and progress are the trainer's own metrics (trainer/machine/cloud_metrics.py). Their descriptors belong to
the whole project and are never deleted. They are declared for their units and descriptions, which Google would make up
at the first point.
"""

import json
import re
from typing import Any

import pulumi
from pulumi_gcp import logging, monitoring

from infra.stack.config import StackConfig
from trainer.contract import metric_names
from trainer.contract.log_phrases import PREEMPTED

STALLED = 900  # seconds without a step
OFTEN = 10  # preemptions an hour above which an alert is sent
METRICS = {  # the value type, unit and description of each
    metric_names.STEP: ("INT64", "1", "Steps done"),
    metric_names.LOSS: ("DOUBLE", "1", "Training loss, nats a token"),
    metric_names.TOKENS_PER_SECOND: ("DOUBLE", "1/s", "Tokens a second, all trainers together"),
    metric_names.SECONDS_SINCE_STEP: ("DOUBLE", "s", "Seconds since the newest step"),
    metric_names.FAILED: ("INT64", "1", "1 once the run has failed"),
}


class MetricDescriptors(pulumi.ComponentResource):
    """The descriptors of the trainer's metrics, and a metric that counts preemptions in the logs."""

    def __init__(self, config: StackConfig, opts: pulumi.ResourceOptions):
        super().__init__("gpt2-training:google:Metrics", "metrics", {}, opts)
        self._config, self._child = config, pulumi.ResourceOptions(parent=self)
        for item in METRICS.items():
            self._descriptor(*item)
        self._preempted()
        self.register_outputs({})

    def _descriptor(self, kind: str, about: tuple[str, str, str]) -> None:
        """Declare one of the trainer's metrics."""
        value_type, unit, description = about
        monitoring.MetricDescriptor(
            kind.rpartition("/")[2].replace("_", "-"),
            type=kind,
            metric_kind="GAUGE",
            value_type=value_type,
            unit=unit,
            display_name=f"GPT-2 training: {kind.rpartition('/')[2].replace('_', ' ')}",
            description=description,
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )

    def _preempted(self) -> None:
        """Count preemptions by how a log line starts: Docker's log driver puts a whole line into one field."""
        filters = [
            f'logName="projects/{self._config.project}/logs/gcplogs-docker-driver"',
            f'jsonPayload.instance.name=~"^{self._config.stack}-(master|worker|ps)-"',
            f'jsonPayload.message=~"{PREEMPTED.strip()}"',
        ]
        logging.Metric(
            "preempted",
            name=_log_metric(self._config.stack),
            description="Machines that Google took back",
            filter=" AND ".join(filters),
            metric_descriptor={"metric_kind": "DELTA", "value_type": "INT64", "unit": "1"},
            opts=self._child,
        )


class Alerts(pulumi.ComponentResource):
    """The dashboard, the alerts, and the e-mail channel that gets them.

    It is declared last, so that whatever Google refuses here does not keep machines from being made.
    """

    def __init__(self, config: StackConfig, opts: pulumi.ResourceOptions):
        super().__init__("gpt2-training:google:Alerts", "alerts", {}, opts)
        self._config, self._child = config, pulumi.ResourceOptions(parent=self)
        self._channels: list[pulumi.Output[str]] = []
        if config.file.notify is not None:
            channel = monitoring.NotificationChannel(
                "e-mail",
                display_name=f"gpt2-{config.stack}",
                type="email",
                labels={"email_address": config.file.notify},
                opts=self._child,
            )
            self._channels = [channel.name]
        monitoring.Dashboard("dashboard", dashboard_json=json.dumps(dashboard(config)), opts=self._child)
        for name, (title, query) in alerts(config.stack).items():
            self._alert(name, title, query)
        self.register_outputs({})

    def _alert(self, name: str, title: str, query: str) -> None:
        """Declare an alert for when a PromQL query returns anything.

        For ten minutes Google refuses an alert on a new metric, unless its condition is in PromQL and says that the
        metric may be missing. Neither time is one that Google fills in or leaves out of its answer.
        """
        condition: Any = {
            "display_name": title,
            "condition_prometheus_query_language": {
                "query": query,
                "duration": "60s",
                "evaluation_interval": "60s",
                "disable_metric_validation": True,
            },
        }
        monitoring.AlertPolicy(
            f"{name}-alert",
            display_name=f"gpt2-{self._config.stack}: {title}",
            combiner="OR",
            conditions=[condition],
            notification_channels=self._channels,
            documentation={
                "content": f"`python -m scripts.watch --stack {self._config.stack}` shows the run.",
                "mime_type": "text/markdown",
            },
            opts=self._child,
        )


def alerts(stack: str) -> dict[str, tuple[str, str]]:
    """Return the title and the PromQL query of each of a stack's alerts, by its name."""
    own = {"monitored_resource": metric_names.RESOURCE, "namespace": stack}
    waiting, failed = (_series(kind, own) for kind in (metric_names.SECONDS_SINCE_STEP, metric_names.FAILED))
    preempted = _series(_log_metric_type(stack), {"monitored_resource": "gce_instance"})
    return {
        "stalled": (f"no step for {STALLED // 60} minutes", f"{waiting} > {STALLED}"),
        # The master writes the 1 once and leaves.
        "failed": ("the run has failed", f"max_over_time({failed}[10m]) > 0"),
        "preempted": (
            f"more than {OFTEN} machines were preempted within an hour",
            f"sum(increase({preempted}[1h])) > {OFTEN}",
        ),
    }


def _series(kind: str, labels: dict[str, str]) -> str:
    """Return PromQL's selector of a metric's series: the first slash becomes a colon, other signs underscores.

    https://docs.cloud.google.com/monitoring/promql/promql-mapping
    """
    domain, _, path = kind.partition("/")
    name = ":".join(re.sub(r"[^a-zA-Z0-9_]", "_", part) for part in (domain, path))
    matchers = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{matchers}}}"


def _log_metric(stack: str) -> str:
    return f"gpt2-{stack}-preempted"


def _log_metric_type(stack: str) -> str:
    return f"logging.googleapis.com/user/{_log_metric(stack)}"


def _preemptions(config: StackConfig) -> str:
    """Return a filter for the count of preemptions, whose resource is the VM that Docker's log driver writes for."""
    return f'metric.type="{_log_metric_type(config.stack)}" AND resource.type="gce_instance"'


def _own(config: StackConfig, kind: str) -> str:
    """Return a filter for this stack's series of one of the trainer's metrics."""
    resource = f'resource.type="{metric_names.RESOURCE}" AND resource.label.namespace="{config.stack}"'
    return f'metric.type="{kind}" AND {resource}'


def dashboard(config: StackConfig) -> dict[str, Any]:
    """Return a dashboard of four charts, as Google has it in JSON: progress, loss, speed, preemptions."""
    charts = [
        ("Steps", _own(config, metric_names.STEP)),
        ("Loss (nats a token)", _own(config, metric_names.LOSS)),
        ("Tokens a second", _own(config, metric_names.TOKENS_PER_SECOND)),
        ("Preemptions", _preemptions(config)),
    ]
    tiles = []
    for i, (title, series) in enumerate(charts):
        aligner = "ALIGN_DELTA" if title == "Preemptions" else "ALIGN_MEAN"
        query = {
            "timeSeriesFilter": {
                "filter": series,
                "aggregation": {"alignmentPeriod": "60s", "perSeriesAligner": aligner},
            }
        }
        chart = {"title": title, "xyChart": {"dataSets": [{"timeSeriesQuery": query, "plotType": "LINE"}]}}
        place = {"xPos": 24 * (i % 2), "yPos": 16 * (i // 2)}
        # Google leaves a 0 out of its answer, and the provider takes a missing key for a change.
        given = {key: value for key, value in place.items() if value}
        tiles.append({**given, "width": 24, "height": 16, "widget": chart})
    return {"displayName": f"gpt2-{config.stack}", "mosaicLayout": {"columns": 48, "tiles": tiles}}
