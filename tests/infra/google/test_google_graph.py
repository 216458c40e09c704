"""For every stack file for Google Cloud: either lines say why it is refused, or its resources keep these promises."""

import base64
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.fleet.catalog import ACCELERATORS, MACHINE_TYPES
from infra.stack import config
from tests.google_cloud import rules, schema
from tests.infra.google_graph import Declared, Graph, declare, make_root, read, stack_values

RFC1035 = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# Every role that each account may have, with its place. A change that adds a grant adds it here with its reason.
MACHINE = {
    "roles/logging.logWriter": "project",
    "roles/monitoring.metricWriter": "project",
    "roles/storage.objectUser": "artifacts",
    "roles/storage.objectViewer": "data",
    "roles/artifactregistry.reader": "repository",
}
CONTROLLER = {
    "controller": "project",  # resizes groups, and pauses its own job
    "roles/workflows.invoker": "project",  # the scheduler's job starts the workflow by this account
    "roles/logging.logWriter": "project",
    "roles/storage.objectUser": "artifacts",  # the records of the launch
}
PERMISSIONS = {
    "runner": ["cloudscheduler.jobs.run"],
    "controller": [
        "compute.instanceGroupManagers.get",
        "compute.instanceGroupManagers.update",
        "cloudscheduler.jobs.pause",
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def everything(graph: Graph) -> list[str]:
    """Return all texts anywhere in the inputs."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, (list, tuple)):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    return [text for one in graph.resources.values() for text in texts(one.inputs)]


def grants(graph: Graph, stack: str) -> dict[str, dict[str, str]]:
    """Return {account: {role: place}}."""
    found: dict[str, dict[str, str]] = {}
    for one in graph.resources.values():
        if not one.token.rsplit(":", 1)[1].lower().endswith("iammember"):
            continue
        member = one.inputs["member"].removeprefix("serviceAccount:").split("@")[0].removeprefix(f"gpt2-{stack}-")
        bucket = one.inputs.get("bucket", "")
        where = "repository" if "repository" in one.inputs else "project"
        if bucket:
            where = "data" if bucket.endswith("-data") else "artifacts"
        assert one.inputs["role"] not in found.setdefault(member, {})
        found[member][one.inputs["role"]] = where
    return found


def check(graph: Graph, stack: config.StackConfig) -> None:
    for one in graph.resources.values():
        if one.token.startswith(("gcp:", "docker-build:")):
            assert schema.problems(one.token, one.inputs) == [], one.name
            rules.check(one.token, one.inputs)
    texts = everything(graph)
    assert not [text for text in texts if text in ("allUsers", "allAuthenticatedUsers")]
    check_names(graph)
    check_machines(graph, stack)
    check_storage(graph)
    check_access(graph, stack)


def check_names(graph: Graph) -> None:
    for kind in ("Network", "Subnetwork", "Firewall", "RegionInstanceGroupManager", "Job", "Router", "RouterNat"):
        for one in graph.of(kind):
            if one.token.startswith("gcp:"):
                assert RFC1035.fullmatch(one.inputs["name"]), one.inputs["name"]
    for account in graph.of("Account"):
        assert re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", account.inputs["accountId"])
    for bucket in graph.of("Bucket"):
        assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]", bucket.inputs["name"])


def check_machines(graph: Graph, stack: config.StackConfig) -> None:
    templates = graph.of("RegionInstanceTemplate")
    assert templates
    for template in templates:
        role = template.name.split("-")[0]
        scheduling = template.inputs["scheduling"]
        for interface in template.inputs["networkInterfaces"]:
            assert not {"accessConfigs", "ipv6AccessConfigs"} & set(interface)
        assert ("terminationTime" in scheduling) != ("maxRunDuration" in scheduling)
        assert scheduling["instanceTerminationAction"] == "DELETE"
        spot = scheduling["provisioningModel"] == "SPOT"
        assert spot == (stack.file.machines.spot and role == "worker")
        assert spot == scheduling["preemptible"] == ("preemptionNoticeDuration" in scheduling)
        assert scheduling["automaticRestart"] is False
        assert template.inputs["serviceAccount"]["scopes"] == ["cloud-platform"]
        assert re.search(r"@sha256:[0-9a-f]{64}$", template.inputs["metadata"]["gpt2-image"])
    flex = {one.inputs["name"]: one.inputs["resizeBy"] for one in graph.of("RegionResizeRequest")}
    assert bool(flex) == stack.file.machines.flex_start
    (launch,) = graph.of("Launch")
    assert {one.name for one in [*graph.of("Image"), *graph.of("Firewall")]} <= {
        one.name for one in graph.waits_for(launch)
    }  # otherwise its clock would run while the image is built
    for template in templates:
        for key, value in template.inputs["labels"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key)
            assert re.fullmatch(r"[a-z0-9_-]{0,63}", value)
    for group in graph.of("RegionInstanceGroupManager"):
        assert (group.inputs["targetSize"] == 0) == (group.inputs["name"] in flex)
        assert "autoHealingPolicies" not in group.inputs
        before = list(graph.waits_for(group))
        assert {one.token for one in before} >= {"gcp:storage/bucketObject:BucketObject"}
        wanted = [
            *(one for one in graph.resources.values() if one.token.lower().endswith("iammember")),
            *graph.of("Firewall"),
            *(one for one in graph.of("Job") if one.token.startswith("gcp:")),
            *graph.of("Launch"),
            *graph.of("Image"),
            *graph.of("Service"),
        ]
        assert not [one.name for one in wanted if one not in before]


def check_storage(graph: Graph) -> None:
    assert len([one for one in graph.of("Bucket") if one.token.startswith("gcp:")]) == 2
    for bucket in graph.of("Bucket"):
        assert bucket.inputs["uniformBucketLevelAccess"] is True
        assert bucket.inputs["publicAccessPrevention"] == "enforced"
        assert bucket.inputs["versioning"] == {"enabled": True}


def check_access(graph: Graph, stack: config.StackConfig) -> None:
    custom = {one.inputs["roleId"].rsplit("_", 1)[1]: one.inputs["permissions"] for one in graph.of("IAMCustomRole")}
    assert custom == PERMISSIONS
    found = {
        account: {role.rsplit("_", 1)[-1] if "/roles/gpt2_" in role else role: where for role, where in of.items()}
        for account, of in grants(graph, stack.stack).items()
    }
    roles = ["master", *(["worker"] if stack.workers else []), *(["ps"] if stack.servers else [])]
    expected: dict[str, dict[str, str]] = {role: dict(MACHINE) for role in roles}
    expected["master"]["runner"] = "project"
    expected["controller"] = dict(CONTROLLER)
    assert found == expected


@pytest.mark.parametrize("stack", ["dev", "single"])
@pytest.mark.parametrize("preview", [False, True])
def test_graph_of_a_committed_stack_keeps_its_promises(root: Path, stack: str, preview: bool) -> None:
    made = read(stack_values(stack), root, stack)
    graph, job = declare(made, preview=preview)
    if not preview:
        check(graph, made)
    sizes = {one.name: one.inputs["targetSize"] for one in graph.of("RegionInstanceGroupManager")}
    expected = {"dev": {"master-group": 1, "worker-group": 10, "ps-group": 3}, "single": {"master-group": 1}}
    assert sizes == expected[stack]
    (training,) = graph.of("TrainingRun")
    assert training.inputs["trainingInput"]["masterType"] == made.file.training_input.master_type
    assert job.run.startswith("gpt2")


def test_graph_has_the_deadline_in_every_template_and_in_the_controllers_argument(root: Path) -> None:
    graph, job = declare(read(stack_values(), root))
    ends = {one.inputs["scheduling"]["terminationTime"] for one in graph.of("RegionInstanceTemplate")}
    assert ends == {"2026-09-22T14:14:01Z"}
    scheduled: Declared
    (scheduled,) = [one for one in graph.of("Job") if one.token.startswith("gcp:")]
    assert scheduled.inputs["schedule"] == "*/5 * * * *"
    (workflow,) = graph.of("Workflow")
    target = scheduled.inputs["httpTarget"]
    assert target["uri"].endswith(f"/locations/us-central1/workflows/{workflow.inputs['name']}/executions")
    argument = json.loads(json.loads(base64.b64decode(target["body"]))["argument"])
    assert argument["ends"] == 1_790_000_041 + 24 * 3600
    assert argument["job"].endswith(f"/jobs/{scheduled.inputs['name']}")
    assert (argument["run"], argument["launch"], argument["bucket"]) == (job.run, 1, "my-project-dev-gpt2")
    managers = {one.inputs["name"] for one in graph.of("RegionInstanceGroupManager")}
    assert {group["name"] for group in argument["groups"]} == managers
    required = {group["role"]: (group["count"], group["required"]) for group in argument["groups"]}
    assert required == {"master": (1, 1), "worker": (10, 0), "ps": (3, 3)}


types = st.one_of(
    st.sampled_from(sorted(MACHINE_TYPES)), st.sampled_from(["n1-highmem-16", "n1-highmem-8", "e2-small"])
)
accelerators = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"type": st.sampled_from([*ACCELERATORS, "nvidia-tesla-t4", "nvidia-tesla-k80"]), "count": st.integers(1, 8)}
    ),
)
zone_lists = st.lists(st.sampled_from([f"us-central1-{letter}" for letter in "abcdf"]), max_size=3, unique=True)
hours = st.one_of(st.integers(1, 3000), st.floats(0.1, 200))


@st.composite
def stack_files(draw: st.DrawFn) -> dict[str, Any]:
    values = stack_values()
    training = dict(values["gpt2-training:trainingInput"])
    training |= {"masterType": draw(types), "workerType": draw(types), "parameterServerType": draw(types)}
    training |= {"workerCount": draw(st.integers(0, 40)), "parameterServerCount": draw(st.integers(0, 5))}
    values["gpt2-training:trainingInput"] = training
    machines: dict[str, Any] = {"spot": draw(st.booleans()), "bootDiskGb": draw(st.integers(40, 500))}
    machines |= {"zones": draw(zone_lists), "flexStart": draw(st.booleans())}
    if (accelerator := draw(accelerators)) is not None:
        machines["accelerator"] = accelerator
    if draw(st.booleans()):
        machines["reservation"] = "mine"
    limits: dict[str, Any] = {"maxHours": draw(hours)}
    if draw(st.booleans()):
        limits["maxCostUsd"] = draw(st.floats(0.5, 500))
        if draw(st.booleans()):
            limits["billingAccount"] = "012345-6789AB-CDEF01"
    values |= {"gpt2-training:machines": machines, "gpt2-training:limits": limits}
    values["gpt2-training:network"] = {"nat": draw(st.booleans())}
    values["gpt2-training:keepArtifacts"] = draw(st.booleans())
    values["gpt2-training:launch"] = draw(st.integers(1, 9))
    if draw(st.booleans()):
        values["gpt2-training:notify"] = "me@example.com"
    if draw(st.booleans()):
        values["gpt2-training:image"] = "us-docker.pkg.dev/p/r/trainer@sha256:" + "1" * 64
    return values


def waiting(values: dict[str, Any]) -> dict[str, Any]:
    """Return the stack file with machines that wait for capacity."""
    values = legal(values)
    training = values["gpt2-training:trainingInput"]
    training |= {"masterType": "a2-highgpu-1g", "workerType": "g2-standard-8"}
    machines = values["gpt2-training:machines"] | {"flexStart": True, "spot": False}
    values["gpt2-training:machines"] = {k: v for k, v in machines.items() if k not in ("accelerator", "reservation")}
    values["gpt2-training:limits"] = {"maxHours": min(values["gpt2-training:limits"]["maxHours"], 168)}
    return values


def legal(values: dict[str, Any]) -> dict[str, Any]:
    """Return the stack file changed towards a legal one, so that graphs are tested as well as errors."""
    training = values["gpt2-training:trainingInput"]
    training |= {"masterType": "n1-highmem-16", "workerType": "n1-highmem-16", "parameterServerType": "n1-highmem-8"}
    training["workerCount"] = min(training["workerCount"], 31)  # the batch size is 32
    machines = values["gpt2-training:machines"]
    machines |= {"flexStart": False, "bootDiskGb": max(50, machines["bootDiskGb"]), "zones": []}
    machines["spot"] = machines["spot"] and training["workerCount"] > 0
    machines["accelerator"] = {"type": "nvidia-tesla-t4", "count": 2}
    if machines["spot"]:
        machines.pop("reservation", None)
    limits = values["gpt2-training:limits"]
    limits["maxHours"] = min(max(limits["maxHours"], 0.25), 2880)
    if "maxCostUsd" in limits:
        limits["maxCostUsd"] += 60
    return values


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(stack_files(), stack_files().map(legal)))
def test_stack_file_gives_errors_of_one_line_or_a_graph_that_keeps_its_promises(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder))
        problems: list[str] = []
        try:
            made = read(values, root)
            graph, _ = declare(made)
        except config.ConfigError as error:
            problems = error.problems
        if problems:
            for line in problems:
                assert "\n" not in line
                assert re.match(r"(gpt2-training|gcp):[\w.]+: |stack ", line), line
            return
        check(graph, made)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(stack_files().map(legal), stack_files().map(waiting)))
def test_stack_file_that_is_legal_gives_a_graph_that_keeps_its_promises(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = read(values, make_root(Path(folder)))
        graph, _ = declare(made)
        check(graph, made)
