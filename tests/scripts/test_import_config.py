"""scripts.import_config: each key of an AI Platform or Vertex AI file is mapped, replaced or left out, with a note."""

import json
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import pytest
import yaml

from infra import load
from infra.importing import ai_platform, vertex
from infra.importing.draft import LEGACY, Note
from infra.stack import plain_yaml
from infra.stack.keys import TIERS
from scripts import import_config
from scripts.support.common import UserError

REFERENCE: dict[str, Any] = {
    "scaleTier": "CUSTOM",
    "masterType": "n1-highmem-16",
    "workerType": "n1-highmem-16",
    "workerCount": 10,
    "parameterServerType": "n1-highmem-8",
    "parameterServerCount": 3,
    "hyperparameters": {"learningRate": 0.01, "batchSize": 32},
}
T4 = {"type": "NVIDIA_TESLA_T4", "count": 1}
SEARCH: dict[str, Any] = {
    "goal": "MINIMIZE",
    "hyperparameterMetricTag": "loss",
    "maxTrials": 20,
    "params": [{"parameterName": "learningRate", "type": "DOUBLE", "minValue": 0.001, "maxValue": 0.1}],
}


def convert(tmp_path: Path, content: Any, stack: str = "new") -> tuple[dict[str, Any], list[Note]]:
    """Return the stack file's own keys, as Pulumi reads them, and the notes. The file loads once it names a project."""
    path = tmp_path / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    text, draft = import_config.convert(path, stack)
    every: dict[str, Any] = plain_yaml.parse(text)["config"]
    return every, draft.notes


def own(every: dict[str, Any]) -> dict[str, Any]:
    return {name.partition(":")[2]: value for name, value in every.items() if name.startswith("gpt2-training:")}


def training(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], list[Note]]:
    """Convert the reference file with some keys changed; None removes one."""
    content = {k: v for k, v in {**REFERENCE, **changes}.items() if v is not None}
    every, notes = convert(tmp_path, {"trainingInput": content})
    return own(every), notes


def words(notes: list[Note], state: str) -> dict[str, str]:
    return {note.key: note.words for note in notes if note.state == state}


def test_import_of_the_reference_file_keeps_it_unchanged(tmp_path: Path) -> None:
    every, notes = convert(tmp_path, {"trainingInput": REFERENCE})
    assert own(every)["trainingInput"] == REFERENCE
    loaded = load.load(own(every), "new", tmp_path, {"project": "my-project", "region": every["gcp:region"]})
    assert (loaded.workers, loaded.servers) == (10, 3)
    assert loaded.file.training_input.hyperparameters.learning_rate == 0.01
    mapped = {f"trainingInput.{key}" for key in REFERENCE if key != "hyperparameters"}
    mapped |= {"trainingInput.hyperparameters.learningRate", "trainingInput.hyperparameters.batchSize"}
    assert set(words(notes, "mapped")) == mapped
    assert set(words(notes, "to fill in")) == {"gcp:project", "region", "data", "model", "optimizer"}
    assert words(notes, "left out") == {}


def test_import_of_an_imported_file_changes_nothing(tmp_path: Path) -> None:
    first, _ = convert(tmp_path, {"trainingInput": REFERENCE})
    again, _ = convert(tmp_path, {"trainingInput": own(first)["trainingInput"]})
    assert again == first


def test_import_of_quoted_numbers_and_snake_case_gives_the_same(tmp_path: Path) -> None:
    snake = """
training_input: {scale_tier: CUSTOM, master_type: n1-highmem-16, worker_type: n1-highmem-16, worker_count: "10",
  parameter_server_type: n1-highmem-8, parameter_server_count: "3",
  hyperparameters: {learning_rate: 0.01, batch_size: "32"}}
"""
    assert own(convert(tmp_path, snake)[0])["trainingInput"] == REFERENCE
    assert own(convert(tmp_path, REFERENCE)[0])["trainingInput"] == REFERENCE  # here it is a trainingInput alone
    assert own(convert(tmp_path, json.dumps({"trainingInput": REFERENCE}))[0])["trainingInput"] == REFERENCE


