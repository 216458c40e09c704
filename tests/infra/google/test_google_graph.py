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
from infra.fleet.deadline import termination_time
from infra.fleet.fleet import resolve_fleet
from infra.google.zones import MOST_ZONES
from infra.inputs import docker
from infra.stack import config
from tests.google_cloud import answers, conditions, diff, rules, schema
from tests.infra.google_graph import Graph, declare, make_root, read, stack_values
from trainer.contract import paths
from trainer.contract.spec import JobSpec

RFC1035 = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
# Every role that each account may have, with its place. A change that adds a grant adds it here with its reason.
MACHINE = {
    ("roles/logging.logWriter", "project"),
    ("roles/monitoring.metricWriter", "project"),
    ("roles/storage.objectUser", "artifacts"),
    ("roles/storage.objectViewer", "artifacts"),
    ("roles/artifactregistry.reader", "repository"),
}
# The objects that each role's machines may read and write. Only a master writes the job.json of a sweep's trials, asks
# for the end, makes tokens from the text, and looks whether the stack declares another run.
OWN = {"the run's files", "a trial's files"}
WRITTEN = {
    "master": OWN | {"a trial's job", "the tokens", "the wish to end"},
    "worker": OWN,
    "ps": OWN,
    "controller": {"where a launch is", "the wish to end"},
}
SERVED = OWN | {"the job", "a launch", "where a launch is", "the wish to end", "a trial's job"}
RECORDS = {"a launch", "where a launch is", "the wish to end", "current.json"}
TRAINED = SERVED | {"the tokens", "the model to start from"}
READ = {"master": TRAINED | {"current.json", "the text", "the vocabulary"}, "worker": TRAINED, "ps": SERVED}
READ |= {"controller": RECORDS}
LISTED = {
    "master": {"the run", "the tokens' folder", "the model's folder", "the vocabulary's folder"},
    "worker": {"the run", "the tokens' folder", "the model's folder"},
    "ps": {"the run"},
    "controller": set(),
}
CONTROLLER = {
    ("controller", "project"),  # resizes groups, and pauses its own job
    ("roles/workflows.invoker", "project"),  # the scheduler's job starts the workflow by this account
    ("roles/logging.logWriter", "project"),
    ("roles/storage.objectUser", "artifacts"),  # where the run is
    ("roles/storage.objectViewer", "artifacts"),  # the records of the launch
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


def grants(graph: Graph, stack: str) -> dict[str, dict[tuple[str, str], str]]:
    """Return {account: {(role, place): condition}}."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    for one in graph.resources.values():
        if not one.token.rsplit(":", 1)[1].lower().endswith("iammember"):
            continue
        member = one.inputs["member"].removeprefix("serviceAccount:").split("@")[0].removeprefix(f"gpt2-{stack}-")
        bucket = one.inputs.get("bucket", "")
        where = "repository" if "repository" in one.inputs else "project"
        if bucket:
            where = "data" if bucket.endswith("-data") else "artifacts"
        role = one.inputs["role"]
        grant = (role.rsplit("_", 1)[-1] if "/roles/gpt2_" in role else role, where)
        assert grant not in found.setdefault(member, {})
        if condition := one.inputs.get("condition"):
            conditions.check(condition)
        found[member][grant] = (condition or {}).get("expression", "")
    return found


def check(graph: Graph, stack: config.StackConfig, job: JobSpec) -> None:
    for one in graph.resources.values():
        if one.token.startswith(("gcp:", "docker-build:")):
            assert schema.problems(one.token, one.inputs) == [], one.name
            rules.check(one.token, one.inputs)
        if one.token.startswith(answers.WITHOUT_ZEROS):
            refreshed = answers.answered(one.token, one.inputs)
            given = {key: refreshed[key] for key in one.inputs if key in refreshed}
            assert diff.changes(one.token, given, one.inputs) == {}, f"{one.name} comes back from Google with a diff"
    texts = everything(graph)
    assert not [text for text in texts if text in ("allUsers", "allAuthenticatedUsers")]
    check_names(graph)
    check_machines(graph, stack)
    check_storage(graph)
    check_access(graph, stack)
    check_object_rights(graph, stack, job)


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
    assert not graph.of("RegionResizeRequest")  # a resize to zero would not end what it waits for
    models = {one.inputs["scheduling"]["provisioningModel"] for one in templates}
    assert ("FLEX_START" in models) == stack.file.machines.flex_start
    check_groups(graph)
    (launch,) = graph.of("Launch")
    assert {one.name for one in [*graph.of("Image"), *graph.of("Firewall")]} <= {
        one.name for one in graph.waits_for(launch)
    }  # otherwise its clock would run while the image is built
    for template in templates:
        for key, value in template.inputs["labels"].items():
            assert re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key)
            assert re.fullmatch(r"[a-z0-9_-]{0,63}", value)
    for group in graph.of("RegionInstanceGroupManager"):
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


def check_groups(graph: Graph) -> None:
    """Check that all machines of a run share a zone, and that each role has a group where the run may move."""
    with_machines: set[tuple[str, ...]] = set()
    places: dict[str, list[tuple[str, ...]]] = {}
    for group in graph.of("RegionInstanceGroupManager"):
        zones = tuple(group.inputs["distributionPolicyZones"])
        places.setdefault(group.name.split("-")[0], []).append(zones)
        if group.inputs["targetSize"]:
            with_machines.add(zones)
        if len(zones) > 1:  # a run of one machine
            assert len(graph.of("RegionInstanceGroupManager")) == 1
            assert group.inputs["targetSize"] == 1
    assert len(with_machines) == 1
    assert len({frozenset(zones) for zones in places.values()}) == 1
    assert all(len(zones) <= MOST_ZONES for zones in places.values())


def check_storage(graph: Graph) -> None:
    assert len([one for one in graph.of("Bucket") if one.token.startswith("gcp:")]) == 2
    for bucket in graph.of("Bucket"):
        assert bucket.inputs["uniformBucketLevelAccess"] is True
        assert bucket.inputs["publicAccessPrevention"] == "enforced"
        assert bucket.inputs["versioning"] == {"enabled": True}


def check_access(graph: Graph, stack: config.StackConfig) -> None:
    custom = {one.inputs["roleId"].rsplit("_", 1)[1]: one.inputs["permissions"] for one in graph.of("IAMCustomRole")}
    assert custom == PERMISSIONS
    found = {account: set(of) for account, of in grants(graph, stack.stack).items()}
    roles = ["master", *(["worker"] if stack.workers else []), *(["ps"] if stack.servers else [])]
    expected: dict[str, set[tuple[str, str]]] = {role: set(MACHINE) for role in roles}
    for role in roles if docker.needs_archive(stack) else ["master"]:
        expected[role].add(("roles/storage.objectViewer", "data"))
    expected["master"].add(("runner", "project"))
    expected["controller"] = CONTROLLER
    expected["service-1"] = {("roles/workflows.serviceAgent", "project")}  # Google's own grant, which may be missing
    assert found == expected


def check_object_rights(graph: Graph, stack: config.StackConfig, job: JobSpec) -> None:
    run, tokens = paths.run(job.run), paths.tokens(job.fingerprint, job.data.tokens_key())
    model = (job.model.initialize or "").removeprefix(f"{stack.bucket}/")
    text = job.data.path.removeprefix(f"{stack.data_bucket}/")
    artifacts = {
        "the run's files": paths.status(job.run),
        "a trial's files": paths.status(paths.trial_id(job.run, 1)),
        "the job": paths.job(job.run),
        "a launch": paths.launch(job.run, job.launch),
        "where a launch is": paths.placement(job.run, job.launch),
        "the wish to end": paths.end(job.run, job.launch),
        "a trial's job": paths.job(paths.trial_id(job.run, 1)),
        "the tokens": f"{tokens}/manifest.json",
        "the model to start from": f"{model or 'runs/none/model'}/config.json",
        "current.json": paths.CURRENT,
        "another run's file": paths.status(f"{job.run}0"),
        "other tokens": f"{tokens}-0/manifest.json",
        "the rest of the other run": f"{model.rpartition('/')[0] or 'runs/none'}/status.json",
        "a new object": "x",
    }
    data = {
        "the text": text,
        "the vocabulary": f"{paths.VOCABULARY}/vocab.json",
        "another text": f"{text}0",
        "the image's source": paths.image_source("0"),
        "Docker": docker.PATH,
    }
    prefixes = {
        "the run": f"{run}/",
        "the tokens' folder": f"{tokens}/",
        "the model's folder": f"{model or 'runs/none/model'}/",
        "the vocabulary's folder": f"{paths.VOCABULARY}/",
        "another run": f"{run}0/",
        "all runs": "runs/",
        "everything": "",
    }
    absent = set() if model else {"the model to start from", "the model's folder"}
    if job.data.tokenizer != "gpt2":
        absent |= {"the vocabulary", "the vocabulary's folder"}
    brought = {"Docker"} if docker.needs_archive(stack) else set()
    for role, found in grants(graph, stack.stack).items():
        if role == "service-1":  # it has no right on objects
            continue
        read, written, listed = set(), set(), set()
        for place, bucket, names in (
            ("artifacts", stack.bucket, artifacts),
            ("data", stack.data_bucket, data),
        ):
            resource = f"projects/_/buckets/{bucket.removeprefix('gs://')}"
            reads = found.get(("roles/storage.objectViewer", place), "")
            writes = found.get(("roles/storage.objectUser", place), "")
            read |= {name for name, path in names.items() if conditions.holds(reads, f"{resource}/objects/{path}")}
            written |= {name for name, path in names.items() if conditions.holds(writes, f"{resource}/objects/{path}")}
            for name, prefix in prefixes.items():
                attributes = {"storage.googleapis.com/objectListPrefix": prefix} if prefix else {}
                assert not conditions.holds(writes, resource, attributes)
                listed |= {name} if conditions.holds(reads, resource, attributes) else set()
        assert (role, read, written) == (role, (READ[role] | brought) - absent, WRITTEN[role])
        assert (role, listed) == (role, LISTED[role] - absent)


@pytest.mark.parametrize("stack", ["dev", "single"])
@pytest.mark.parametrize("preview", [False, True])
def test_graph_of_a_committed_stack_keeps_its_promises(root: Path, stack: str, preview: bool) -> None:
    made = read(stack_values(stack), root, stack)
    graph, job = declare(made, preview=preview)
    if not preview:
        check(graph, made, job)
    sizes = {one.name: one.inputs["targetSize"] for one in graph.of("RegionInstanceGroupManager")}
    dev = {f"{role}-us-central1-{z}-group": 0 for role in ("master", "worker", "ps") for z in "bc"}
    dev |= {f"{role}-us-central1-a-group": n for role, n in {"master": 1, "worker": 10, "ps": 3}.items()}
    assert sizes == {"dev": dev, "single": {"master-group": 1}}[stack]
    (training,) = graph.of("TrainingRun")
    assert training.inputs["trainingInput"]["masterType"] == made.file.training_input.master_type
    assert job.run.startswith("gpt2")


def test_graph_has_the_deadline_in_every_template_and_in_the_controllers_argument(root: Path) -> None:
    graph, job = declare(read(stack_values(), root))
    ends = {one.inputs["scheduling"]["terminationTime"] for one in graph.of("RegionInstanceTemplate")}
    assert ends == {"2026-09-22T14:14:01Z"}
    (scheduled,) = [one for one in graph.of("Job") if one.token.startswith("gcp:")]
    assert scheduled.inputs["schedule"] == "*/5 * * * *"
    (workflow,) = graph.of("Workflow")
    target = scheduled.inputs["httpTarget"]
    assert target["uri"].endswith(f"/locations/us-central1/workflows/{workflow.inputs['name']}/executions")
    argument = json.loads(json.loads(base64.b64decode(target["body"]))["argument"])
    assert argument["ends"] == 1_790_000_041 + 24 * 3600
    assert argument["job"].endswith(f"/jobs/{scheduled.inputs['name']}")
    assert (argument["run"], argument["launch"], argument["bucket"]) == (job.run, 1, "my-project-dev-gpt2")
    assert argument["zones"] == ["us-central1-a", "us-central1-b", "us-central1-c"]
    managers = {
        (one.inputs["name"], *one.inputs["distributionPolicyZones"]) for one in graph.of("RegionInstanceGroupManager")
    }
    assert {(group["name"], group["zone"]) for group in argument["groups"]} == managers
    required = {group["role"]: (group["count"], group["required"]) for group in argument["groups"]}
    assert required == {"master": (1, 1), "worker": (10, 0), "ps": (3, 3)}


def test_machines_of_a_run_without_money_end_before_its_time(root: Path) -> None:
    values = stack_values() | {"gpt2-training:limits": {"maxHours": 24, "maxCostUsd": 41}}
    made = read(values, root)
    graph, _ = declare(made)
    (ends,) = {one.inputs["scheduling"]["terminationTime"] for one in graph.of("RegionInstanceTemplate")}
    hours = 41 / resolve_fleet(made).hourly.usd
    assert 4 < hours < 6
    assert ends == termination_time(1_790_000_041, hours)


def test_run_that_starts_from_another_run_may_read_that_model_alone(root: Path) -> None:
    values = stack_values()
    values["gpt2-training:model"] = {"initialize": "gpt2-0a1b2c3d"}
    values["gpt2-training:data"] = dict(values["gpt2-training:data"]) | {"tokenizer": "checkpoint"}
    made = read(values, root)
    graph, job = declare(made)
    assert job.model.initialize == "gs://my-project-dev-gpt2/runs/gpt2-0a1b2c3d/model"
    check_object_rights(graph, made, job)


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
    training |= {"masterType": "g2-standard-16", "workerType": "g2-standard-8", "parameterServerCount": 0}
    machines = values["gpt2-training:machines"] | {"flexStart": True, "spot": False}
    values["gpt2-training:machines"] = {k: v for k, v in machines.items() if k not in ("accelerator", "reservation")}
    values["gpt2-training:limits"] = {"maxHours": min(values["gpt2-training:limits"]["maxHours"], 168)}
    return values


def legal(values: dict[str, Any]) -> dict[str, Any]:
    """Return the stack file changed towards a legal one, so that graphs are tested as well as errors."""
    training = values["gpt2-training:trainingInput"]
    training |= {"masterType": "n1-highmem-16", "workerType": "n1-highmem-16", "parameterServerType": "n1-highmem-8"}
    training["workerCount"] = min(training["workerCount"], 15)  # the batch size is 32, and each has 2 GPUs
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
            graph, job = declare(made)
        except config.ConfigError as error:
            problems = error.problems
        if problems:
            for line in problems:
                assert "\n" not in line
                assert re.match(r"(gpt2-training|gcp):[\w.]+: |stack ", line), line
            return
        check(graph, made, job)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(stack_files().map(legal), stack_files().map(waiting)))
def test_stack_file_that_is_legal_gives_a_graph_that_keeps_its_promises(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = read(values, make_root(Path(folder)))
        graph, job = declare(made)
        check(graph, made, job)


def test_machines_that_are_placed_compactly_wait_for_their_policy(tmp_path: Path) -> None:
    values = stack_values() | {"gpt2-training:limits": {}, "gpt2-training:machines": {"compactPlacement": True}}
    values["gpt2-training:trainingInput"] = {
        "masterType": "g2-standard-8",
        "workerType": "g2-standard-8",
        "workerCount": 3,
        "hyperparameters": {"batchSize": 8},
    }
    stack = read(values, make_root(tmp_path))
    graph, job = declare(stack)
    check(graph, stack, job)
    (policy,) = graph.of("ResourcePolicy")
    assert policy.inputs["groupPlacementPolicy"] == {"collocation": "COLLOCATED"}
    templates = graph.of("RegionInstanceTemplate")
    assert {template.inputs["resourcePolicies"] for template in templates} == {
        f"projects/my-project/regions/us-central1/resourcePolicies/{policy.inputs['name']}"
    }
    for template in templates:
        assert policy in list(graph.waits_for(template))
