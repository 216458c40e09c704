"""Workflows: their source is checked as Google checks it, and executed by workflows-emulator (see emulator.py)."""

import functools
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.google_cloud.clock import clock_of, stamp
from tests.google_cloud.cloud import Behaviour, Cloud, CloudError, Json
from tests.google_cloud.daemon import Request, Route
from tests.google_cloud.metadata import ACCOUNT, tokens_of
from tests.google_cloud.storage_proxy import StorageProxy
from tools.workflows import environment

WORKFLOW = "gcp:workflows/workflow:Workflow"
EMULATOR = Path(__file__).with_name("emulator.py")
LONGEST_SOURCE, LONGEST_EXPRESSION, LONGEST_ARGUMENT = 128 * 1024, 400, 32 * 1024  # cloud.google.com/workflows/quotas
# A workflow's sleep of so many seconds takes one here: machines of the stand-in cloud come and go in seconds.
SPEED = float(os.environ.get("STAND_IN_WORKFLOW_SPEED", "10"))
PATIENCE = 120  # seconds that an execution may take here


@functools.cache
def schema() -> Json:
    """Return Google's JSON schema of a workflow, which comes with the emulator."""
    [path] = environment().glob("lib/python*/site-packages/workflows_emulator/workflow-schema.json")
    found: Json = json.loads(path.read_text())
    return found


def problem(source: str) -> str:
    """Return why Google would not take a workflow's source; empty if it would."""
    if len(source.encode()) > LONGEST_SOURCE:
        return f"source_contents has more than {LONGEST_SOURCE} bytes"
    try:
        workflow = yaml.load(source, yaml.CSafeLoader)
        jsonschema.validate(workflow, schema())
    except (yaml.YAMLError, jsonschema.ValidationError) as error:
        return f"parse error: {str(error).splitlines()[0]}"
    for text in _texts(workflow):
        if "${" in text and (len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"\$\{.*\}", text, re.DOTALL)):
            return f"expression {text[:60]}... is longer than {LONGEST_EXPRESSION} characters, or not a whole value"
    return ""


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _texts(child)


class Executions:
    """All executions of a cloud's workflows, in the form of the API's Execution."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud, self._clock = cloud, clock_of(cloud)
        self._processes: set[subprocess.Popen[str]] = set()
        self._proxies: dict[str, StorageProxy] = {}
        self.known: dict[str, Json] = {}

    def start(self, workflow: Json, name: str, argument: str) -> Json:
        """Start an execution of a workflow; returns before it has ended."""
        now = stamp(self._clock.now())
        with self._cloud.lock:
            path = f"{name}/executions/{len(self.known):08d}"
            made: Json = {"name": path, "argument": argument, "state": "ACTIVE", "startTime": now}
            self.known[path] = made
        threading.Thread(target=self._run, args=(workflow, path, argument), name=path, daemon=True).start()
        return dict(made)

    def _run(self, workflow: Json, path: str, argument: str) -> None:
        account = workflow["serviceAccount"].rpartition("/")[2]
        asked = {
            "source": self._rewritten(workflow["sourceContents"], account),
            "argument": json.loads(argument or "null"),
            "token": tokens_of(self._cloud).issue(account)["access_token"],
            "ahead": self._clock.ahead(),
            "speed": SPEED,
        }
        command = [str(environment() / "bin" / "python"), str(EMULATOR)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self._cloud.folder
        )
        with self._cloud.lock:
            self._processes.add(process)
        try:
            lines = process.communicate(json.dumps(asked), timeout=PATIENCE)[0].splitlines()
            outcome = json.loads(lines[-1])
        except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
            process.kill()
            lines, outcome = [], {"error": f"the emulator did not end well: {error!r}"}
        result = {"state": "SUCCEEDED", "result": json.dumps(outcome.get("result"))}
        if "error" in outcome:
            result = {"state": "FAILED", "error": {"payload": outcome["error"]}}
        self._cloud.tell("steps", path.partition("/executions/")[0].rpartition("/")[2], outcome.get("steps", 0))
        with self._cloud.lock:
            self._processes.discard(process)
            self.known[path] |= {**result, "endTime": stamp(self._clock.now()), "log": lines[:-1]}

    def _rewritten(self, source: str, account: str) -> str:
        """Return a workflow that calls the stand-in cloud, and storage with its account's rights."""
        with self._cloud.lock:
            if account not in self._proxies:
                self._proxies[account] = StorageProxy(self._cloud, account, "")
        source = source.replace("https://storage.googleapis.com", self._proxies[account].url)
        source = source.replace("https://compute.googleapis.com", self._cloud.url)
        return re.sub(r"https://(\w+)\.googleapis\.com", rf"{self._cloud.url}/\1", source)

    def close(self) -> None:
        with self._cloud.lock:
            processes = list(self._processes)
        for process in processes:
            process.kill()


class Workflow(Behaviour):
    def check_create(self, props: Json) -> None:
        account = str(props.get("serviceAccount")).rpartition("/")[2]
        if not self.cloud.find(ACCOUNT, email=account):
            raise CloudError(400, "INVALID_ARGUMENT", f"service account {account} does not exist")
        if why := problem(props.get("sourceContents") or ""):
            raise CloudError(400, "INVALID_ARGUMENT", why)

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        account = props["serviceAccount"].rpartition("/")[2]  # Google answers with the long name
        return {"serviceAccount": f"projects/{props['project']}/serviceAccounts/{account}"}

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        self.check_create(news)
        return {"revisionId": f"{int(olds['revisionId'].partition('-')[0]) + 1:06d}-000"}

    def check_delete(self, id: str, state: Json) -> None:  # noqa: A002
        if state.get("deletionProtection", True):
            raise CloudError(
                400, "failedPrecondition", "cannot destroy workflow without setting deletion_protection=false"
            )


@functools.cache
def executions_of(cloud: Cloud) -> Executions:
    executions = Executions(cloud)
    cloud.closing.append(executions.close)
    return executions


def register(cloud: Cloud) -> list[Route]:
    cloud.behaviours[WORKFLOW] = Workflow(cloud, WORKFLOW)

    def listed(_: Request, __: re.Match[str]) -> tuple[int, Any]:
        """Return all executions, with what sys.log was given, for tests."""
        with cloud.lock:
            return 200, [dict(one) for one in executions_of(cloud).known.values()]

    return [("GET", "/executions", listed)]
