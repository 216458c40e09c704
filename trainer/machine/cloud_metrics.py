"""Write how the run goes as custom metrics in Cloud Monitoring, every minute, from the master.

All are gauges of the resource generic_task (project_id, location: the zone, namespace: the stack, job: the run,
task_id: the machine), without labels of their own. contract/metric_names.py names their types; infra/google shows them
and alerts on them.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from trainer.contract import pace, paths
from trainer.contract.metric_names import FAILED, LOSS, RESOURCE, SECONDS_SINCE_STEP, STEP, TOKENS_PER_SECOND
from trainer.contract.spec import JobSpec
from trainer.gcloud.api import ApiError, GoogleApi
from trainer.machine.metadata import Vm
from trainer.runs.metrics_reader import read_metrics
from trainer.runs.records import Record
from trainer.runs.trials import current_trial, read_trials
from trainer.storage.base import Storage, StorageError

EVERY = pace.MONITORING
LEAST = 6.0  # seconds between two points of a series at least; Google refuses less than 5


class Monitoring:
    """Write metrics in the background until close(). A failure to write is noted once and disturbs nothing."""

    def __init__(
        self,
        storage: Storage,
        spec: JobSpec,
        vm: Vm,
        name: str,
        note: Callable[[str], None],
    ) -> None:
        """name: of this machine; note: prints a line."""
        self._storage, self._spec, self._project, self._note = storage, spec, vm.project, note
        self._newest: Record | None = None  # in a sweep perhaps of the trial before, while the new one has no step yet
        labels = {
            "project_id": vm.project,
            "location": vm.zone,
            "namespace": vm.stack,
            "job": spec.run,
            "task_id": name,
        }
        self._resource = {"type": RESOURCE, "labels": labels}
        self._started, self._written = time.time(), 0.0
        self._api: GoogleApi | None = None
        self._said = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="monitoring", daemon=True)
        self._thread.start()

    def close(self, *, failed: bool) -> None:
        """Write the last points. failed: whether the run has failed."""
        self._closed.set()
        self._thread.join()
        time.sleep(max(0.0, self._written + LEAST - time.monotonic()))
        self._write(failed)

    def _loop(self) -> None:
        while not self._closed.wait(EVERY):
            self._write(failed=False)

    def _write(self, failed: bool) -> None:
        try:
            self._api = self._api or GoogleApi()
            newest_file = read_metrics(self._storage, self._trained(), files=1)
            self._newest = newest_file.newest_step or self._newest
            body = {"timeSeries": self._series(self._newest, failed)}
            self._api.call("monitoring", "POST", f"projects/{self._project}/timeSeries", body=body)
            self._said = False
        except (ApiError, StorageError, OSError, ValueError) as error:
            if not self._said:
                self._note(f"metrics do not reach Cloud Monitoring ({error}); training continues without them")
            self._said = True
        self._written = time.monotonic()

    def _trained(self) -> str:
        """Return the run whose steps are written: this one, or the current trial of a sweep."""
        run = self._spec.run
        if self._spec.sweep is None:
            return run
        return paths.trial_id(
            run, current_trial(self._storage, run, self._spec.launch, read_trials(self._storage, run))
        )

    def _series(self, record: Record | None, failed: bool) -> list[dict[str, Any]]:
        now = time.time()
        values: list[tuple[str, int | float | None]] = [
            (STEP, record.step if record else 0),
            (LOSS, record.loss if record else None),
            (TOKENS_PER_SECOND, record.tokens_per_second if record else None),
            (SECONDS_SINCE_STEP, max(0.0, now - max(self._started, record.time if record else 0.0))),
            (FAILED, int(failed)),
        ]
        interval = {"endTime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        return [
            {
                "metric": {"type": metric},
                "resource": self._resource,
                "metricKind": "GAUGE",
                "valueType": "INT64" if isinstance(value, int) else "DOUBLE",
                "points": [
                    {
                        "interval": interval,
                        "value": {"int64Value": str(value)} if isinstance(value, int) else {"doubleValue": value},
                    }
                ],
            }
            for metric, value in values
            if value is not None
        ]