@pytest.mark.parametrize("tier", TIERS)
def test_import_of_a_scale_tier_keeps_it(tmp_path: Path, tier: str) -> None:
    every, notes = convert(tmp_path, {"trainingInput": {"scaleTier": tier, "masterType": "standard"}})
    assert own(every)["trainingInput"] == {"scaleTier": tier}
    assert words(notes, "left out") == {"trainingInput.masterType": f"scaleTier {tier} sets it"}
    replaced = words(notes, "replaced").get("trainingInput.scaleTier", "")
    assert replaced == ("trainingInput.scaleTier, with a T4 in place of the K80" if tier == "BASIC_GPU" else "")
    loaded = load.load(own(every), "new", tmp_path, {"project": "my-project"})
    assert (loaded.workers, loaded.servers) == TIERS[tier]


def test_import_without_a_scale_tier_keeps_the_machines(tmp_path: Path) -> None:
    values, notes = training(tmp_path, scaleTier=None)
    assert values["trainingInput"] == REFERENCE
    words_ = words(notes, "to fill in")["trainingInput.scaleTier"]
    assert words_.startswith("trainingInput.scaleTier: CUSTOM is assumed, as masterType and workerType and workerCount")
    every, notes = convert(tmp_path, {"trainingInput": {"hyperparameters": {"batchSize": 32}}})
    assert own(every)["trainingInput"]["scaleTier"] == "BASIC"
    assert words(notes, "to fill in")["trainingInput.scaleTier"].startswith("trainingInput.scaleTier: BASIC is assumed")
    for found in (training(tmp_path, scaleTier=None)[1], notes):
        assert "trainingInput.scaleTier" not in words(found, "mapped")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"trainingInput": {"scaleTier": "BASIC_TPU"}}, "scaleTier: found BASIC_TPU; this project trains on CPUs and"),
        ({"trainingInput": {**REFERENCE, "workerType": "cloud_tpu"}}, "workerType: found cloud_tpu; this project"),
        (
            {"trainingInput": {**REFERENCE, "masterConfig": {"acceleratorConfig": {"type": "TPU_V3", "count": 8}}}},
            "masterConfig.acceleratorConfig: found TPU_V3; this project",
        ),
        ({"trainingInput": {"scaleTier": "LARGE"}}, "scaleTier: found 'LARGE', must be CUSTOM or one of BASIC"),
        ({"trainingInput": {"scaleTier": "CUSTOM"}}, "trainingInput.masterType: missing; scaleTier CUSTOM needs it"),
        ({"trainingInput": {**REFERENCE, "workerCount": "ten"}}, "workerCount: found 'ten', must be a whole number"),
        ({"trainingInput": {**REFERENCE, "args": "--lr=1"}}, "args: found --lr=1, must be a list"),
        ({"trainingInput": [1]}, "trainingInput: found [1], must be keys and values"),
        ({"trainingInput": {**REFERENCE, "scheduling": {"maxRunningTime": "2h"}}}, "must be seconds such as 86400s"),
        ({"workerPoolSpecs": []}, "workerPoolSpecs: missing; it says which machines there are"),
        ({"apiVersion": 1, "kind": "Job"}, "found the keys apiVersion, kind, and none of trainingInput"),
        ("just words", "found no keys; it must be a training job"),
        ("a: [", "cannot be read"),
    ],
)
def test_file_that_cannot_be_imported_is_one_line(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        convert(tmp_path, content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LEGACY)
def test_old_machine_names_become_machines_that_load(tmp_path: Path, name: str) -> None:
    values, notes = training(tmp_path, masterType=name, workerType=name)
    machine, gpu, count = LEGACY[name]
    assert values["trainingInput"]["workerType"] == machine
    assert "the nearest of this project" in words(notes, "replaced")["trainingInput.workerType"] or gpu
    if gpu:
        assert values["machines"]["accelerator"] == {"type": "nvidia-tesla-t4", "count": min(count, 4)}
    # A sequence for each GPU of 11 trainers: more do not fit into the smallest machine.
    values["trainingInput"].setdefault("hyperparameters", {})["batchSize"] = 11 * min(max(count, 1), 4)
    load.load(values, "new", tmp_path, {"project": "my-project"})


def test_trainers_with_unlike_built_in_gpus_are_left_to_a_person(tmp_path: Path) -> None:
    _, notes = training(tmp_path, masterType="a2-highgpu-1g", workerType="g2-standard-8")
    said = words(notes, "to fill in")["trainingInput.workerType"]
    assert said.startswith("g2-standard-8 has 1 x nvidia-l4, and the master, a2-highgpu-1g, has 1 x nvidia-tesla-a100;")


@pytest.mark.parametrize(
    ("machine", "nearest"),
    [("c2-standard-60", "n1-standard-64"), ("c2d-highmem-8", "n1-highmem-8"), ("t2d-standard-4", "n1-standard-4")],
)
def test_machines_of_other_families_become_n1(tmp_path: Path, machine: str, nearest: str) -> None:
    values, notes = training(tmp_path, workerType=machine)
    assert values["trainingInput"]["workerType"] == nearest
    assert words(notes, "replaced")["trainingInput.workerType"].endswith(f"{nearest}, the nearest of this project")


@pytest.mark.parametrize("machine", ["n2-highmem-16", "e2-standard-4"])
def test_machines_of_known_families_stay(tmp_path: Path, machine: str) -> None:
    values, notes = training(tmp_path, workerType=machine)
    assert values["trainingInput"]["workerType"] == machine
    assert "trainingInput.workerType" not in words(notes, "replaced")


def test_unknown_gpu_is_left_to_a_person_and_not_taken_for_an_old_one(tmp_path: Path) -> None:
    values, notes = training(tmp_path, masterConfig={"acceleratorConfig": {"type": "NVIDIA_B300", "count": 1}})
    assert "accelerator" not in values.get("machines", {})
    todo = words(notes, "to fill in")["trainingInput.masterConfig.acceleratorConfig"]
    assert todo == "NVIDIA_B300 is not known here: machines.accelerator, or a machine with GPUs"


def test_machine_without_an_equivalent_is_left_to_a_person(tmp_path: Path) -> None:
    values, notes = training(tmp_path, workerType="m1-ultramem-40")
    assert values["trainingInput"]["workerType"] == "m1-ultramem-40"
    todo = words(notes, "to fill in")
    assert todo["trainingInput.workerType"].startswith("unknown machine type 'm1-ultramem-40'")


def test_import_of_gpus_and_disks_maps_both(tmp_path: Path) -> None:
    disk = {"bootDiskType": "pd-ssd", "bootDiskSizeGb": 300}
    replica = {"acceleratorConfig": T4, "diskConfig": disk, "imageUri": "gcr.io/p/i", "containerArgs": ["--steps=5000"]}
    values, notes = training(tmp_path, masterConfig=replica, workerConfig={"acceleratorConfig": T4})
    assert values["machines"] == {"bootDiskGb": 300, "accelerator": {"type": "nvidia-tesla-t4", "count": 1}}
    assert values["trainingInput"]["hyperparameters"]["steps"] == 5000
    assert set(words(notes, "left out")) == {
        "trainingInput.masterConfig.diskConfig.bootDiskType",
        "trainingInput.masterConfig.imageUri",
    }
    load.load(values, "new", tmp_path, {"project": "my-project"})


def test_gpus_that_the_image_cannot_use_or_that_differ_are_replaced_with_a_note(tmp_path: Path) -> None:
    values, notes = training(
        tmp_path,
        masterConfig={"acceleratorConfig": {"type": "NVIDIA_TESLA_V100", "count": 8}},
        workerConfig={"acceleratorConfig": T4},
        parameterServerConfig={"acceleratorConfig": T4},
    )
    assert values["machines"]["accelerator"] == {"type": "nvidia-tesla-t4", "count": 1}
    replaced = words(notes, "replaced")
    assert replaced["trainingInput.masterConfig.acceleratorConfig"].startswith(
        "machines.accelerator: 4 x nvidia-tesla-t4;"
    )
    assert replaced["accelerators"].endswith("have the same here, 1 x nvidia-tesla-t4 each")
    assert words(notes, "left out")["trainingInput.parameterServerConfig.acceleratorConfig"] == (
        "parameter servers compute on CPUs"
    )


def test_built_in_gpus_are_mapped_to_the_machine_type(tmp_path: Path) -> None:
    a100 = {"acceleratorConfig": {"type": "NVIDIA_TESLA_A100", "count": 1}}
    there = {"masterType": "a2-highgpu-1g", "workerType": "a2-highgpu-1g", "masterConfig": a100, "workerConfig": a100}
    values, notes = training(tmp_path, **there)
    assert "machines" not in values
    assert words(notes, "mapped")["trainingInput.masterConfig.acceleratorConfig"].startswith("built into a2-highgpu-1g")
    load.load(values, "new", tmp_path, {"project": "my-project"})
    _, notes = training(tmp_path, masterConfig=a100)  # here it is on an N1 machine
    assert words(notes, "to fill in")["trainingInput.masterConfig.acceleratorConfig"].endswith(
        "use a2-highgpu-1g or larger"
    )


def test_arguments_of_a_program_become_hyperparameters(tmp_path: Path) -> None:
    given = ["--learning_rate=0.02", "--batch-size", "64", "--max_steps=500", "--model=gpt2-medium", "--compile"]
    given += ["--train-files", "gs://b/x", "stray", "--dropout=2"]
    values, notes = training(tmp_path, hyperparameters=None, args=given)
    wanted = {"learningRate": 0.02, "batchSize": 64, "steps": 500, "compile": True}
    assert values["trainingInput"]["hyperparameters"] == wanted
    assert values["model"] == {"size": "gpt2-medium"}
    left = {note.key: (note.found, note.words) for note in notes if note.state == "left out"}
    assert left["trainingInput.args --train-files"] == ("gs://b/x", "no hyperparameter of this trainer")
    assert left["trainingInput.args"] == ("stray", "belongs to no --name")
    assert left["trainingInput.args --dropout"] == ("2", "dropout: input should be less than 1")


def test_hyperparameter_in_the_file_precedes_an_argument(tmp_path: Path) -> None:
    values, notes = training(tmp_path, args=["--lr=0.5"])
    assert values["trainingInput"]["hyperparameters"]["learningRate"] == 0.01
    assert words(notes, "left out") == {"trainingInput.args --lr": "learningRate was 0.01 before"}


def test_hyperparameter_search_becomes_a_sweep(tmp_path: Path) -> None:
    params = [*SEARCH["params"], {"parameterName": "batch-size", "type": "DISCRETE", "discreteValues": [16, 32]}]
    search = {**SEARCH, "params": params, "maxParallelTrials": 5, "algorithm": "GRID_SEARCH"}
    values, notes = training(tmp_path, hyperparameters={**search, "optimizer": "adamw"})
    assert values["trainingInput"]["hyperparameters"] == {"optimizer": "adamw"}
    assert values["sweep"]["maxTrials"] == 20
    assert values["sweep"]["hyperparameterMetricTag"] == "loss"
    assert [each["parameterName"] for each in values["sweep"]["params"]] == ["learningRate", "batchSize"]
    assert "trainingInput.hyperparameters" in words(notes, "mapped")
    said = words(notes, "replaced")["trainingInput.hyperparameters.maxParallelTrials"]
    assert said == "sweep.maxParallelTrials: 1, as all machines train one trial after the other"
    assert values["sweep"]["maxParallelTrials"] == 1
    assert "TPE" in words(notes, "left out")["trainingInput.hyperparameters.algorithm"]


def test_sweep_notes_a_metric_or_goal_that_differs_from_the_search(tmp_path: Path) -> None:
    key = "trainingInput.hyperparameters"
    values, notes = training(tmp_path, hyperparameters={**SEARCH, "hyperparameterMetricTag": "perplexity"})
    assert values["sweep"]["hyperparameterMetricTag"] == "validationLoss"
    assert "validationLoss, the nearest" in words(notes, "replaced")[f"{key}.hyperparameterMetricTag"]
    bare = {name: value for name, value in SEARCH.items() if name not in ("hyperparameterMetricTag", "goal")}
    for given in (bare, {**bare, "goal": "GOAL_TYPE_UNSPECIFIED"}):
        values, notes = training(tmp_path, hyperparameters=given)
        assert values["sweep"]["goal"] == "MINIMIZE"
        assert {f"{key}.hyperparameterMetricTag", f"{key}.goal"} <= set(words(notes, "to fill in"))


def test_settings_of_roles_without_machines_are_left_out_with_a_note(tmp_path: Path) -> None:
    gpu = {"acceleratorConfig": {"type": "NVIDIA_TESLA_T4", "count": 1}, "diskConfig": {"bootDiskSizeGb": 900}}
    values, notes = training(tmp_path, workerCount=0, workerConfig=gpu)
    assert "workerType" not in values["trainingInput"]
    assert "machines" not in values
    none = dict.fromkeys(("trainingInput.workerType", "trainingInput.workerConfig"), "workerCount is 0")
    assert words(notes, "left out") == none
    _, notes = convert(tmp_path, {"workerPoolSpecs": [pool("n1-standard-8"), pool("a2-highgpu-1g", 0)]})
    assert words(notes, "left out") == {"workerPoolSpecs[1].machineSpec": "its replicaCount is 0"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hyperparameterMetricTag": "accuracy"}, "the metric accuracy is not measured here"),
        ({"hyperparameterMetricTag": "perplexity", "goal": "MAXIMIZE"}, "MAXIMIZE of perplexity looks for the worst"),
        ({"params": [*SEARCH["params"], "lr"]}, "params[1]: found lr, must be keys and values"),
        (
            {"params": [{**SEARCH["params"][0], "parameterName": "hidden_units"}]},
            "no hyperparameter that can be varied",
        ),
    ],
)
def test_unsupported_search_is_kept_as_a_comment(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    search = {**SEARCH, **change}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"trainingInput": {**REFERENCE, "hyperparameters": {**search, "batchSize": 16}}}))
    text, draft = import_config.convert(path, "new")
    comment = [line.removeprefix("  #   ") for line in text.splitlines() if line.startswith("  #   ")]
    assert yaml.safe_load("\n".join(comment)) == search
    assert why in words(draft.notes, "left out")["trainingInput.hyperparameters"]
    assert plain_yaml.parse(text)["config"]["gpt2-training:trainingInput"]["hyperparameters"] == {"batchSize": 16}


