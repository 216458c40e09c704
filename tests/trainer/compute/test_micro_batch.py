"""The micro-batch that a trainer chooses by its GPU's memory, and models that do not fit."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.compute.micro_batch import fit_micro_batch
from trainer.contract.errors import InputError
from trainer.contract.geometry import MICRO_BATCH_TOKENS
from trainer.contract.options import SIZES
from trainer.contract.spec import JobSpec

GIB = 2**30


def rows(
    size: str, gigabytes: float | None, *, processes: int = 1, fsdp: bool = False, **hyper: Any
) -> tuple[int, list[str]]:
    """Return the sequences of a micro-batch in bf16, and what was logged."""
    layers, heads, width = SIZES[size]
    positions = max(1024, hyper.get("sequenceLength", 0))
    with torch.device("meta"):
        config = GPT2Config(vocab_size=50304, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads)
        model = GPT2LMHeadModel(config)
    spec = JobSpec.model_validate(
        {
            "run": "one",
            "model": {"size": size, "positions": positions},
            "data": {"path": "text.txt"},
            "fingerprint": "f",
            "code": "c",
            "hyperparameters": {"batchSize": 512, **hyper},
            "cluster": {"processes": processes, "gpus": processes},
            "parallel": {"parallelism": "fsdp" if fsdp else "replicas"},
        }
    )
    lines: list[str] = []
    memory = None if gigabytes is None else round(gigabytes * GIB)
    return fit_micro_batch(spec, model, memory, half=True, log=lines.append).rows, lines


def test_micro_batch_on_a_gpu_is_as_large_as_fits_and_logged() -> None:
    large, (line,) = rows("gpt2", 79)
    assert (large, line) == (64, "micro-batches of 64 sequences, which take about 30 of 79 GiB")
    assert rows("gpt2-xl", 39.5)[0] == 2


def test_micro_batch_on_a_cpu_has_no_more_tokens_than_speed_needs() -> None:
    assert rows("gpt2-xl", None) == (MICRO_BATCH_TOKENS // 1024, [])


def test_micro_batch_that_is_given_is_kept_even_if_it_hardly_fits() -> None:
    assert rows("gpt2", 79, microBatchSize=100)[0] == 100


@pytest.mark.parametrize(
    ("size", "gigabytes", "changed", "remedy"),
    [
        ("gpt2", 22, {"microBatchSize": 100}, "use microBatchSize 41, or leave it out"),
        ("gpt2-medium", 14.6, {"dropout": 0.1}, "use microBatchSize 4"),
        ("gpt2-medium", 22, {"sequenceLength": 16384}, "use recompute: block"),
        ("gpt2-xl", 22, {"processes": 2}, "use parallel.parallelism: fsdp, or a GPU with more memory"),
        ("gpt2-xl", 22, {}, "use a GPU with more memory, or a smaller model"),
    ],
)
def test_model_that_does_not_fit_is_an_error_with_the_cheapest_change(
    size: str, gigabytes: float, changed: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        rows(size, gigabytes, **changed)
    message = str(caught.value)
    assert message.startswith("hyperparameters: ")
    assert message.endswith(f" GiB of the GPU, which has {gigabytes} GiB; {remedy}")


def test_fsdp_fits_what_one_gpu_does_not_hold() -> None:
    assert rows("gpt2-xl", 22, processes=8, fsdp=True)[0] > 0
