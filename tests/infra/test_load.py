"""Stack files: their values, and one line for everything that a person can get wrong."""

import copy
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pulumi
import pytest
import yaml

from infra import load
from infra.fleet import fleet
from infra.fleet.caveats import sharing_caveats
from infra.fleet.host import host_gpus
from infra.job import division, job_spec
from infra.run import from_pulumi
from infra.stack import plain_yaml, reading
from infra.stack.config import ConfigError
from trainer.contract import identity, spec

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = "It was the best of times, it was the worst of times.\n" * 400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make the parts of a checkout that stack files need."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "default.txt").write_text(TEXT)
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "code.py").write_text("pass\n")
    shutil.copy(CHECKOUT / "Pulumi.local.yaml", tmp_path)
    return tmp_path


def values() -> dict[str, Any]:
    """Return the committed stack file's values."""
    content = yaml.safe_load((CHECKOUT / "Pulumi.local.yaml").read_text())["config"]
    return {name.removeprefix("gpt2-training:"): value for name, value in content.items()}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the committed values with one set at a path, or removed with ...; missing parts are made."""
    everything = copy.deepcopy(values())
    *parents, last = path.split(".")
    node = everything
    for part in parents:
        node = node.setdefault(part, {})
    if value is ...:
        node.pop(last)
    else:
        node[last] = value
    return everything


@pytest.fixture(autouse=True)
def give_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that sets the GPUs that the driver's tool reports: so many, and others by their models.

    At first there are none.
    """
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def give(count: int, *others: str) -> None:
        models = [*["NVIDIA H100 80GB HBM3"] * count, *others]
        lines = [
            f"echo 'GPU {i}: {model} (UUID: GPU-{i})'; echo '  MIG 1g.10gb     Device  0: (UUID: MIG-{i})'"
            for i, model in enumerate(models)
        ]
        tool.write_text("\n".join(["#!/bin/sh", *(lines or ["echo 'No devices were found'; exit 6"]), ""]))
        tool.chmod(0o755)
        host_gpus.cache_clear()

    give(0)
    yield give
    host_gpus.cache_clear()