@pytest.mark.parametrize(
    ("seconds", "hours", "state"), [("86400s", 24, "mapped"), ("5400.5s", 1.5, "mapped"), ("60s", 0.25, "replaced")]
)
def test_max_running_time_becomes_max_hours(tmp_path: Path, seconds: str, hours: float, state: str) -> None:
    values, notes = training(tmp_path, scheduling={"maxRunningTime": seconds})
    assert values["limits"] == {"maxHours": hours}
    assert "trainingInput.scheduling.maxRunningTime" in words(notes, state)


def test_default_that_differs_is_noted(tmp_path: Path) -> None:
    assert words(training(tmp_path)[1], "replaced") == {
        "trainingInput.scheduling.maxRunningTime": (
            "limits.maxHours: 24 hours unless you set it; AI Platform's default was 7 days"
        )
    }


def test_region_outside_the_table_needs_zones_from_a_person(tmp_path: Path) -> None:
    every, notes = convert(tmp_path, {"trainingInput": {**REFERENCE, "region": "europe-west3"}})
    assert every["gcp:region"] == "europe-west3"
    assert words(notes, "to fill in")["machines.zones"].startswith("missing; region europe-west3 is not in our table")


def test_unknown_key_is_listed(tmp_path: Path) -> None:
    every, notes = convert(tmp_path, {"trainingInput": {**REFERENCE, "frobnicate": {"a": 1}}, "jobId": "x", "y": 2})
    assert words(notes, "left out") == {
        "trainingInput.frobnicate": "this key is not known here",
        "jobId": "a run is named by its content",
        "y": "this key is not known here",
    }
    assert "frobnicate" not in json.dumps(every)


