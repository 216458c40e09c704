"""The stand-in cloud's state: its resources, grants and requested faults. A daemon has one such object.

A new type of resource that does something by itself (boots VMs, fires at a date) needs a Behaviour, which the
`register(cloud)` of a module that daemon.py mounts puts into `cloud.behaviours[token]`.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.google_cloud import names, references, rules
from tests.google_cloud.errors import CloudError

__all__ = ["Behaviour", "Cloud", "CloudError", "Fault", "Resource"]
Json = dict[str, Any]
# These are enabled in every new project.
ALWAYS_ON = ("storage", "logging", "monitoring", "serviceusage", "bigquery", "cloudtrace", "servicemanagement")


class Behaviour:
    """The behaviour of one type's resources. This one keeps what it is given.

    `props` and `state` are flat dicts with camelCase keys: the inputs, with `project` and, where the type has one,
    `region` or `location` filled in; and the values of names.outputs (selfLink, ...). Every method may raise
    CloudError. Nothing holds `cloud.lock` while one of these runs.
    """

    def __init__(self, cloud: "Cloud", token: str) -> None:
        self.cloud, self.token = cloud, token

    def check_create(self, props: Json) -> None:
        """Raise the error that forbids the creation, before anything is made.

        Cloud.create has already checked the API, the rules, references and conflicts (409) with this registry.
        """

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        """Make the resource; return the outputs beyond props. The registry has it already; an error removes it."""
        return {}

    def read(self, id: str, state: Json) -> Json | None:  # noqa: A002
        """Return the state as the cloud has it now, or None if it is gone.

        state is {} for a resource that the registry does not have.
        """
        return state or None

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        """Change the resource; return the changed outputs.

        olds is the cloud's state, news the same with the changed inputs.
        """
        return {}

    def check_delete(self, id: str, state: Json) -> None:  # noqa: A002
        """Raise the error that forbids the deletion, such as that of a bucket that is not empty."""

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        """Delete the resource. The registry forgets it when this returns."""


@dataclass
class Resource:
    token: str
    id: str
    state: Json  # the inputs and outputs, as the cloud has them
    given: set[str] = field(default_factory=set)  # the keys of state that are inputs: read() returns them as such

    def to_json(self) -> Json:
        return {"token": self.token, "id": self.id, "state": self.state, "given": sorted(self.given)}


@dataclass
class Fault:
    """An error for calls of one type and operation ("*" is any)."""

    token: str = "*"
    operation: str = "*"  # one of create, read, update, delete, invoke
    status: int = 503
    reason: str = "backendError"
    message: str = "The service is currently unavailable."
    times: int = 1  # -1 means always

    def matches(self, token: str, operation: str) -> bool:
        return self.times != 0 and self.token in ("*", token) and self.operation in ("*", operation)


class Cloud:
    """The whole Google Cloud of one test.

    folder: for this daemon alone (state.json is written there; VMs may keep their files below it).
    url: http://127.0.0.1:PORT of the daemon. storage: http://127.0.0.1:PORT of fake-gcs-server.
    lock: guards `resources` and everything else that several threads change; it is held for moments only.
    """

    def __init__(self, folder: Path, url: str, storage: str) -> None:
        self.folder, self.url, self.storage = folder, url, storage
        self.lock = threading.RLock()
        self.resources: dict[tuple[str, str], Resource] = {}  # the keys are (token, id)
        self.behaviours: dict[str, Behaviour] = {}
        # Each token has a function from args with `project` and `region` to a result.
        self.invokes: dict[str, Callable[[Json], Json]] = {}
        self.images: dict[str, str] = {}  # pushed images: NAME:TAG -> sha256:..., and NAME@sha256:... -> sha256:...
        self.apis: set[str] = set()  # enabled APIs: "PROJECT/compute.googleapis.com"
        self.faults: list[Fault] = []
        self.delay = 0.0  # seconds that every provider call takes
        self.closing: list[Callable[[], None]] = []  # these are called when the daemon ends (stop VMs, timers)
        # account.py listens to "made" and "gone" (a Resource), "on" and "off" (a Machine), "request" (a VM's name,
        # and the verb and path of its request to storage) and "steps" (a workflow's name, and how many it took).
        self.listeners: dict[str, Callable[..., None]] = {}
        self._numbers = 1000000000

    # Calls of other modules. -------------------------------------------------------------------------------------

    def tell(self, event: str, *about: Any) -> None:
        """Tell the listener of an event, if there is one, what happened."""
        if event in self.listeners:
            self.listeners[event](*about)

    def find(self, token: str, **props: Any) -> list[Resource]:
        """Return the resources of a type whose state has these values."""
        with self.lock:
            found = [r for r in self.resources.values() if r.token == token]
        return [r for r in found if all(r.state.get(k) == v for k, v in props.items())]

    def change(self, token: str, id: str, **props: Any) -> None:  # noqa: A002
        """Change a resource without Pulumi (REST resize, a person in the console): a refresh shows it."""
        with self.lock:
            resource = self.resources[token, id]
            resource.state.update(props)
            resource.given.update(k for k in props if k in names.inputs_of(token))
        self.dump()

    def forget(self, token: str, id: str) -> None:  # noqa: A002
        """Delete a resource without Pulumi."""
        behaviour = self._behaviour(token)
        with self.lock:
            resource = self.resources[token, id]
        behaviour.delete(id, resource.state)
        with self.lock:
            del self.resources[token, id]
        self.tell("gone", resource)
        self.dump()

    def allowed(self, member: str, permission: str, resource: str, attributes: Json | None = None) -> bool:
        """Return whether a grant lets `member` ("serviceAccount:EMAIL") do that with `resource`.

        resource: "projects/P", "buckets/NAME", "buckets/NAME/objects/PATH", "projects/P/locations/L/repositories/ID",
        "projects/P/..." (a grant on the project counts for everything in it). A grant with a condition counts if the
        condition holds for the resource and the attributes of the API.
        """
        from tests.google_cloud import iam

        return iam.allowed(self, member, permission, resource, attributes or {})

    def require_api(self, project: str, api: str) -> None:
        """Raise 403 where a project has not enabled an API ("compute")."""
        if api and api not in ALWAYS_ON and f"{project}/{api}.googleapis.com" not in self.apis:
            raise CloudError(
                403,
                "SERVICE_DISABLED",
                f"{api}.googleapis.com has not been used in project {project} before or it is disabled. Enable it, "
                "then retry. If you enabled this API recently, wait a few minutes.",
            )

    def fault(self, token: str, operation: str) -> None:
        """Raise the fault that POST /faults requested for this call, if any; take the time that the API takes."""
        if self.delay:
            time.sleep(self.delay)
        with self.lock:
            for fault in self.faults:
                if fault.matches(token, operation):
                    fault.times -= 1 if fault.times > 0 else 0
                    raise CloudError(fault.status, fault.reason, fault.message)

    # The life of a resource, as the plugin asks for it. -----------------------------------------------------------

    def create(self, token: str, props: Json, given: Iterable[str], project: str) -> Resource:
        self.fault(token, "create")
        kind, behaviour = names.KINDS[token], self._behaviour(token)
        self.require_api(project, kind.api)
        with self.lock:
            self._numbers += 1
            generated = str(self._numbers)
        id = names.expand(kind.id, props, generated)  # noqa: A001
        resource = Resource(token, id, {**props, **names.outputs(token, props, generated)}, set(given))
        with self.lock:
            self._free(kind, resource)
        rules.check(token, resource.state)
        references.check_targets(self, token, resource.state)
        behaviour.check_create(resource.state)
        with self.lock:
            self._free(kind, resource)
            before = self.resources.get((token, id))
            self.resources[token, id] = resource
        try:
            made = behaviour.create(id, dict(resource.state))
        except BaseException:
            with self.lock:
                if before is None:
                    del self.resources[token, id]
                else:
                    self.resources[token, id] = before
            raise
        with self.lock:
            resource.state.update(made)
        if before is None:
            self.tell("made", resource)
        self.dump()
        return resource

    def read(self, token: str, id: str, project: str) -> Resource | None:  # noqa: A002
        self.fault(token, "read")
        self.require_api(project, names.KINDS[token].api)
        with self.lock:
            resource = self.resources.get((token, id))
            before = dict(resource.state) if resource else {}
        after = self._behaviour(token).read(id, before)
        with self.lock:
            if after is None:
                self.resources.pop((token, id), None)
                return None
            if resource is None:  # another program made it
                given = {k for k in after if k in names.inputs_of(token)}
                resource = self.resources[token, id] = Resource(token, id, after, given)
            changed = {k: v for k, v in after.items() if before.get(k) != v}
            resource.state.update(changed)
            resource.given.update(k for k in changed if k in names.inputs_of(token))
        return resource

    def update(self, token: str, id: str, changed: Json, removed: Iterable[str], project: str) -> Resource:  # noqa: A002
        """Update a resource.

        changed: new values of inputs (and planned outputs); removed: inputs that are no longer set.
        """
        self.fault(token, "update")
        self.require_api(project, names.KINDS[token].api)
        with self.lock:
            resource = self.resources.get((token, id))
            if resource is None:
                raise CloudError(404, "notFound", f"The resource '{id}' was not found")
            olds = dict(resource.state)
        gone = set(removed)
        news = {k: v for k, v in {**olds, **changed}.items() if k not in gone}
        rules.check(token, news)
        references.check_targets(self, token, news)
        made = self._behaviour(token).update(id, olds, news)
        with self.lock:
            for key in gone:
                resource.state.pop(key, None)
            resource.state.update(changed)
            resource.state.update(made)
            resource.given = (resource.given | {k for k in changed if k not in names.output_names(token)}) - gone
        self.dump()
        return resource

    def delete(self, token: str, id: str, project: str) -> None:  # noqa: A002
        self.fault(token, "delete")
        self.require_api(project, names.KINDS[token].api)
        with self.lock:
            resource = self.resources.get((token, id))
        if resource is None:
            return  # the real provider also counts a 404 as a success
        policy = resource.state.get("deletionPolicy", "DELETE")
        if policy == "ABANDON":
            return
        if policy == "PREVENT":
            raise CloudError(400, "deletionPolicy", f"{id}: deletionPolicy is PREVENT")
        behaviour = self._behaviour(token)
        references.check_unused(self, resource)
        behaviour.check_delete(id, resource.state)
        behaviour.delete(id, resource.state)
        with self.lock:
            self.resources.pop((token, id), None)
        self.tell("gone", resource)
        self.dump()

    def invoke(self, token: str, args: Json) -> Json:
        self.fault(token, "invoke")
        if token not in self.invokes:
            raise CloudError(400, "invalid", f"the stand-in cloud does not know {token}")
        return self.invokes[token](args)

    def dump(self) -> None:
        """Write state.json for people who look into a failed test."""
        with self.lock:
            text = json.dumps([r.to_json() for r in self.resources.values()], indent=1, sort_keys=True)
            part = self.folder / "state.part"
            part.write_text(text)
            part.replace(self.folder / "state.json")

    def _behaviour(self, token: str) -> Behaviour:
        return self.behaviours.get(token) or Behaviour(self, token)

    def _free(self, kind: names.Kind, made: Resource) -> None:
        adopts = kind.shared or made.state.get("createIgnoreAlreadyExists")
        if not adopts and (made.token, made.id) in self.resources:
            raise CloudError(409, "alreadyExists", f"The resource '{made.id}' already exists")