def problems(everything: dict[str, Any], root: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job_spec(load.load(everything, "local", root))
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


HYPER = "trainingInput.hyperparameters"


# A key, a value that is refused there (... removes the key), and a part of the error.
MISTAKES: list[tuple[str, Any, str | None]] = [
    ("trainingInput", ..., "missing; give trainingInput: {workerCount: 1"),
    ("trainingInput", None, "found nothing, must be keys and values; for example trainingInput"),
    ("model", ..., "missing; give model: {size: gpt2}"),
    ("model", "gpt2", "found 'gpt2', must be keys and values; for example model: {size: gpt2}"),
    ("data", ..., "missing; give data: {path: data/default.txt"),
    ("modle", {}, "unknown key; did you mean model?"),
    ("model.hed", 4, "unknown key; did you mean heads?"),
    (f"{HYPER}.learning_rate", 0.1, "unknown key; did you mean learningRate?"),
    (f"{HYPER}.foo", 1, "unknown key; there are: batchSize, beta1,"),
    ("trainingInput.region", "us-central1", "this key of AI Platform has no meaning here; remove it"),
    ("platform", "gogle", "found 'gogle', must be one of local, google; did you mean google?"),
    ("machines", {"spot": True}, "platform google only; set platform: google, or remove it"),
    (f"{HYPER}.learningRate", "fast", "found 'fast', must be a number, above 0 and at most 10"),
    (f"{HYPER}.learningRate", "0.01", "write 0.01 without quotes (pulumi config set: add --type float)"),
    (f"{HYPER}.learningRate", -1, "found -1, must be a number, above 0 and at most 10"),
    (f"{HYPER}.learningRate", float("nan"), "found NaN, must be a number"),
    (f"{HYPER}.steps", 1.5, "found 1.5, must be a whole number, at least 1"),
    (f"{HYPER}.steps", True, "found true, must be a whole number"),
    (f"{HYPER}.optimizer", "adam", "found 'adam', must be one of adamw, sgd"),
    (f"{HYPER}.compile", "true", "write true without quotes"),
    ("trainingInput.workerCount", -1, "found -1, must be a whole number, at least 0"),
    ("trainingInput.workerCount", "-1", "found '-1', must be a whole number"),
    ("trainingInput.workerCount", "two", "found 'two', must be a whole number"),
    ("trainingInput.minWorkers", 2, "found 2, more than the 1 workers there will be; use at most 1"),
    ("parallel.parallelism", "fsdp", "and a trainer has one process; use parallel.processes: 2 or more, or replicas"),
    ("parallel.plan", "ring", "found 'ring', must be one of auto, star, hierarchical"),
    ("parallel.every", 2, "found 2, but trainers meet at every step; add synchronization: local, or remove it"),
    ("checkpoints.keepEvery", 300, "found 300, must be a multiple of checkpoints.every, 250; use 250"),
    ("trainingInput.scaleTier", "STANDARD", "did you mean STANDARD_1?"),
    ("trainingInput.workerCount", 16, None),
    (f"{HYPER}.batchSize", 1, "found 1, less than the 2 trainers (master and 1 workers); use at least 2"),
    (f"{HYPER}.sequenceLength", 129, "found 129, longer than model.positions, 128"),
    ("model.heads", 5, "width 128 is not divisible by heads 5"),
    ("model.size", "gpt2", "give exactly one of: size, or layers + heads + width, or initialize"),
    ("data.tokenizer", "checkpoint", "checkpoint needs model.initialize"),
    ("launch", 0, "found 0, must be a whole number, at least 1"),
    ("launch", 10**20, "must be a whole number, at least 1 and at most 1000000"),
    ("machines.zones", "us-central1-a", "found 'us-central1-a', must be a list; for example zones: [us-central1-a"),
    ("data.path", "data/none.txt", "there is no file data/none.txt; check the path"),
    ("data.path", "data", "data: this is a folder: give one text file"),
    ("data.path", "gs://bucket/text", "is an address; platform local wants a file of this machine"),
    ("data.vocabularyPath", "./none", "belongs to tokenizer gpt2, found train; remove it, or use gpt2"),
    (f"{HYPER}.warmupSteps", 1001, "found 1001, more than steps, 1000; use at most 1000"),
    (f"{HYPER}.precision", "fp16", "fp16 needs a GPU, and here is none; use auto or fp32"),
]


@pytest.mark.parametrize(("path", "value", "said"), MISTAKES)
def test_mistake_in_a_stack_file_is_one_line_with_key_and_fix(
    root: Path, path: str, value: Any, said: str | None
) -> None:
    found = problems(changed(path, value), root)
    assert len(found) == 1
    if said is None:  # the line is about another key
        assert re.match(r"gpt2-training:trainingInput\.\S+: .*; (remove one|use )|.*use at least", found[0])
    else:
        assert found[0].startswith(f"gpt2-training:{path}: ") or said.startswith(("give exactly", "width"))
        assert said in found[0]
    assert "\n" not in found[0]


def test_sweep_with_trials_in_parallel_is_an_error_with_its_reason(root: Path) -> None:
    rate = {"parameterName": "learningRate", "type": "DOUBLE", "minValue": 0.001, "maxValue": 0.01}
    sweep = {"params": [rate], "maxParallelTrials": 3}
    (line,) = problems(values() | {"sweep": sweep}, root)
    key, _, said = line.partition(": ")
    assert key == "gpt2-training:sweep.maxParallelTrials"
    assert said == "found 3, but all machines train one trial after the other; use 1, or remove it"
    assert job_spec(load.load(values() | {"sweep": {**sweep, "maxParallelTrials": 1}}, "local", root)).sweep


def test_mistake_in_an_item_of_a_list_names_its_number(root: Path) -> None:
    (line,) = problems(changed("machines.zones", [1]), root)
    assert line == "gpt2-training:machines.zones.0: found 1, must be a text"


def test_mistakes_in_several_keys_are_all_reported(root: Path) -> None:
    everything = changed(f"{HYPER}.learningRate", "fast") | {"launch": "x", "lunch": 1}
    assert [line.split(": ")[0] for line in problems(everything, root)] == [
        f"gpt2-training:{HYPER}.learningRate",
        "gpt2-training:launch",
        "gpt2-training:lunch",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty: give a file with text"),
        (
            b"To be, or not to be.\n",
            "is too small, 21 bytes; batchSize 16 and sequenceLength 128 need at least 4,128: give more",
        ),
        (TEXT.encode() + b"\0" + TEXT.encode(), "byte 21,200 is zero, so this is no text file"),
        (TEXT.encode() + "café".encode("latin-1") + TEXT.encode(), "not UTF-8 at byte 21,203 (0xe9): convert the file"),
        (TEXT.encode("utf-16"), "this is UTF-16, not UTF-8: convert it with `iconv -f UTF-16"),
        (TEXT.encode() * 60 + b"\xe9t\xe9", "not UTF-8 at byte 1,272,000"),  # only the file's end shows the mistake
    ],
)
def test_text_that_cannot_be_trained_on_is_refused(root: Path, content: bytes, said: str) -> None:
    (root / "data" / "default.txt").write_bytes(content)
    (line,) = problems(values(), root)
    assert line.startswith("gpt2-training:data.path: data/default.txt")
    assert said in line