# -- every field of Google's own documents -----------------------------------------------------------------------------


def fields(api: str, schema: str) -> set[str]:
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    return set(json.loads((documents / f"{api}.json").read_text())["schemas"][schema]["properties"])


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        ("Job", {"trainingInput", *ai_platform.JOB_LEFT_OUT, *ai_platform.OUTPUTS}),
        (
            "TrainingInput",
            {"scaleTier", "region", "hyperparameters", "args", "scheduling", *ai_platform.LEFT_OUT}
            | {f"{role}{part}" for role in ai_platform.ROLES for part in ("Type", "Count", "Config")} - {"masterCount"},
        ),
        ("ReplicaConfig", {"acceleratorConfig", "diskConfig", "containerArgs", *ai_platform.REPLICA_LEFT_OUT}),
        ("Scheduling", {"maxRunningTime", *ai_platform.SCHEDULING_LEFT_OUT}),
        ("HyperparameterSpec", set(ai_platform.TUNING)),
        ("AcceleratorConfig", {"type", "count"}),
        ("DiskConfig", {"bootDiskType", "bootDiskSizeGb"}),
    ],
)
def test_fields_of_ai_platform_are_all_known(schema: str, taken: set[str]) -> None:
    assert fields("ml.v1", f"GoogleCloudMlV1__{schema}") == taken


