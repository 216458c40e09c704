"""The arithmetic of a run's size and speed, compared with real models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.contract.geometry import MICRO_BATCH_TOKENS, PEAKS, Dimensions, padded_vocabulary, piece_rows, share
from trainer.contract.options import Hyperparameters
from trainer.model import device as device_module
from trainer.model.device import peak_speed


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 200),
)
def test_parameter_count_of_dimensions_equals_that_of_the_real_model(
    layers: int, heads: int, head_width: int, positions: int, tokens: int
) -> None:
    size = Dimensions(layers, heads * head_width, positions, padded_vocabulary(tokens))
    assert 0 <= size.vocabulary - tokens < 64
    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=positions, n_embd=size.width, n_layer=layers, n_head=heads
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters


@given(st.integers(1, 600), st.sampled_from([8, 1000, 1024, 20000]), st.integers(1, 1100), st.integers(0, 9))
def test_share_of_the_busiest_process_is_that_of_rows_dealt_one_by_one(
    batch: int, length: int, processes: int, most: int
) -> None:
    found = share(Hyperparameters(batch_size=batch, sequence_length=length, micro_batch_size=most or None), processes)
    busiest = len(range(0, batch, processes))  # rows 0, N, 2N, ...
    assert (found.sequences, found.tokens) == (busiest, busiest * length)
    assert found.rows <= (most or max(1, MICRO_BATCH_TOKENS // length))
    assert found.rows * (found.passes - 1) < busiest <= found.rows * found.passes


def test_recomputing_a_block_costs_at_most_a_forward_pass() -> None:
    size = Dimensions(12, 768, 1024, 50304)
    none, attention, block = (size.recomputed_flops_a_token(mode, 1024) for mode in ("none", "attention", "block"))
    assert 0 == none < attention < block < size.flops_a_token(1024) / 3


@pytest.mark.parametrize("processes", [11, 32, 100, 1000])
def test_share_with_one_process_missing_grows_by_its_part_and_one_row(processes: int) -> None:
    hyper = Hyperparameters(batch_size=4 * processes, micro_batch_size=2)
    all_there, one_missing = share(hyper, processes).sequences, share(hyper, processes - 1).sequences
    assert one_missing <= all_there * processes / (processes - 1) + 1


@given(st.integers(1, 600), st.integers(1, 40), st.integers(0, 9))
def test_pieces_with_dropout_are_a_quarter_of_a_process_at_most(batch: int, processes: int, most: int) -> None:
    hyper = Hyperparameters(batch_size=batch, dropout=0.1, micro_batch_size=most or None)
    found, rows = share(hyper, processes), piece_rows(hyper, processes)
    assert found.rows == rows <= max(1, -(-batch // processes) / 4)
    pieces = -(-batch // rows)
    assert found.passes == len(range(0, pieces, processes))
    assert batch / processes <= found.sequences <= min(batch, rows * found.passes)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("Tesla V100-PCIE-16GB", "V100 PCIE"),
        ("Tesla T4", "T4"),
        ("NVIDIA P4", None),
    ],
)
def test_peak_speed_of_a_named_gpu_is_its_peak_over_the_flops_of_a_token(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: str | None
) -> None:
    monkeypatch.setattr(device_module.torch.cuda, "get_device_name", lambda _: name)
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=8, n_layer=2, n_head=2))
    found = peak_speed(torch.device("cuda"), torch.bfloat16, model, 16)
    flops = Dimensions(2, 8, 32, 64).flops_a_token(16)
    assert found == (PEAKS[peak].half * 1e12 / flops if peak else None)
