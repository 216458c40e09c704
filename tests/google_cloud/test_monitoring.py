"""Alerts on new metrics, and metrics that are made twice, in the stand-in cloud without a CLI."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.google.monitoring import METRICS, alerts
from tests.google_cloud import monitoring, names
from tests.google_cloud.clock import clock_of
from tests.google_cloud.cloud import Cloud
from tests.google_cloud.errors import CloudError

Json = dict[str, Any]
DESCRIPTOR, LOG_METRIC = "gcp:monitoring/metricDescriptor:MetricDescriptor", "gcp:logging/metric:Metric"
ALERT = "gcp:monitoring/alertPolicy:AlertPolicy"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """Return a cloud in this process whose project has all metrics of the stack "dev", made just now."""
    made = Cloud(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:1")
    monitoring.register(made)
    for kind, (value_type, unit, _) in METRICS.items():
        add(made, DESCRIPTOR, type=kind, metricKind="GAUGE", valueType=value_type, unit=unit)
    add(made, LOG_METRIC, name="gpt2-dev-preempted", filter="x")
    yield made
    for close in made.closing:
        close()


def add(cloud: Cloud, token: str, **inputs: Any) -> str:
    return cloud.create(token, names.fill(token, inputs, "p", "us-central1", {}), inputs, "p").id


def alert(cloud: Cloud, **condition: Json) -> str:
    conditions = [{"displayName": "c", **condition}]
    return add(cloud, ALERT, displayName="a", combiner="OR", conditions=conditions)


def threshold(kind: str) -> Json:
    return {
        "filter": f'metric.type="{kind}" AND resource.type="gce_instance"',
        "comparison": "COMPARISON_GT",
        "thresholdValue": 10,
        "duration": "0s",
    }


@pytest.mark.parametrize("kind", ["logging.googleapis.com/user/gpt2-dev-preempted", *METRICS])
def test_threshold_on_a_metric_younger_than_ten_minutes_is_refused(cloud: Cloud, kind: str) -> None:
    with pytest.raises(CloudError) as refused:
        alert(cloud, conditionThreshold=threshold(kind))
    assert str(refused.value) == (
        f'googleapi: Error 404: Cannot find metric(s) that match type = "{kind}". If a metric was created recently, '
        "it could take up to 10 minutes to become available. Please try again soon., notFound"
    )
    clock = clock_of(cloud)
    clock.set(time.time() + 590)
    with pytest.raises(CloudError, match="Cannot find metric"):
        alert(cloud, conditionThreshold=threshold(kind))
    clock.set(time.time() + 600)
    assert alert(cloud, conditionThreshold=threshold(kind))


def test_our_alerts_on_metrics_made_just_now_are_accepted(cloud: Cloud) -> None:
    for _, query in alerts("dev").values():
        condition = {"query": query, "duration": "60s"}
        assert alert(cloud, conditionPrometheusQueryLanguage={**condition, "disableMetricValidation": True})
        with pytest.raises(CloudError, match="Cannot find metric"):
            alert(cloud, conditionPrometheusQueryLanguage=condition)
    clock_of(cloud).set(time.time() + 600)
    for _, query in alerts("dev").values():  # each names a metric that the stack declares
        assert alert(cloud, conditionPrometheusQueryLanguage={"query": query, "duration": "60s"})


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ({"query": "sum(rate("}, "query is invalid"),
        ({"query": "custom_googleapis_com:gpt2_training_failed > 0"}, "monitored_resource is missing"),
        ({"query": "vector(1)", "evaluationInterval": "45s"}, "multiple of 30"),
    ],
)
def test_promql_that_google_refuses_is_400(cloud: Cloud, condition: Json, why: str) -> None:
    with pytest.raises(CloudError, match=why) as refused:
        alert(cloud, conditionPrometheusQueryLanguage={**condition, "disableMetricValidation": True})
    assert refused.value.status == 400


def test_log_match_without_a_rate_limit_is_400(cloud: Cloud) -> None:
    with pytest.raises(CloudError, match="notification_rate_limit is required"):
        alert(cloud, conditionMatchedLog={"filter": "severity=ERROR"})


def test_descriptor_made_again_is_updated_and_keeps_its_age(cloud: Cloud) -> None:
    kind = next(iter(METRICS))
    clock_of(cloud).set(time.time() + 600)
    again = add(cloud, DESCRIPTOR, type=kind, metricKind="GAUGE", valueType="INT64", description="new")
    [descriptor] = cloud.find(DESCRIPTOR, type=kind)
    assert descriptor.id == again == f"projects/p/metricDescriptors/{kind}"
    assert descriptor.state["description"] == "new"
    assert alert(cloud, conditionThreshold=threshold(kind))