@pytest.mark.parametrize(
    ("schema", "taken"),
    [
        ("CustomJob", {"jobSpec", *vertex.JOB_LEFT_OUT} - {"trials"}),
        ("CustomJobSpec", {"workerPoolSpecs", "scheduling", *vertex.SPEC_LEFT_OUT}),
        (
            "WorkerPoolSpec",
            {
                "machineSpec",
                "diskSpec",
                "replicaCount",
                "containerSpec",
                "pythonPackageSpec",
                *vertex.POOL_LEFT_OUT,
            },
        ),
        ("MachineSpec", {"machineType", "acceleratorType", "acceleratorCount", *vertex.MACHINE_LEFT_OUT}),
        ("DiskSpec", {"bootDiskType", "bootDiskSizeGb"}),
        ("ContainerSpec", {"args", "imageUri", "command", "env"}),
        ("PythonPackageSpec", {"args", "env", "executorImageUri", "packageUris", "pythonModule"}),
        ("Scheduling", {"timeout", "strategy", *vertex.SCHEDULING_LEFT_OUT}),
        ("StudySpec", {"metrics", "parameters", *vertex.STOPPING, *vertex.STUDY_LEFT_OUT}),
        ("StudySpecMetricSpec", {"metricId", "goal", "safetyConfig"}),
        ("StudySpecParameterSpec", {"parameterId", "scaleType", "conditionalParameterSpecs", *vertex.VALUES}),
        (
            "HyperparameterTuningJob",
            {"trialJobSpec", *vertex.TUNING, *vertex.JOB_LEFT_OUT} - {"webAccessUris"},
        ),
    ],
)
def test_fields_of_vertex_ai_are_all_known(schema: str, taken: set[str]) -> None:
    assert fields("aiplatform.v1", f"GoogleCloudAiplatformV1{schema}") == taken


