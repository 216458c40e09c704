"""Stack files for Google Cloud: every mistake is refused in one line with key and fix, and the plan of the groups."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import lifecycle
from infra.fleet import deadline
from infra.fleet.fleet import resolve_fleet
from infra.google import groups
from infra.google.zones import zones_of_launch
from infra.inputs.data_lock import DataLock, write_lock
from infra.inputs.google import LARGEST_OBJECT
from infra.job import job_spec
from infra.load import bucket_of
from infra.stack.config import ConfigError, StackConfig
from tests.infra.google_graph import TEXT, make_root, stack_values
from tests.infra.google_graph import read as load
from trainer.contract.errors import InputError
from trainer.runs.records import Status


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def changed(changes: dict[str, Any], stack: str = "dev") -> dict[str, Any]:
    """Return the committed values with some set at a path, or removed with ...; missing parts are made."""
    everything = copy.deepcopy(stack_values(stack))
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = everything
        for i, part in enumerate(parents):
            node = node.setdefault(part if ":" in part or i else f"gpt2-training:{part}", {})
        if not parents and ":" not in last:
            last = f"gpt2-training:{last}"
        if value is ...:
            node.pop(last)
        else:
            node[last] = value
    return everything


def problems(everything: dict[str, Any], root: Path, stack: str = "dev") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job_spec(load(everything, root, stack))
    return caught.value.problems


def planned(read: StackConfig) -> list[groups.Group]:
    """Return the groups that get machines, if nobody gives advice on capacity."""
    fleet = resolve_fleet(read)
    zones = zones_of_launch(read, fleet, None, None, None, "", None)  # type: ignore[arg-type]  no log, so no parent
    hours = deadline.launch_hours(read.file.limits, fleet)
    return [group for group in groups.groups(read, fleet, job_spec(read, fleet), zones, hours) if group.current]


ACCELERATOR = "machines.accelerator"
ALONE = {"trainingInput.workerCount": 0, "trainingInput.parameterServerCount": 0}
PINNED = "us-docker.pkg.dev/p/r/trainer@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"gcp:project": ...}, "gcp:project", "missing; run `pulumi config set gcp:project YOUR-PROJECT --stack dev`"),
        ({"gcp:project": "My Project"}, "gcp:project", "must be a project's id"),
        ({"gcp:project": 123456789}, "gcp:project", "found '123456789', must be a project's id"),
        ({"gcp:region": "Iowa"}, "gcp:region", "must be a region such as us-central1"),
        ({"trainingInput.masterType": ...}, "trainingInput.masterType", "missing; give a machine type"),
        ({"trainingInput.workerType": "n1-highmen-16"}, "trainingInput.workerType", "did you mean n1-highmem-16?"),
        ({"trainingInput.masterType": "N1-highmem16"}, "trainingInput.masterType", "did you mean n1-highmem-16?"),
        (
            {"machines.zones": ["us-central1-a"] * 2},
            "machines.zones",
            "us-central1-a is there 2 times; name each zone once",
        ),
        ({f"{ACCELERATOR}.type": "nvidia-tesla-t5"}, f"{ACCELERATOR}.type", "did you mean nvidia-tesla-t4?"),
        ({f"{ACCELERATOR}.count": 3}, f"{ACCELERATOR}.count", "use count 1 or 2 or 4"),
        ({ACCELERATOR: {"type": "nvidia-l4"}}, f"{ACCELERATOR}.type", "is built into machines; remove it and use"),
        ({"trainingInput.masterType": "g2-standard-8"}, ACCELERATOR, "has 1 x nvidia-l4 built in; remove it"),
        ({"machines.zones": ["europe-west4-a"]}, "machines.zones", "is not in gcp:region us-central1"),
        ({"machines.zones": ["us-central1-d"]}, "machines.zones", "has no nvidia-tesla-t4; use us-central1-a"),
        ({"gcp:region": "europe-west3", "limits": {}}, "machines.zones", "region europe-west3 is not in our table"),
        ({"machines.reservation": "r1"}, "machines.spot", "cannot go with machines.reservation"),
        ({"machines.spot": False, "machines.flexStart": True}, "machines.flexStart", "n1-highmem-16 (trainingInput."),
        ({"limits.maxHours": 3000}, "limits.maxHours", "at most 2880"),
        ({"limits.maxCostUsd": 1}, "limits.maxCostUsd", "less than the first hour, "),
        ({"limits.billingAccount": "abc"}, "limits.billingAccount", "must look like 012345-6789AB-CDEF01"),
        ({"image": "trainer:latest"}, "image", "and pinned by digest"),
        ({"image": "docker.io/trainer@sha256:" + "0" * 64}, "image", "must be in Artifact Registry"),
        ({"gcp:zone": "us-central1-a"}, "gcp:zone", "has no effect here, only project and region do; remove it"),
        ({"trainingInput.masterType": "a3-highgpu-1g"}, "machines.accelerator", "has 1 x nvidia-h100-80gb built in"),
        ({"notify": "me"}, "notify", "must be an e-mail address"),
        ({"machines.bootDiskGb": 10}, "machines.bootDiskGb", "at least 50"),
        ({"machines.zone": "a"}, "machines.zone", "unknown key; did you mean zones?"),
        ({"data.path": "data/gone.txt"}, "data.path", "there is no file data/gone.txt"),
        ({"data.path": "gs://b/o.txt"}, "data.path", "run `python -m scripts.upload_data gs://b/o.txt`"),
        ({"model": {"initialize": "gpt2"}}, "model.initialize", "the machines have no internet; set network.nat: true"),
        ({"trainingInput.scaleTier": "BASIC"}, "trainingInput.masterType", "scaleTier BASIC sets it"),
        (
            {"parallel.parallelism": "fsdp"},
            "parallel.parallelism",
            "and a trainer has 1; use machines.accelerator.count 2 or more, or machine types with several built in",
        ),
        (
            {"parallel.parallelism": "fsdp", "machines.accelerator": ..., "limits": {}},
            "parallel.parallelism",
            "or its processes, and a trainer has one process; use parallel.processes: 2 or more, or replicas",
        ),
        (
            {f"{ACCELERATOR}.count": 4, "limits": {}},
            "trainingInput.hyperparameters.batchSize",
            "found 32, less than the 44 processes of 11 trainers; use at least 44, or fewer workers",
        ),
        (
            {"parallel.processes": 2},
            "parallel.processes",
            "found 2, and a trainer has 1 GPU here, each with a process of its own; remove it",
        ),
    ],
)
def test_mistake_in_a_google_stack_file_is_one_line_with_key_and_fix(
    root: Path, changes: dict[str, Any], key: str, said: str
) -> None:
    found = problems(changed(changes), root)
    assert all("\n" not in line for line in found)
    full = key if key.startswith("gcp:") else f"gpt2-training:{key}"
    assert [line for line in found if line.startswith(f"{full}: ") and said in line], found


@pytest.mark.parametrize("region", ["us-centrall", "US-Central1", "us-centrl1"])
def test_misspelled_region_is_one_line(root: Path, region: str) -> None:
    """No line reports its zones or prices as missing."""
    (line,) = problems(changed({"gcp:region": region}), root)
    assert line.startswith(f"gcp:region: found '{region}', ")
    assert "did you mean us-central1?" in line


@pytest.mark.parametrize("region", ["us-east5", "europe-west3", "southamerica-east1", "northamerica-northeast1"])
def test_region_that_is_not_in_the_table_is_no_misspelling(root: Path, region: str) -> None:
    found = problems(changed({"gcp:region": region, "limits": {}}), root)
    assert [line.split(":")[1] for line in found] == ["machines.zones"]


def test_missing_zones_name_the_command_that_lists_them(root: Path) -> None:
    elsewhere = {"gcp:region": "europe-west3", "limits": {}}
    (line,) = problems(changed(elsewhere), root)
    assert "`gcloud compute accelerator-types list --filter=name=nvidia-tesla-t4` shows them" in line
    (line,) = problems(changed(elsewhere, "single"), root, "single")
    assert "`gcloud compute machine-types list --filter=name=n1-standard-16` shows them" in line


def test_misspelled_key_of_gcp_is_one_line(root: Path) -> None:
    everything = changed({"gcp:project": ..., "gcp:projct": "my-project"})
    assert problems(everything, root) == ["gcp:projct: unknown key; did you mean gcp:project?"]
    with pytest.raises(ConfigError, match=r"^gcp:projct: unknown key; did you mean gcp:project\?$"):
        bucket_of("dev", root)


def test_project_given_as_a_number_is_refused_by_bucket_of(root: Path) -> None:
    (root / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": changed({"gcp:project": 123456789})}))
    with pytest.raises(ConfigError, match=r"^gcp:project: found '123456789', must be a project's id"):
        bucket_of("dev", root)


def test_stack_name_that_ends_in_a_hyphen_is_refused(root: Path) -> None:
    (line,) = problems(stack_values(), root, "run-")
    assert "does not end with a hyphen" in line


def test_broken_lock_names_the_text_and_the_stack(root: Path) -> None:
    (root / "data" / "my-data.txt.lock.json").write_text("{}")
    again = r"`python -m scripts\.upload_data data/my-data\.txt --stack dev` writes it anew$"
    with pytest.raises(InputError, match=again):
        job_spec(load(stack_values(), root))


def test_values_that_pulumi_put_in_quotes_read_the_same(root: Path) -> None:
    """`pulumi config set` puts every plain value of the file into quotes."""
    assert load(changed({"launch": "2", "keepArtifacts": "false"}), root).file.launch == 2
    assert load(changed({"keepArtifacts": "false"}), root).file.keep_artifacts is False


def test_stack_name_that_is_too_long_for_an_account_is_refused(root: Path) -> None:
    (line,) = problems(stack_values(), root, "a-very-long-stack-name")
    assert "at most 16" in line


def test_large_text_needs_a_lock_and_no_file(root: Path) -> None:
    text = root / "data" / "my-data.txt"
    text.write_bytes(TEXT.encode() * (LARGEST_OBJECT // len(TEXT) + 2))
    (line,) = problems(stack_values(), root)
    assert "run `python -m scripts.upload_data data/my-data.txt --stack dev` and commit my-data.txt.lock.json" in line
    lock = DataLock(url="gs://elsewhere/my-data.txt", sha256="ab" * 32, size=text.stat().st_size)
    write_lock(text, lock)
    with text.open("ab") as file:
        file.write(b"more")
    (line,) = problems(stack_values(), root)
    assert "and my-data.txt.lock.json says" in line
    text.unlink()
    job = job_spec(load(stack_values(), root))
    assert (job.data.path, job.fingerprint) == (lock.url, "ab" * 8)


def test_gpt2_vocabulary_comes_from_this_checkout_or_over_nat(root: Path) -> None:
    job = job_spec(load(stack_values(), root))
    assert job.data.vocabulary_path == "gs://my-project-dev-gpt2-data/vocabulary/gpt2"
    shutil.rmtree(root / "data" / "gpt2-vocabulary")
    (line,) = problems(stack_values(), root)
    assert "run `python -m scripts.prepare_data --stack dev`, or set network.nat: true" in line
    assert job_spec(load(changed({"network.nat": True}), root)).data.vocabulary_path is None


def test_plan_of_the_reference_job_has_its_groups_and_templates(root: Path) -> None:
    read = load(stack_values(), root)
    plan = {group.role: group for group in planned(read)}
    assert {role: group.count for role, group in plan.items()} == {"master": 1, "worker": 10, "ps": 3}
    types = {role: group.template["machine_type"] for role, group in plan.items()}
    assert types == {"master": "n1-highmem-16", "worker": "n1-highmem-16", "ps": "n1-highmem-8"}
    assert plan["master"].template["guest_accelerators"] == [{"type": "nvidia-tesla-t4", "count": 1}]
    assert "guest_accelerators" not in plan["ps"].template
    models = {role: group.template["scheduling"]["provisioning_model"] for role, group in plan.items()}
    assert models == {"master": "STANDARD", "worker": "SPOT", "ps": "STANDARD"}
    assert {role: group.required for role, group in plan.items()} == {"master": 1, "worker": 0, "ps": 3}
    job = plan["master"].template["metadata"]["gpt2-controller"]
    assert re.fullmatch(r"projects/my-project/locations/us-central1/jobs/gpt2-dev-controller-[0-9a-f]{8}", str(job))
    assert "gpt2-controller" not in plan["worker"].template["metadata"]


def test_group_name_changes_with_template_run_and_launch_alone(root: Path) -> None:
    def names(changes: dict[str, Any]) -> dict[str, str]:
        read = load(changed(changes), root)
        return {group.role: group.name for group in planned(read)}

    before = names({})
    assert names({"trainingInput.workerCount": 5}) == before
    assert names({"evaluation": {"every": 7}}) == before
    for changes in (
        {"trainingInput.hyperparameters.learningRate": 0.02},
        {"launch": 2},
        {"limits.maxHours": 12},
        {"limits.maxCostUsd": 100},
        {"machines.zones": ["us-central1-b"]},
    ):
        assert not set(names(changes).values()) & set(before.values())
    assert names({"machines.spot": False})["master"] == before["master"]
    assert names({"machines.spot": False})["worker"] != before["worker"]


def test_plan_names_the_fewest_machines_with_which_a_step_is_taken(root: Path) -> None:
    plan = {group.role: group for group in planned(load(changed({"trainingInput.minWorkers": 4}), root))}
    assert {role: group.required for role, group in plan.items()} == {"master": 1, "worker": 4, "ps": 3}


def test_flex_start_is_refused_with_parameter_servers_that_would_be_paid_for_while_gpus_wait(root: Path) -> None:
    servers = {"parameterServerType": "n1-highmem-8", "parameterServerCount": 1}
    large = {"masterType": "a2-highgpu-1g", "hyperparameters": {"batchSize": 8}, **servers}
    (line,) = problems(changed({"trainingInput": large, "machines": {"flexStart": True}, "limits": {}}), root)
    assert line.startswith("gpt2-training:machines.flexStart: parameter servers do not wait for capacity, ")
    assert line.endswith("set trainingInput.parameterServerCount: 0, or remove flexStart")


def test_plan_with_flex_start_or_a_reservation_declares_it(root: Path) -> None:
    large = {"masterType": "a2-highgpu-1g", "hyperparameters": {"batchSize": 8}}
    read = load(changed({"trainingInput": large, "machines": {"flexStart": True}, "limits": {}}), root)
    (group,) = planned(read)
    assert group.flex_start
    assert group.template["scheduling"]["max_run_duration"] == {"seconds": 86400}
    read = load(changed({"machines.spot": False, "machines.reservation": "mine"}), root)
    plan = {group.role: group.template for group in planned(read)}
    assert plan["worker"]["reservation_affinity"]["specific_reservation"]["values"] == ["mine"]
    assert "reservation_affinity" not in plan["ps"]


@pytest.mark.parametrize("parallelism", ["replicas", "fsdp"])
def test_job_has_a_process_for_each_gpu_of_a_trainer(root: Path, parallelism: str) -> None:
    """Spot workers and parameter servers are allowed in each."""

    def cluster(changes: dict[str, Any]) -> tuple[str, int, int, int]:
        job = job_spec(load(changed({"parallel.parallelism": parallelism, "limits": {}} | changes), root))
        return job.run, job.cluster.gpus, job.cluster.processes, job.cluster.threads

    run, *two = cluster({f"{ACCELERATOR}.count": 2})
    assert two == [2, 2, 4]
    assert cluster({f"{ACCELERATOR}.count": 4, "trainingInput.workerCount": 7}) == (run, 4, 4, 2)
    types = {f"trainingInput.{role}Type": "a2-highgpu-8g" for role in ("master", "worker")}
    built_in = {"machines.accelerator": ..., "trainingInput.workerCount": 1} | types
    assert cluster(built_in) == (run, 8, 8, 6)


def test_job_with_parameter_servers_has_the_speed_of_the_network(root: Path) -> None:
    def gbps(changes: dict[str, Any]) -> tuple[float | None, float | None]:
        cluster = job_spec(load(changed(changes), root)).cluster
        return cluster.trainer_gbps, cluster.server_gbps

    assert gbps({}) == (32, 16)
    assert gbps({"trainingInput.workerType": "n1-standard-4"}) == (8, 16)  # the slowest trainer counts
    assert gbps({"trainingInput.parameterServerType": "n1-standard-32"}) == (32, 32)
    assert gbps({"trainingInput.parameterServerType": "g2-standard-8", "limits": {}}) == (32, 16)
    assert gbps({"trainingInput.parameterServerCount": 0}) == (None, None)
    large = {f"trainingInput.{role}Type": "a2-highgpu-1g" for role in ("master", "worker")}
    assert gbps({**large, "machines.accelerator": ..., "limits": {}}) == (24, 16)
    runs = {job_spec(load(changed(ps), root)).run for ps in ({}, {"trainingInput.parameterServerCount": 0})}
    assert len(runs) == 1


def test_deadline_is_the_earlier_of_time_and_money(root: Path) -> None:
    read = load(stack_values(), root)
    fleet = resolve_fleet(read)
    assert fleet.hourly.exact
    assert deadline.launch_hours(read.file.limits, fleet) == 24
    read = load(changed({"limits.maxCostUsd": 2 * fleet.hourly.usd}), root)
    assert deadline.launch_hours(read.file.limits, fleet) == pytest.approx(2)
    started = 1_790_000_041  # 2026-09-21 14:14:01 UTC
    assert deadline.termination_time(started, 24) == "2026-09-22T14:14:01Z"
    assert deadline.deadline(started, 2) == started + 7200


def test_run_with_a_final_status_is_finished(root: Path) -> None:
    job = job_spec(load(stack_values(), root))

    def finished(**fields: Any) -> bool:
        return lifecycle.is_finished(Status(**{"state": "FAILED", "updated": 0.0, **fields}), job)

    assert finished()
    assert finished(state="SUCCEEDED", launch=7)
    assert finished(state="STOPPED", reason="by hand")
    assert not finished(state="RUNNING")
    assert not finished(state="STOPPED", reason="destroyed; `pulumi up` continues")
    again = job.model_copy(update={"launch": 2})
    assert not lifecycle.is_finished(Status(state="FAILED", updated=0.0), again)
    assert lifecycle.is_finished(Status(state="SUCCEEDED", updated=0.0), again)


def test_pinned_image_gives_the_jobs_code(root: Path) -> None:
    job = job_spec(load(changed({"image": PINNED}), root))
    assert job.code == "sha256:" + "0" * 64
    assert job.run != job_spec(load(stack_values(), root)).run
    assert json.dumps(job.to_json())