@pytest.mark.parametrize("shift", range(4))
def test_character_on_the_border_of_the_checked_bytes_is_no_error(root: Path, shift: int) -> None:
    (root / "data" / "default.txt").write_bytes(b"x" * shift + "🙂".encode() * 300_000)
    assert job_spec(load.load(values(), "local", root))


def test_missing_default_text_names_the_command_that_makes_it(root: Path) -> None:
    (root / "data" / "default.txt").unlink()
    (line,) = problems(values(), root)
    assert line.endswith("there is no file data/default.txt; python -m scripts.default_corpus makes it")


def test_checkpoints_larger_than_the_free_disk_are_refused_for_a_new_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=1_000_000))
    everything = values() | {"model": {"size": "gpt2"}}
    (line,) = problems(everything, root)
    assert re.search(
        r"checkpoints\.keep: 2 checkpoints, .* need 4\.4 GB in artifacts/local, and 0\.0 GB are free; make room", line
    )
    (line,) = problems(everything | {"checkpoints": {"keepEvery": 250}}, root)
    assert re.search(r"checkpoints\.keep: 6 checkpoints, .* need 8\.5 GB", line)
    (root / "artifacts/local/runs").mkdir(parents=True)
    monkeypatch.undo()
    run = job_spec(load.load(everything, "local", root)).run
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=1_000_000))
    (root / "artifacts/local/runs" / run).mkdir()
    assert job_spec(load.load(everything, "local", root)).run == run  # the run was accepted before


def test_several_machines_are_refused_where_torchft_does_not_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    found = problems(values(), root)
    for line, key in zip(found, ("workerCount", "parameterServerCount"), strict=True):
        assert line.startswith(f"gpt2-training:trainingInput.{key}: found 1, but torchft")
        assert "arm64" in line
        assert line.endswith("use 0")
    alone = changed("trainingInput.workerCount", 0)
    alone["trainingInput"]["parameterServerCount"] = 0
    job_spec(load.load(alone, "local", root))