# -- Vertex AI ----------------------------------------------------------------------------------------------------


def pool(machine: str, count: int = 1, **further: Any) -> dict[str, Any]:
    return {"machineSpec": {"machineType": machine}, "replicaCount": str(count), **further}


def test_vertex_form_of_the_reference_job_gives_the_same_stack_file(tmp_path: Path) -> None:
    code = {"containerSpec": {"imageUri": "gcr.io/p/i", "args": ["--learning-rate=0.01", "--batch_size=32"]}}
    pools = [
        pool("n1-highmem-16", **code),
        pool("n1-highmem-16", 10, **code),
        pool("n1-highmem-8", 3),
        pool("n1-standard-4"),
    ]
    schedule = {"timeout": "7200s", "strategy": "SPOT", "disableRetries": True}
    every, notes = convert(
        tmp_path, {"displayName": "gpt2", "jobSpec": {"workerPoolSpecs": pools, "scheduling": schedule}}
    )
    values = own(every)
    assert values["trainingInput"] == REFERENCE
    assert (values["machines"], values["limits"]) == ({"spot": True}, {"maxHours": 2})
    left = words(notes, "left out")
    assert left["jobSpec.workerPoolSpecs[3]"] == "the trainers evaluate, see evaluation in the stack file"
    assert "jobSpec.scheduling.disableRetries" in left
    assert "this key is not known here" not in left.values()
    load.load(values, "new", tmp_path, {"project": "my-project"})


