"""trainer.machine.process_environment: a computing process's GPUs and threads, and what it may not inherit."""

from typing import Any

import pytest

from trainer.contract.spec import Hardware, JobSpec
from trainer.machine import process_environment as module
from trainer.machine.process_environment import devices, process_environment, unused_gpus

ON_GOOGLE = {"master": Hardware(machine_type="a2-highgpu-2g", accelerator="nvidia-tesla-a100", accelerators=2)}


def job(google: bool = False, **cluster: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "run": "r",
        "model": {"size": "gpt2"},
        "data": {"path": "text.txt", "tokenizer": "byte"},
        "fingerprint": "f",
        "code": "c",
        "hyperparameters": {},
        "cluster": {"threads": 3, "processes": max(1, cluster.get("gpus", 0)), **cluster},
        "hardware": ON_GOOGLE if google else {},
    }
    return JobSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("given", "shares"),
    [
        ({}, ["0,1", "2,3", "4,5", "", ""]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,3,2,GPU-c,5,9"}, ["GPU-a,GPU-b", "3,2", "GPU-c,5", "", ""]),
        ({"CUDA_VISIBLE_DEVICES": "6,7,1"}, ["6,7", "1", "", "", ""]),  # fewer than declared, which the machine refuses
    ],
)
def test_local_trainers_share_out_the_computers_gpus(given: dict[str, str], shares: list[str]) -> None:
    spec = job(workers=2, parameterServers=1, gpus=2)
    machines = [*spec.cluster.machines(), ("worker-7", "worker")]  # the last one is declared no more
    assert [devices(spec, name, role, given) for name, role in machines] == shares  # type: ignore[arg-type]


def test_machine_on_google_has_all_its_gpus_whatever_was_set() -> None:
    found, lines = process_environment(
        job(google=True, workers=1, gpus=2), "worker-0", "worker", "127.0.0.1", {"CUDA_VISIBLE_DEVICES": "1"}
    )
    assert found["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert lines == ["CUDA_VISIBLE_DEVICES: found '1', and this run needs '0,1'; going on with that"]


def test_process_with_gpus_survives_nccls_errors_and_says_which_settings_it_overrides() -> None:
    given = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_NONBLOCKING_TIMEOUT": "99",
        "NCCL_SOCKET_IFNAME": "eth7",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    found, lines = process_environment(job(gpus=2), "master-0", "master", "127.0.0.1", given)
    expected = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_NONBLOCKING_TIMEOUT": "99",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "3",
    }
    assert found.items() >= expected.items()
    assert lines == [
        "NCCL_SOCKET_IFNAME: found 'eth7', and this run needs 'lo'; going on with that",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING: found '1', and this run needs '0'; going on with that",
    ]


@pytest.mark.parametrize(("role", "gpus"), [("ps", 2), ("master", 0)])
def test_process_without_gpus_sees_none(role: Any, gpus: int) -> None:
    spec = job(parameterServers=1, gpus=gpus)
    name = "ps-0" if role == "ps" else "master-0"
    found, lines = process_environment(spec, name, role, "127.0.0.1", {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert (found["CUDA_VISIBLE_DEVICES"], lines) == ("", [])
    assert not [variable for variable in found if variable.startswith("TORCH_")]


def test_gpus_of_a_machine_that_was_declared_without_are_named_as_unused() -> None:
    line = unused_gpus(job(), "master", "2 × NVIDIA H100", {})
    assert line.startswith("the run was declared without GPUs: training on the CPU, and 2 × NVIDIA H100 stay unused; ")
    assert not unused_gpus(job(gpus=2), "master", "2 × NVIDIA H100", {})
    assert not unused_gpus(job(), "ps", "2 × NVIDIA H100", {})
    assert not unused_gpus(job(), "master", "2 × NVIDIA H100", {"CUDA_VISIBLE_DEVICES": ""})  # somebody chose the CPU


@pytest.mark.parametrize(("google", "cores", "threads"), [(True, 8, "3"), (True, 2, "1"), (False, 8, "1")])
def test_parameter_server_has_all_cores_but_one_on_google_and_one_thread_here(
    google: bool, cores: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: cores)
    found, _ = process_environment(job(google=google, parameterServers=1), "ps-0", "ps", "127.0.0.1", {})
    assert found["OMP_NUM_THREADS"] == threads