def test_missing_or_unreadable_stack_file_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"stack locl: there is no Pulumi\.locl\.yaml; did you mean local\?"):
        load.from_file("locl", root)
    (root / "Pulumi.odd.yaml").write_text("config: [")
    with pytest.raises(ConfigError, match=r"Pulumi\.odd\.yaml cannot be read"):
        load.from_file("odd", root)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"Pulumi\.odd\.yaml is empty; give it a config:"),
        ("# to be written\n", r"Pulumi\.odd\.yaml is empty"),
        ("encryptionsalt: v1\n", r"Pulumi\.odd\.yaml has no config:; write your keys below it"),
        ("[a]\n", r"Pulumi\.odd\.yaml has no config:"),
        ("confg: {a: 1}\n", r"Pulumi\.odd\.yaml has no config:; is confg: meant for it\?"),
        ("config: [a]\n", r'Pulumi\.odd\.yaml: config: found \["a"\], must be keys and values'),
        ("config:\n", r"Pulumi\.odd\.yaml: config: found nothing, must be keys and values"),
        ("config: {gcp:project: my-project}\n", r"Pulumi\.odd\.yaml has no keys of gpt2-training below config:"),
        (
            "config:\n  a: 1\n  b: {c: 1,\n    c: 2}\n",
            r"cannot be read: line 4: the key c is there twice, first in line 3;",
        ),
        (
            "config: {launch: 1, gpt2-training:launch: 2}\n",
            r"^gpt2-training:launch: is there twice, as launch and gpt2-",
        ),
        ("config:\n\ta: 1\n", r"cannot be read: line 2: found character '\\t'"),
    ],
)
@pytest.mark.parametrize("read", [load.from_file, load.bucket_of])
def test_file_that_is_no_stack_file_is_refused(
    root: Path, read: Callable[..., object], content: str, said: str
) -> None:
    """Each error is one line, and no such file counts as a local stack."""
    (root / "Pulumi.odd.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read("odd", root)
    assert "\n" not in str(caught.value)


def test_yaml_key_that_overrides_a_merged_one_appears_once() -> None:
    assert plain_yaml.parse("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\n")["b"] == {"x": 2, "y": 1}


def test_program_without_configuration_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pulumi.runtime.set_all_config({"gcp:region": "us-central1"})
    monkeypatch.setattr(pulumi, "get_stack", lambda: "bare")
    with pytest.raises(ConfigError, match=r"^Pulumi\.bare\.yaml has no keys of gpt2-training below config:; [^\n]*$"):
        from_pulumi()


def test_committed_local_stack_file_gives_this_job(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "host_cores", lambda: 8)
    read = load.from_file("local", root)
    job = job_spec(read)
    assert job.run.startswith("gpt2-4x128-")
    assert job.cluster.machines() == [("master-0", "master"), ("worker-0", "worker"), ("ps-0", "ps")]
    assert job.cluster.threads == 4  # servers compute while trainers wait, and get no cores of their own
    assert job.data.path == f"data/{identity.fingerprint(root / 'data/default.txt')}/default.txt"
    assert read.words() == values()
    assert division(read, fleet.resolve_fleet(read)) is None
    assert spec.JobSpec.model_validate(job.to_json()) == job


def test_run_name_depends_on_the_training_and_not_on_the_machines(root: Path) -> None:
    def run(path: str, value: Any) -> str:
        return job_spec(load.load(changed(path, value), "local", root)).run

    same = run("launch", 1)
    assert {run("launch", 2), run("trainingInput.workerCount", "3"), run("checkpoints.every", 10)} == {same}
    assert {run("trainingInput.parameterServerCount", count) for count in (0, 2)} == {same}
    assert run("parallel.wire", "bf16") != same
    assert run(f"{HYPER}.learningRate", 0.004) != same
    assert run("data.vocabularySize", 512) != same
    (root / "trainer" / "code.py").write_text("raise\n")
    assert run("launch", 1) != same


def test_presets_and_quoted_counts_are_read(root: Path) -> None:
    parameters = {"sequenceLength": 8}
    # AI Platform's files look like this: 64-bit numbers in quotes, and machine types that have no meaning here.
    training = {"scaleTier": "CUSTOM", "masterType": "n1-highmem-16", "workerCount": "10", "parameterServerCount": "0"}
    training_input = training | {"hyperparameters": parameters}
    assert load.load(values() | {"trainingInput": training_input}, "local", root).workers == 10
    twice = training_input | {"scaleTier": "BASIC"}
    for line in problems(values() | {"trainingInput": twice}, root):
        assert re.match(
            r"gpt2-training:trainingInput\.\w+Count: scaleTier BASIC sets it; remove one, or use CUSTOM", line
        )
    for tier in ("BASIC", "BASIC_GPU"):
        training_input = {"scaleTier": tier, "hyperparameters": parameters}
        assert load.load(values() | {"trainingInput": training_input}, "local", root).workers == 0
    training_input = {"scaleTier": "STANDARD_1", "hyperparameters": parameters}
    read = load.load(values() | {"trainingInput": training_input}, "local", root)
    assert (read.workers, read.servers) == (4, 3)


def shared(training: dict[str, Any], **parallel: Any) -> dict[str, Any]:
    """Return the committed values with other machines and another way to share the work."""
    everything = values() | {"parallel": parallel}
    everything["trainingInput"] = everything["trainingInput"] | training
    return everything


ALONE = {"workerCount": 0, "parameterServerCount": 0}


@pytest.mark.parametrize(
    ("everything", "said"),
    [
        (
            shared({"parameterServerCount": 0}, plan="star", wire="bf16"),
            ["parallel.plan: found star, and there are no parameter servers that it could mean"],
        ),
        (shared(ALONE, wire="bf16"), ["parallel.wire: found bf16, and there is one machine, which sends nothing"]),
        (
            shared({}, parallelism="fsdp", processes=2, synchronization="local", every=50),
            ["parallel.synchronization: local keeps a whole copy of the parameters for each machine, and fsdp is"],
        ),
        (
            shared({}, processes=9),
            ["trainingInput.hyperparameters.batchSize: found 16, less than the 18 processes of 2 trainers; use at"],
        ),
        (
            shared(ALONE, processes=17),
            ["trainingInput.hyperparameters.batchSize: found 16, less than the 17 processes of 1 trainer; use at"],
        ),
        (shared({}, processes=65), ["parallel.processes: found 65, must be a whole number, at least 1 and at most 64"]),
        (shared({}, synchronization="local"), ["parallel.every: found 1, but with synchronization: local it is"]),
        (
            shared({"parameterServerCount": 0}, synchronization="local", every=50),
            ["parallel.synchronization: local needs parameter servers"],
        ),
        (
            shared({}, synchronization="local", every=40),
            [
                "evaluation.every: found 100, must be a multiple of parallel.every, 40; use 80",
                "checkpoints.every: found 250, must be a multiple of parallel.every, 40; use 240",
            ],
        ),
        (
            shared({}, synchronization="local", every=400),
            ["evaluation.every: found 100, must be a multiple of parallel.every, 400; use 400", "checkpoints.every: "],
        ),
        (
            shared({"hyperparameters": {"optimizer": "sgd", "sequenceLength": 8}}, synchronization="local", every=50),
            ["trainingInput.hyperparameters.optimizer: found sgd, but parallel.synchronization: local is for adamw"],
        ),
    ],
)
def test_parallel_settings_that_do_not_fit_are_refused(root: Path, everything: dict[str, Any], said: list[str]) -> None:
    found = problems(everything, root)
    assert len(found) == len(said), found
    for line, start in zip(found, said, strict=True):
        assert line.startswith(f"gpt2-training:{start}")
        assert "\n" not in line


def test_parallel_settings_that_fit_go_into_the_job(root: Path) -> None:
    everything = shared({}, plan="hierarchical", wire="bf16", synchronization="local", every=50)
    everything["checkpoints"] = {"every": 250, "keepEvery": 500}
    job = job_spec(load.load(everything, "local", root))
    assert (job.parallel.plan, job.parallel.every, job.checkpoints.keep_every) == ("hierarchical", 50, 500)
    # The speed of the local network is unknown.
    assert (job.cluster.parameter_servers, job.cluster.trainer_gbps) == (1, None)


def test_fsdp_with_one_gpu_for_each_trainer_is_refused(root: Path, give_gpus: Callable[[int], None]) -> None:
    give_gpus(2)
    (line,) = problems(shared({}, parallelism="fsdp"), root)
    assert line == (
        "gpt2-training:parallel.parallelism: fsdp shares a model among the GPUs of a machine, and a trainer has 1 here;"
        " use fewer workers, or replicas"
    )


@pytest.mark.parametrize("parallelism", ["replicas", "fsdp"])
def test_local_trainers_share_out_the_gpus_with_a_process_for_each(
    root: Path, give_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, parallelism: str
) -> None:
    monkeypatch.setattr(fleet, "host_cores", lambda: 16)

    def cluster(gpus: int, workers: int) -> tuple[int, int, int]:
        give_gpus(gpus)
        everything = shared({"workerCount": workers}, parallelism=parallelism)
        declared = job_spec(load.load(everything, "local", root)).cluster
        return declared.gpus, declared.processes, declared.threads

    assert cluster(8, 0) == (8, 8, 2)
    assert cluster(8, 1) == (4, 4, 2)
    assert cluster(8, 2) == (2, 2, 2)  # two stay unused


@pytest.mark.parametrize(("chosen", "gpus"), [("2,3", 2), ("GPU-1, GPU-3", 2), ("1,9,2", 1), ("", 0), ("-1", 0)])
def test_local_trainers_share_out_the_gpus_that_the_shell_has_chosen(
    root: Path, give_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, chosen: str, gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    give_gpus(4)
    assert job_spec(load.load(shared(ALONE), "local", root)).cluster.gpus == gpus


def test_more_local_trainers_than_gpus_are_refused(root: Path, give_gpus: Callable[[int], None]) -> None:
    give_gpus(2)
    (line,) = problems(shared({"workerCount": 2}), root)
    assert line == (
        "gpt2-training:trainingInput.workerCount: found 3 trainers (master and 2 workers), and this machine has 2 GPUs;"
        " use at most 1, or set CUDA_VISIBLE_DEVICES to nothing to train on its CPU"
    )


def test_local_gpus_of_two_models_are_refused_unless_the_shell_chooses(
    root: Path, give_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_gpus(2, "NVIDIA T4")
    (line,) = problems(shared(ALONE), root)
    assert line == (
        "gpt2-training:platform: local would train on GPUs of several models, 2 x NVIDIA H100 80GB HBM3, 1 x NVIDIA T4,"
        " and each gets the same part of a step; choose those of one model, for example"
        " CUDA_VISIBLE_DEVICES=GPU-0,GPU-1"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0,GPU-1")
    give_gpus(2, "NVIDIA T4")
    assert job_spec(load.load(shared(ALONE), "local", root)).cluster.gpus == 2


def test_processes_are_those_of_the_file_on_cpus_and_those_of_the_gpus_elsewhere(
    root: Path, give_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "host_cores", lambda: 8)
    job = job_spec(load.load(shared({}, processes=2, parallelism="fsdp"), "local", root))
    assert (job.cluster.processes, job.cluster.gpus, job.cluster.threads) == (2, 0, 2)
    give_gpus(2)
    (line,) = problems(shared(ALONE, processes=3), root)
    assert line == (
        "gpt2-training:parallel.processes: found 3, and a trainer has 2 GPUs here, each with a process of its own;"
        " remove it"
    )
    assert job_spec(load.load(shared(ALONE, processes=2), "local", root)).cluster.processes == 2


def test_sweep_of_batches_smaller_than_the_processes_is_refused(root: Path) -> None:
    sizes = {"parameterName": "batchSize", "type": "DISCRETE", "discreteValues": [2, 8]}
    everything = shared({}, processes=2) | {"sweep": {"params": [sizes]}}
    (line,) = problems(everything, root)
    assert line == "gpt2-training:sweep.params[0]: batchSize 2.0 is less than the 4 trainers; use at least 4"


def test_unused_gpus_and_rounding_on_the_way_are_said(root: Path, give_gpus: Callable[[int], None]) -> None:
    give_gpus(8)
    everything = shared({"workerCount": 2}, wire="bf16")
    everything["trainingInput"]["hyperparameters"]["precision"] = "fp32"
    read = load.load(everything, "local", root)
    assert sharing_caveats(read, fleet.resolve_fleet(read)) == [
        "8 GPUs over 3 trainers: 2 each, and 2 stay unused; another trainingInput.workerCount may use all",
        "parallel.wire: bf16 rounds on the way what precision: fp32 computes; use fp32 for both, or precision: auto",
    ]
    plain = load.load(shared({"workerCount": 1}), "local", root)
    assert not sharing_caveats(plain, fleet.resolve_fleet(plain))


def test_min_workers_goes_into_the_job_and_not_into_its_name(root: Path) -> None:
    job = job_spec(load.load(changed("trainingInput.minWorkers", 1), "local", root))
    assert job.cluster.min_workers == 1
    assert job.run == job_spec(load.load(values(), "local", root)).run


def test_division_of_an_uneven_batch_is_reported(root: Path) -> None:
    everything = changed(f"{HYPER}.batchSize", 32)
    everything["trainingInput"]["workerCount"] = 10
    read = load.load(everything, "local", root)
    assert division(read, fleet.resolve_fleet(read)) == "batch 32 over 11 trainers: 2 or 3 each, 97% busy"
    several = load.load(everything | {"parallel": {"processes": 2}}, "local", root)
    assert division(several, fleet.resolve_fleet(several)) == "batch 32 over 22 processes: 1 or 2 each, 73% busy"


def test_stack_file_is_read_as_pulumi_reads_it(root: Path) -> None:
    text = (root / "Pulumi.local.yaml").read_text()
    text = text.replace("learningRate: 0.003", "learningRate: 3e-3").replace("gpt2-training:platform", "platform")
    (root / "Pulumi.local.yaml").write_text(text.replace("path: data/default.txt", "path: 2026-01-01"))
    read = load.from_file("local", root).file  # Pulumi's YAML has no dates, and an exponent makes a number
    assert read.training_input.hyperparameters.learning_rate == 0.003
    assert read.data.path == "2026-01-01"


def test_pulumi_configuration_of_texts_and_json_gives_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {f"gpt2-training:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values().items()}
    pulumi.runtime.set_all_config({**everything, "gcp:project": "other"})
    monkeypatch.setattr(pulumi, "get_stack", lambda: "local")
    read = from_pulumi()
    assert (read.file, read.project) == (load.from_file("local").file, "other")


def test_misspelled_project_name_is_refused(root: Path) -> None:
    path = root / "Pulumi.local.yaml"
    path.write_text(path.read_text().replace("gpt2-training:launch:", "gpt2-trainig:launch:"))
    with pytest.raises(ConfigError, match=r"^gpt2-trainig:launch: unknown key; did you mean gpt2-training:launch\?$"):
        load.from_file("local", root)


def test_script_reads_a_stack_file_with_encrypted_values(root: Path) -> None:
    """The key to the values is not here: a pipeline prepares the data of such a stack."""
    path = root / "Pulumi.local.yaml"
    encrypted = "\n  gpt2-training:model: {size: tiny, initialize: {secure: v1:a}}\n"
    path.write_text(re.sub(r"\n  gpt2-training:model:.*\n(    .*\n)*", encrypted, path.read_text()))
    assert reading.stack_values("local", root)[0]["model"] == {"size": "tiny", "initialize": "secret"}
    shutil.copy(CHECKOUT / "Pulumi.dev.yaml", root)
    with (root / "Pulumi.dev.yaml").open("a") as file:
        file.write("\n  gcp:project: my-project\n  gpt2-training:notify: {secure: v1:b}\n")
    assert load.from_file("dev", root).file.notify == "secret@example.com"


def test_trainers_that_exceed_the_memory_are_refused(root: Path) -> None:
    wanted = changed("trainingInput.workerCount", 900)
    wanted["trainingInput"]["hyperparameters"]["batchSize"] = 901
    (root / "data" / "default.txt").write_text(TEXT * 100)
    (line,) = problems(wanted, root)
    said = r"workerCount: 901 trainers and 1 parameter servers of .* GB of memory, and this machine has \d+; use fewer"
    assert re.search(said, line)


def test_parameter_servers_that_exceed_the_memory_are_refused(root: Path) -> None:
    (line,) = problems(changed("trainingInput.parameterServerCount", 1000), root)
    assert re.search(r"2 trainers and 1000 parameter servers of this model need about 6\d\d GB", line)


def test_run_name_depends_on_the_content_of_a_start_checkpoint(root: Path) -> None:
    start = root / "models" / "mine"
    start.mkdir(parents=True)
    (start / "model.safetensors").write_bytes(b"one")
    (start / "config.json").write_text('{"model_type": "gpt2", "n_positions": 128, "vocab_size": 257}')
    wanted = {**changed("data.tokenizer", "byte"), "model": {"initialize": "models/mine", "positions": 128}}
    first = job_spec(load.load(wanted, "local", root))
    assert first.model.initialize == str(start)
    (start / "model.safetensors").write_bytes(b"two")
    assert job_spec(load.load(wanted, "local", root)).run != first.run