def test_vertex_spec_with_an_empty_worker_pool_is_imported(tmp_path: Path) -> None:
    """gcloud's --config has this form; a pool without workers stays empty."""
    content = {
        "workerPoolSpecs": [pool("n1-standard-8"), {}, pool("n1-standard-4", 2)],
        "scheduling": {"strategy": "SPOT"},
    }
    every, notes = convert(tmp_path, content)
    assert own(every)["trainingInput"] == {
        "scaleTier": "CUSTOM",
        "masterType": "n1-standard-8",
        "parameterServerType": "n1-standard-4",
        "parameterServerCount": 2,
    }
    assert words(notes, "left out")["scheduling.strategy"] == "only workers can be Spot VMs, and there are none"


STUDY: dict[str, Any] = {
    "metrics": [{"metricId": "val-loss", "goal": "MINIMIZE"}],
    "parameters": [
        {"parameterId": "lr", "doubleValueSpec": {"minValue": 1e-4, "maxValue": 0.01}, "scaleType": "UNIT_LOG_SCALE"},
        {"parameterId": "batch_size", "discreteValueSpec": {"values": [16, 32], "defaultValue": 32}},
        {"parameterId": "warmup-steps", "integerValueSpec": {"minValue": "1", "maxValue": "9"}},
        {"parameter_id": "optimizer", "categorical_value_spec": {"values": ["adamw", "sgd"]}},
    ],
    "medianAutomatedStoppingSpec": {},
    "observationNoise": "HIGH",
}


def tuning_job(study: dict[str, Any]) -> dict[str, Any]:
    trial = {"workerPoolSpecs": [pool("g2-standard-8", containerSpec={"args": ["--steps=500", "--batch-size=64"]})]}
    return {"studySpec": study, "maxTrialCount": 8, "parallelTrialCount": "2", "trialJobSpec": trial}


