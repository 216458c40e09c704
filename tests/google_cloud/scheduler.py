"""Cloud Scheduler: jobs that fire at their date, or when a caller runs them, as the account that they name."""

import base64
import calendar
import functools
import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.google_cloud.clock import Timer, clock_of, stamp
from tests.google_cloud.cloud import Behaviour, Cloud, CloudError, Json
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.metadata import ACCOUNT, tokens_of

JOB = "gcp:cloudscheduler/job:Job"
# It calls this machine directly, whatever proxy is set.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 503: 14}  # HTTP's status as google.rpc.Code


def next_date(schedule: str, after: float) -> float:
    """Return when a schedule fires next, in UTC. Raise ValueError.

    A schedule is minute, hour, day, month and weekday: one number, * or */n each.
    """
    fields = schedule.split()
    if len(fields) != 5:
        raise ValueError(f"{schedule!r} has not 5 fields")
    low_high = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    allowed = [_values(text, *bounds) for text, bounds in zip(fields, low_high, strict=True)]
    minutes, hours, days, months, weekdays = allowed
    moment = datetime.fromtimestamp(after, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    day = moment.replace(hour=0, minute=0)
    for _ in range(366 * 8):  # a 29th of February comes within eight years
        weekday = (day.weekday() + 1) % 7
        if day.month in months and day.day in days and (weekday in weekdays or (weekday == 0 and 7 in weekdays)):
            times = (day.replace(hour=hour, minute=minute) for hour in sorted(hours) for minute in sorted(minutes))
            for fitting in times:
                if fitting >= moment:
                    return calendar.timegm(fitting.timetuple())
        day += timedelta(days=1)
    raise ValueError(f"{schedule!r} never comes")


def _values(text: str, low: int, high: int) -> set[int]:
    if text == "*":
        return set(range(low, high + 1))
    if found := re.fullmatch(r"\*/(\d+)", text):
        return set(range(low, high + 1, int(found[1])))
    if not re.fullmatch(r"\d+", text) or not low <= int(text) <= high:
        raise ValueError(f"{text!r} is not a number from {low} to {high}")
    return {int(text)}


@dataclass
class Scheduled:
    state: Json
    timer: Timer | None = None
    last: Json | None = None  # the API's report on the last attempt


class Scheduler:
    def __init__(self, cloud: Cloud) -> None:
        self._cloud, self._clock = cloud, clock_of(cloud)
        self._lock = threading.RLock()
        self._jobs: dict[str, Scheduled] = {}

    def put(self, name: str, state: Json) -> None:
        """Make or change a job."""
        with self._lock:
            self.remove(name)
            self._jobs[name] = Scheduled(state)
            self._plan(name)

    def remove(self, name: str) -> None:
        with self._lock:
            job = self._jobs.pop(name, None)
            if job and job.timer:
                job.timer.cancel()

    def describe(self, name: str) -> Json:
        """Return the job in the form of REST. Raise CloudError 404."""
        with self._lock:
            job = self._job(name)
            state = job.state
            target = state["httpTarget"]
            paused = {} if state.get("paused") else {"scheduleTime": stamp(self._next(state))}
            return {
                "name": name,
                "schedule": state["schedule"],
                "timeZone": state.get("timeZone", "Etc/UTC"),
                "state": "PAUSED" if state.get("paused") else "ENABLED",
                "httpTarget": {
                    "uri": target["uri"],
                    "httpMethod": target.get("httpMethod", "POST"),
                    "oauthToken": target.get("oauthToken") or {},
                },
                **paused,
                **(job.last or {}),
            }

    def run(self, name: str) -> None:
        """Fire a job now; returns before its call has been answered. Raise CloudError 404."""
        with self._lock:
            self._start(name, self._job(name), 0)

    def pause(self, name: str) -> Json:
        """Pause a job; one that fires already fires on. Raise CloudError 404, or 400 if it is not enabled."""
        with self._lock:
            job = self._job(name)
            if job.state.get("paused"):
                raise CloudError(400, "FAILED_PRECONDITION", "Job state must be ENABLED to be paused.")
            job.state["paused"] = True
            if job.timer:
                job.timer.cancel()
        for resource in self._cloud.find(JOB):  # `paused` is optional and computed: it becomes no input of the program
            if resource.id == name:
                with self._cloud.lock:
                    resource.state.update({"paused": True, "state": "PAUSED"})
        self._cloud.dump()
        return self.describe(name)

    def _start(self, name: str, job: Scheduled, tries: int) -> None:
        threading.Thread(target=self._fire, args=(name, job, tries), name=f"job {name}", daemon=True).start()

    def _job(self, name: str) -> Scheduled:
        if name not in self._jobs:
            raise CloudError(404, "NOT_FOUND", f"Job not found: {name}")
        return self._jobs[name]

    def _next(self, state: Json) -> float:
        return next_date(state["schedule"], self._clock.now())

    def _plan(self, name: str) -> None:
        job = self._jobs[name]
        if not job.state.get("paused"):
            job.timer = self._clock.at(self._next(job.state), lambda: self._due(name, job))

    def _due(self, name: str, job: Scheduled) -> None:
        with self._lock:
            if self._jobs.get(name) is job:
                self.run(name)
                self._plan(name)

    def _fire(self, name: str, job: Scheduled, tries: int) -> None:
        """Make a job's call. tries: how often it was tried before."""
        target = job.state["httpTarget"]
        account = (target.get("oauthToken") or {}).get("serviceAccountEmail", "")
        request = urllib.request.Request(
            _address(self._cloud, target["uri"]),
            method=target.get("httpMethod", "POST"),
            data=base64.b64decode(target.get("body") or ""),
            headers={"User-Agent": "Google-Cloud-Scheduler", "Content-Type": "application/json"},
        )
        for key, value in (target.get("headers") or {}).items():
            request.add_header(key, value)
        if account:
            request.add_header("Authorization", f"Bearer {tokens_of(self._cloud).issue(account)['access_token']}")
        try:
            with DIRECT.open(request, timeout=60) as answer:
                answer.read()
            status: Json = {}
        except urllib.error.HTTPError as error:
            status = {"code": CODES.get(error.code, 2), "message": _message(error)}
        except OSError as error:
            status = {"code": 14, "message": str(error)}
        retry = job.state.get("retryConfig") or {}
        with self._lock:
            job.last = {"lastAttemptTime": stamp(self._clock.now()), "status": status}
            if status and tries < int(retry.get("retryCount") or 0) and self._jobs.get(name) is job:
                least, most = (
                    _seconds(retry.get("minBackoffDuration", "5s")),
                    _seconds(retry.get("maxBackoffDuration", "1h")),
                )
                again = self._clock.now() + min(least * 2**tries, most)
                self._clock.at(again, lambda: self._again(name, job, tries + 1))

    def _again(self, name: str, job: Scheduled, tries: int) -> None:
        with self._lock:
            if self._jobs.get(name) is job:
                self._start(name, job, tries)


def _address(cloud: Cloud, uri: str) -> str:
    """Return this daemon's address for Google's addresses; others lead nowhere."""
    match = re.fullmatch(r"https://(?P<service>\w+)\.googleapis\.com/(?P<path>.+)", uri)
    if match is None:
        return uri if uri.startswith("http://127.0.0.1:") else f"{cloud.url}/nowhere"
    return (
        f"{cloud.url}/{match['path']}"
        if match["service"] == "compute"
        else f"{cloud.url}/{match['service']}/{match['path']}"
    )


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError):
        return error.reason


