"""The program's graph on Google Cloud under Pulumi's mocks: every resource with its inputs and dependencies."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from google.protobuf.json_format import MessageToDict
from pulumi.runtime.mocks import MockMonitor

from infra import load
from infra.fleet.fleet import resolve_fleet
from infra.google.access import declare_access
from infra.job import declare as declare_run
from infra.run import TrainingRun
from infra.stack import config
from trainer.contract.spec import JobSpec

CHECKOUT = Path(__file__).resolve().parents[2]
STARTED = 1_790_000_041
TEXT = "It was the best of times, it was the worst of times.\n" * 20_000


def make_root(folder: Path) -> Path:
    """Make the parts of a checkout that the program needs."""
    (folder / "data" / "gpt2-vocabulary").mkdir(parents=True)
    for name in ("my-data.txt", "default.txt"):
        (folder / "data" / name).write_text(TEXT)
    for name in ("vocab.json", "merges.txt"):
        (folder / "data" / "gpt2-vocabulary" / name).write_text("{}")
    (folder / "trainer").mkdir()
    (folder / "trainer" / "code.py").write_text("pass\n")
    shutil.copy(CHECKOUT / "trainer" / "Dockerfile", folder / "trainer")
    return folder


def stack_values(stack: str = "dev") -> dict[str, Any]:
    """Return the committed stack file's values, with a project."""
    content = yaml.safe_load((CHECKOUT / f"Pulumi.{stack}.yaml").read_text())["config"]
    return dict(content) | {"gcp:project": "my-project"}


def read(values: dict[str, Any], root: Path, stack: str = "dev") -> config.StackConfig:
    (root / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": values}))
    return load.from_file(stack, root)


@dataclass
class Declared:
    token: str
    name: str
    inputs: dict[str, Any]
    parent: str = ""
    waits: set[str] = field(default_factory=set)  # the URNs that it waits for


class Graph:
    """The resources that the program declared, by URN."""

    def __init__(self) -> None:
        self.resources: dict[str, Declared] = {}

    def of(self, kind: str) -> list[Declared]:
        return [found for found in self.resources.values() if found.token.rsplit(":", 1)[1] == kind]

    def waits_for(self, one: Declared) -> Iterator[Declared]:
        """Return everything that is made before `one`: its own dependencies, its parents', and theirs."""
        seen: set[str] = set()
        todo = [one]
        while todo:
            now = todo.pop()
            for urn in now.waits | ({now.parent} if now.parent else set()):
                if urn in self.resources and urn not in seen:
                    seen.add(urn)
                    todo.append(self.resources[urn])
                    yield self.resources[urn]


class _Mocks(pulumi.runtime.Mocks):
    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        kind, outputs = args.typ.rsplit(":", 1)[1], dict(args.inputs)
        if kind == "Account":
            outputs["email"] = f"{outputs['accountId']}@my-project.iam.gserviceaccount.com"
            outputs["member"] = f"serviceAccount:{outputs['email']}"
            outputs["name"] = f"projects/my-project/serviceAccounts/{outputs['email']}"
        elif kind.startswith("WorkloadIdentityPool"):
            outputs["name"] = f"projects/1/locations/global/workloadIdentityPools/{outputs['workloadIdentityPoolId']}"
            if kind.endswith("Provider"):
                outputs["name"] += f"/providers/{outputs['workloadIdentityPoolProviderId']}"
        elif kind == "ServiceIdentity":
            outputs["member"] = "serviceAccount:service-1@gcp-sa-workflows.iam.gserviceaccount.com"
        elif kind == "IAMCustomRole":
            outputs["name"] = f"projects/my-project/roles/{outputs['roleId']}"
        elif kind == "Launch":
            outputs["started"] = STARTED
        elif kind == "Image":
            outputs["digest"] = "sha256:" + "0" * 64
        return f"{args.name}-id", {"selfLink": f"//{args.name}", **outputs}

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        return {"buckets": [], "repositories": [], "bucketObjects": [], "roles": []}, []


class _Monitor(MockMonitor):
    def __init__(self, graph: Graph) -> None:
        super().__init__(_Mocks())
        self._graph = graph

    def RegisterResource(self, request: Any) -> Any:
        answer = super().RegisterResource(request)
        inputs = MessageToDict(request.object)  # this is the form of the wire: assets and unknown values are marked
        self._graph.resources[answer.urn] = Declared(
            request.type, request.name, inputs, request.parent, set(request.dependencies)
        )
        return answer


def declare(stack: config.StackConfig, *, preview: bool = False) -> tuple[Graph, JobSpec]:
    """Run the program. Raise ConfigError as the program does."""
    fleet = resolve_fleet(stack)
    inputs, job = declare_run(stack, fleet)
    graph = Graph()
    pulumi.runtime.set_mocks(
        _Mocks(), project="gpt2-training", stack=stack.stack, preview=preview, monitor=_Monitor(graph)
    )

    pulumi.runtime.test(lambda: TrainingRun(stack, fleet, inputs, job).trained_model)()
    return graph, job


def declare_for_owner(stack: config.StackConfig) -> Graph:
    """Run the program that an owner runs once for a stack with a pipeline."""
    graph = Graph()
    pulumi.runtime.set_mocks(
        _Mocks(), project="gpt2-training-bootstrap", stack=stack.stack, preview=False, monitor=_Monitor(graph)
    )
    pulumi.runtime.test(lambda: declare_access(stack))()
    return graph