def test_vertex_tuning_job_becomes_a_sweep(tmp_path: Path) -> None:
    every, notes = convert(tmp_path, tuning_job(STUDY))
    values = own(every)
    assert values["sweep"] == {
        "goal": "MINIMIZE",
        "hyperparameterMetricTag": "validationLoss",
        "maxTrials": 8,
        "maxParallelTrials": 1,
        "enableTrialEarlyStopping": True,
        "params": [
            {
                "parameterName": "learningRate",
                "type": "DOUBLE",
                "minValue": 1e-4,
                "maxValue": 0.01,
                "scaleType": "UNIT_LOG_SCALE",
            },
            {"parameterName": "batchSize", "type": "DISCRETE", "discreteValues": [16, 32]},
            {"parameterName": "warmupSteps", "type": "INTEGER", "minValue": 1, "maxValue": 9},
            {"parameterName": "optimizer", "type": "CATEGORICAL", "categoricalValues": ["adamw", "sgd"]},
        ],
    }
    load.load(values, "new", tmp_path, {"project": "my-project"})
    assert "studySpec" in words(notes, "mapped")
    assert "median" in words(notes, "replaced")["studySpec.medianAutomatedStoppingSpec"]
    left = words(notes, "left out")
    assert set(left) == {"studySpec.observationNoise", "studySpec.parameters[1].discreteValueSpec.defaultValue"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": [*STUDY["metrics"], {"metricId": "speed", "goal": "MAXIMIZE"}]}, "2 metrics, and a sweep has one"),
        ({"metrics": [{"metricId": "accuracy", "goal": "MAXIMIZE"}]}, "the metric accuracy is not measured here"),
        ({"parameters": [{**STUDY["parameters"][0], "conditionalParameterSpecs": [{}]}]}, "depend on others' values"),
        ({"parameters": [{**STUDY["parameters"][0], "doubleValueSpec": {"minValue": "a"}}]}, "valid number"),
        ({"parameters": [{**STUDY["parameters"][0], "parameterId": "units"}]}, "no hyperparameter that can be varied"),
    ],
)
def test_unsupported_vertex_study_is_kept_as_a_comment(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = tmp_path / "job.yaml"
    content = tuning_job({**STUDY, **change})
    path.write_text(yaml.safe_dump(content))
    text, draft = import_config.convert(path, "new")
    comment = [line.removeprefix("  #   ") for line in text.splitlines() if line.startswith("  #   ")]
    assert yaml.safe_load("\n".join(comment)) == {k: v for k, v in content.items() if k != "trialJobSpec"}
    assert why in words(draft.notes, "left out")["studySpec"]
    assert not [note for note in draft.notes if "sweep." in note.words and note.state == "replaced"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_existing_file_is_overwritten_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "config.yaml", tmp_path / "Pulumi.new.yaml"
    source.write_text(yaml.safe_dump({"trainingInput": REFERENCE}))
    target.write_text("mine\n")
    with pytest.raises(UserError, match="is there already; name another --stack or --to, or write over it: --force"):
        import_config.main([str(source), "--to", str(target)])
    assert target.read_text() == "mine\n"
    assert import_config.main([str(source), "--to", str(target), "--force"]) == 0
    out = capsys.readouterr().out
    assert "mapped: trainingInput.masterType n1-highmem-16: trainingInput.masterType\n" in out
    assert (
        "to fill in: gcp:project: missing; run `pulumi config set gcp:project YOUR-PROJECT --stack imported`\n" in out
    )
    assert out.splitlines()[-1] == f"8 mapped, 1 replaced, 0 left out, 5 to fill in; wrote {target}"
    assert own(plain_yaml.parse(target.read_text())["config"])["trainingInput"] == REFERENCE


def test_file_that_cannot_be_imported_writes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "config.yaml", tmp_path / "Pulumi.new.yaml"
    source.write_text("trainingInput: {scaleTier: BASIC_TPU}")
    with pytest.raises(UserError, match="BASIC_TPU"):
        import_config.main([str(source), "--to", str(target)])
    assert not target.exists()
