"""Models that do not fit into memory, and the cheapest change that an error names."""

from pathlib import Path
from typing import Any

import pytest

from infra.fleet.fleet import resolve_fleet
from infra.sizing import memory, workload
from infra.stack.config import ConfigError, StackConfig
from tests.infra.google_graph import make_root, stack_values
from tests.infra.google_graph import read as load

XL = {"size": "gpt2-xl"}
T4 = {"accelerator": {"type": "nvidia-tesla-t4"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def alone(
    root: Path, machine: str, model: dict[str, Any], *, machines: dict[str, Any] | None = None, **hyper: Any
) -> StackConfig:
    """Load the reference job with one machine and 32 sequences a step."""
    values = stack_values()
    training = {**values["gpt2-training:trainingInput"], "workerCount": 0, "parameterServerCount": 0}
    training |= {"masterType": machine, "hyperparameters": {"batchSize": 32, "steps": 100, **hyper}}
    values["gpt2-training:trainingInput"] = training
    values |= {"gpt2-training:machines": machines or {}, "gpt2-training:model": model, "gpt2-training:limits": {}}
    return load(values, root)


def problem(root: Path, machine: str, model: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        alone(root, machine, model, **keys)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line.removeprefix("gpt2-training:")


def needs(stack: StackConfig) -> list[memory.MemoryNeed]:
    size = workload.dimensions(stack)
    assert size is not None
    return memory.needs(stack, resolve_fleet(stack), size)


def assert_fits(stack: StackConfig) -> None:
    assert all(need.usual <= need.has for need in needs(stack))


def test_micro_batch_that_the_error_names_fits(root: Path) -> None:
    line = problem(root, "a2-highgpu-1g", XL, microBatchSize=16)
    assert line.startswith("trainingInput.hyperparameters.microBatchSize: found 16, and 16 sequences of 1024 tokens")
    assert_fits(alone(root, "a2-highgpu-1g", XL, microBatchSize=int(line.rpartition("; use ")[2])))


def test_micro_batch_that_is_not_given_is_one_that_fits(root: Path) -> None:
    assert_fits(alone(root, "a2-highgpu-1g", XL))


def test_long_sequences_are_answered_with_recomputing(root: Path) -> None:
    long = {"size": "gpt2-medium", "positions": 16384}
    line = problem(root, "g2-standard-4", long, sequenceLength=16384)
    assert line.startswith("trainingInput.masterType: a nvidia-l4 of g2-standard-4 has 24 GB, and gpt2-medium needs")
    assert line.endswith("; use hyperparameters.recompute: block")
    assert_fits(alone(root, "g2-standard-4", long, sequenceLength=16384, recompute="block"))


def test_machine_with_several_gpus_is_answered_with_fsdp(root: Path) -> None:
    assert problem(root, "g2-standard-24", XL).endswith("; use parallel.parallelism: fsdp")


def test_one_gpu_is_answered_with_the_cheapest_machine_that_fits_and_its_price(root: Path) -> None:
    line = problem(root, "g2-standard-8", XL)
    wanted = (
        "; use g2-standard-24 for trainingInput.masterType (+1.15 USD an hour each) with parallel.parallelism: fsdp"
    )
    assert line.endswith(wanted)


def test_attached_gpus_are_answered_with_more_of_them(root: Path) -> None:
    line = problem(root, "n1-highmem-16", XL, machines=T4)
    assert "; use n1-highmem-8 + 4 x nvidia-tesla-t4 for trainingInput.masterType" in line


def test_cpu_is_answered_with_another_cpu(root: Path) -> None:
    line = problem(root, "n1-highcpu-16", XL)
    assert line.startswith("trainingInput.masterType: n1-highcpu-16 has 15 GB")
    assert "; use e2-highmem-8 for trainingInput.masterType" in line


def test_model_that_no_machine_holds_is_said_to_be_too_large(root: Path) -> None:
    line = problem(root, "a2-highgpu-1g", {"layers": 128, "heads": 64, "width": 16384})
    assert line.endswith("; no machine of Google's is large enough; use a smaller model")


def test_parameter_server_is_answered_with_more_servers_or_memory(root: Path) -> None:
    values = stack_values()
    values["gpt2-training:trainingInput"] |= {"parameterServerType": "n1-highcpu-4", "parameterServerCount": 1}
    values["gpt2-training:model"] = XL
    with pytest.raises(ConfigError) as caught:
        load(values, root)
    (line,) = (line for line in caught.value.problems if "parameterServerType" in line)
    assert "n1-highcpu-4 has" in line
    assert line.endswith("; use a machine with more memory, or a higher trainingInput.parameterServerCount")


def test_models_that_are_trained_in_practice_fit_into_memory(root: Path) -> None:
    for stack in (
        alone(root, "n1-highmem-8", {"size": "gpt2"}, machines=T4),
        alone(root, "a2-highgpu-1g", {"size": "gpt2"}),
        alone(root, "a2-ultragpu-1g", XL, microBatchSize=4),
    ):
        assert_fits(stack)


def test_cheapest_change_never_has_more_processes_than_rows(root: Path) -> None:
    assert "g2-standard-24" not in problem(root, "g2-standard-8", XL, batchSize=1)


def test_memory_of_a_gpu_is_less_than_its_nominal_size() -> None:
    for gpu, most in (("nvidia-tesla-t4", 15), ("nvidia-l4", 22.5), ("nvidia-h100-80gb", 79.6)):
        assert memory.gpu_bytes(gpu) < most * memory.GIB


def test_optimizer_state_is_shared_among_the_gpus_of_a_machine(root: Path) -> None:
    one, eight = (needs(alone(root, f"a2-highgpu-{n}g", {"size": "gpt2"}, microBatchSize=1))[0] for n in (1, 8))
    assert one.least - eight.least == pytest.approx((16 - 8 - 16 / 8) * 124_475_904, rel=0.01)
