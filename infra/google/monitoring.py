"""Show a run in Google's console and send alerts: a dashboard, a count of preemptions, three alert policies.

Loss, speed and progress are the trainer's own metrics (trainer/machine/cloud_metrics.py). Their descriptors belong to
the whole project. An alert cannot name a metric that does not exist, so this module declares them; they are never
deleted.
"""

import json
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
            name=_log_metric(self._config),
            description="Machines that Google took back",
            filter=" AND ".join(filters),
            metric_descriptor={"metric_kind": "DELTA", "value_type": "INT64", "unit": "1"},
            opts=self._child,
        )


class Alerts(pulumi.ComponentResource):
    """The dashboard, the alerts, and the e-mail channel that gets them.

    It is declared last: Google may take minutes to know a new metric, and refuses an alert on one that it does not know
    yet. By then the machines are there, and another `up` adds the alert.
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
        stalled = f"no step for {STALLED // 60} minutes"
        self._alert("stalled", stalled, _own(config, metric_names.SECONDS_SINCE_STEP), STALLED)
        self._alert("failed", "the run has failed", _own(config, metric_names.FAILED), 0)
        often = f"more than {OFTEN} machines were preempted within an hour"
        self._alert("preempted", often, _preemptions(config), OFTEN, hourly=True)
        self.register_outputs({})

    def _alert(
        self,
        name: str,
        title: str,
        series: str,
        above: float,
        hourly: bool = False,
    ) -> None:
        """Declare an alert for when a series is above a value; with `hourly`, when its sum over an hour is."""
        aligner = {"alignment_period": "60s", "per_series_aligner": "ALIGN_MAX"}
        if hourly:
            aligner = {"alignment_period": "3600s", "per_series_aligner": "ALIGN_DELTA"}
            aligner["cross_series_reducer"] = "REDUCE_SUM"
        condition: Any = {
            "display_name": title,
            "condition_threshold": {
                "filter": series,
                "comparison": "COMPARISON_GT",
                "threshold_value": above,
                "duration": "0s",
                "aggregations": [aligner],
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


def _log_metric(config: StackConfig) -> str:
    return f"gpt2-{config.stack}-preempted"


def _preemptions(config: StackConfig) -> str:
    """Return a filter for the count of preemptions, whose resource is the VM that Docker's log driver writes for."""
    return f'metric.type="logging.googleapis.com/user/{_log_metric(config)}" AND resource.type="gce_instance"'


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
        tiles.append({"xPos": 24 * (i % 2), "yPos": 16 * (i // 2), "width": 24, "height": 16, "widget": chart})
    return {"displayName": f"gpt2-{config.stack}", "mosaicLayout": {"columns": 48, "tiles": tiles}}
