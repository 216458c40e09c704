"""Cloud Monitoring's time series: custom metrics are kept, and refused where Google would refuse them."""

import functools
import json
import re
import time
from typing import Any

from tests.google_cloud.clock import epoch_of
from tests.google_cloud.cloud import Cloud, CloudError, Json
from tests.google_cloud.rest import Call, Played

MOST = 200  # the largest number of series in a call
PERIOD = 5.0  # seconds between two points of a series
RESOURCES = {  # the monitored resources that take custom metrics, and their labels
    "gce_instance": {"project_id", "instance_id", "zone"},
    "generic_node": {"project_id", "location", "namespace", "node_id"},
    "generic_task": {"project_id", "location", "namespace", "job", "task_id"},
    "global": {"project_id"},
}
VALUES = {"boolValue": "BOOL", "int64Value": "INT64", "doubleValue": "DOUBLE", "stringValue": "STRING"}


@functools.cache
def series_of(cloud: Cloud) -> dict[str, Json]:
    """Return a cloud's series by their identity. cloud.lock guards them."""
    return {}


def _create(call: Call) -> Json:
    given = call.body.get("timeSeries", [])
    if not 0 < len(given) <= MOST:
        raise _invalid(f"Field timeSeries had {len(given)} elements; the maximum is {MOST}, the minimum 1.")
    checked = [(_key(call, one), one, *_check(call, one)) for one in given]
    if len({key for key, *_ in checked}) < len(checked):
        raise _invalid("Duplicate TimeSeries encountered. Only one point can be written per TimeSeries per request.")
    with call.cloud.lock:
        series = series_of(call.cloud)
        for key, _, end, kind in checked:
            if (old := series.get(key)) is not None:
                _check_order(old, end, kind)
        for key, one, _, kind in checked:
            known = series.setdefault(key, {**one, "metricKind": one.get("metricKind", "GAUGE"), "points": []})
            known["valueType"] = kind
            known["points"].insert(0, one["points"][0])  # Google lists the newest first
    return {}


def _key(call: Call, series: Json) -> str:
    return json.dumps([call.parts["name"], series.get("metric"), series.get("resource")], sort_keys=True)


def _check(call: Call, series: Json) -> tuple[float, str]:
    """Check a point; return its time and the type of its value."""
    metric, resource, points = series.get("metric", {}), series.get("resource", {}), series.get("points", [])
    if not re.fullmatch(r"(custom|workload)\.googleapis\.com/[\w./-]+", metric.get("type", "")):
        raise _invalid(f"metric.type {metric.get('type')!r} cannot be written: it is no custom metric.")
    labels = RESOURCES.get(resource.get("type", ""))
    if labels is None:
        raise _invalid(f"resource.type {resource.get('type')!r} does not take custom metrics.")
    if set(resource.get("labels", {})) | {"project_id"} != labels:
        raise _invalid(f"resource.labels of {resource['type']} are {sorted(labels)}, not {sorted(resource['labels'])}.")
    if series.get("metricKind", "GAUGE") not in ("GAUGE", "CUMULATIVE"):
        raise _invalid(f"metricKind {series['metricKind']} is not for custom metrics.")
    if len(points) != 1:
        raise _invalid(f"Field points had {len(points)} elements; exactly 1 is written at a time.")
    interval, value = points[0].get("interval", {}), points[0].get("value", {})
    if "endTime" not in interval or len(value) != 1:
        raise _invalid("A point needs interval.endTime and one value.")
    end = epoch_of(interval["endTime"])
    start = epoch_of(interval.get("startTime", interval["endTime"]))
    if (series.get("metricKind") == "CUMULATIVE") != (start < end):
        raise _invalid("A GAUGE's interval is a moment; a CUMULATIVE metric's has a start before its end.")
    if not -25 * 3600 < end - time.time() < 300:
        raise _invalid(f"interval.endTime {interval['endTime']} is not between 25 hours ago and 5 minutes ahead.")
    kind = VALUES.get(next(iter(value)), "DISTRIBUTION")
    if series.get("valueType", kind) != kind:
        raise _invalid(f"The value is {kind}, but valueType {series['valueType']}.")
    return end, kind


def _check_order(old: Json, end: float, kind: str) -> None:
    before = epoch_of(old["points"][0]["interval"]["endTime"])
    if old["valueType"] != kind:
        raise _invalid(f"The metric's value type is {old['valueType']}, not {kind}.")
    if end <= before:
        raise _invalid("Points must be written in order: one had an older end time than the most recent point.")
    if end < before + PERIOD:
        raise _invalid(
            "One or more points were written more frequently than the maximum sampling period of the metric."
        )


def _list(call: Call) -> Json:
    match = re.search(r'metric\.type\s*=\s*"([^"]+)"', call.query.get("filter", ""))
    if match is None:
        raise _invalid("filter must name a metric.type")
    until = epoch_of(call.query["interval.endTime"])
    since = epoch_of(call.query.get("interval.startTime", call.query["interval.endTime"]))
    with call.cloud.lock:
        known = [dict(one) for key, one in series_of(call.cloud).items() if json.loads(key)[0] == call.parts["name"]]
    found: list[Any] = []
    for one in known:
        points = [point for point in one["points"] if since <= epoch_of(point["interval"]["endTime"]) <= until]
        if one["metric"]["type"] == match[1] and points:
            found.append({**one, "points": [] if call.query.get("view") == "HEADERS" else points})
    return call.page("timeSeries", found, "pageSize")


def _invalid(message: str) -> CloudError:
    return CloudError(400, "INVALID_ARGUMENT", message)


METHODS = {
    "monitoring.projects.timeSeries.create": Played("monitoring.timeSeries.create", "{name}", _create),
    "monitoring.projects.timeSeries.list": Played("monitoring.timeSeries.list", "{name}", _list),
}
