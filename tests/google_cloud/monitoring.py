"""Cloud Monitoring's alerts and metrics: an alert can name a metric ten minutes after it was made.

Google's own text names the ten minutes (hashicorp/terraform-provider-google#11102). The issues are about log-based
metrics and metrics that nobody has written yet; the provider's acceptance test makes an alert right after the
descriptor of a custom metric. The stand-in is the stricter one: it refuses both.
"""

import functools
import re
from collections.abc import Iterator

from tests.google_cloud.clock import clock_of
from tests.google_cloud.cloud import Behaviour, Cloud, CloudError, Json
from tests.google_cloud.daemon import Route

KNOWN_AFTER = 600.0  # seconds
# The metrics that a project makes itself, as a filter names them and as PromQL does.
IN_A_FILTER = r'metric\.type\s*=\s*"((?:(?:custom|workload)\.googleapis\.com|logging\.googleapis\.com/user)/[^"]+)"'
IN_PROMQL = r"(?:(?:custom|workload)_googleapis_com:|logging_googleapis_com:user_)\w+"


@functools.cache
def made_at(cloud: Cloud) -> dict[str, float]:
    """Return when each metric of a project was made, by its type. cloud.lock guards it."""
    return {}


class _Metric(Behaviour):
    """A metric of the project. Making a descriptor again changes it, and it keeps its age."""

    @staticmethod
    def type_of(state: Json) -> str:
        return str(state["type"])

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        with self.cloud.lock:
            made_at(self.cloud).setdefault(self.type_of(props), clock_of(self.cloud).now())
        return {}

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        with self.cloud.lock:
            made_at(self.cloud).pop(self.type_of(state), None)


class _LogMetric(_Metric):
    @staticmethod
    def type_of(state: Json) -> str:
        return f"logging.googleapis.com/user/{state['name']}"


class _AlertPolicy(Behaviour):
    """An alert. Google checks that its metrics are known, unless a PromQL condition says that they may be missing."""

    def check_create(self, props: Json) -> None:
        for condition in props.get("conditions") or []:
            for kind in _unknown(self.cloud, condition):
                raise CloudError(
                    404,
                    "notFound",
                    f'Cannot find metric(s) that match type = "{kind}". If a metric was created recently, it could '
                    "take up to 10 minutes to become available. Please try again soon.",
                )

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        self.check_create(news)
        return {}


def _unknown(cloud: Cloud, condition: Json) -> Iterator[str]:
    """Yield the metrics of a condition that Google does not know yet. PromQL has its own names for them."""
    promql = condition.get("conditionPrometheusQueryLanguage") or {}
    with cloud.lock:
        ages = {kind: clock_of(cloud).now() - made for kind, made in made_at(cloud).items()}
    known = {kind for kind, age in ages.items() if age >= KNOWN_AFTER}
    for name in ("conditionThreshold", "conditionAbsent"):
        named = re.findall(IN_A_FILTER, (condition.get(name) or {}).get("filter", ""))
        yield from (kind for kind in named if kind not in known)
    if not promql.get("disableMetricValidation"):
        names = {_promql_name(kind) for kind in known}
        named = re.findall(IN_PROMQL, promql.get("query", ""))
        yield from (name for name in named if name not in names)


def _promql_name(kind: str) -> str:
    domain, _, path = kind.partition("/")
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', domain)}:{re.sub(r'[^A-Za-z0-9_]', '_', path)}"


def register(cloud: Cloud) -> list[Route]:
    for name, behaviour in {
        "gcp:monitoring/metricDescriptor:MetricDescriptor": _Metric,
        "gcp:logging/metric:Metric": _LogMetric,
        "gcp:monitoring/alertPolicy:AlertPolicy": _AlertPolicy,
    }.items():
        cloud.behaviours[name] = behaviour(cloud, name)
    return []