class Job(Behaviour):
    def check_create(self, props: Json) -> None:
        try:
            next_date(props["schedule"], clock_of(self.cloud).now())
        except ValueError as error:
            raise CloudError(400, "INVALID_ARGUMENT", f"Schedule or time zone is invalid: {error}") from None
        if props.get("timeZone", "Etc/UTC") not in ("Etc/UTC", "UTC"):
            raise CloudError(
                501, "notImplemented", f"the stand-in cloud does not play the time zone {props['timeZone']}"
            )
        account = (props["httpTarget"].get("oauthToken") or {}).get("serviceAccountEmail")
        if account and not self.cloud.find(ACCOUNT, email=account):
            raise CloudError(404, "NOT_FOUND", f"The principal (user or service account) {account} was not found.")

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        scheduler_of(self.cloud).put(id, props)
        return {"state": "PAUSED" if props.get("paused") else "ENABLED"}

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        self.check_create(news)
        return self.create(id, news)

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        scheduler_of(self.cloud).remove(id)


@functools.cache
def scheduler_of(cloud: Cloud) -> Scheduler:
    return Scheduler(cloud)


def register(cloud: Cloud) -> list[Route]:
    cloud.behaviours[JOB] = Job(cloud, JOB)

    def described(_: Request, match: re.Match[str]) -> tuple[int, Json]:
        return 200, scheduler_of(cloud).describe(match["name"])

    return [("GET", "/jobs/(?P<name>.+)", described)]
