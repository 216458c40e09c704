"""Choose the device and precision that this machine trains with, and estimate the device's peak speed."""

from typing import TYPE_CHECKING

import torch

from trainer.contract.errors import InputError
from trainer.contract.geometry import PEAKS, flops_a_token, peak_name

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


BF16 = (8, 0)  # the compute capability from which GPUs have it


def pick(precision: str, local_rank: int = 0) -> tuple[torch.device, torch.dtype | None]:
    """Return this process's device, which becomes CUDA's current one, and the dtype for autocast, None for fp32.

    `auto` means bf16 from compute capability 8.0, fp16 on 7.x, else fp32. On a GPU, fp32 means TF32 where it has that.

    Raises:
        InputError: for fp16 without a GPU, and for bf16 on a GPU that only emulates it.
    """
    device, capability = torch.device("cpu"), (0, 0)
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        capability = torch.cuda.get_device_capability(device)
    if precision == "auto":
        precision = "bf16" if capability >= BF16 else "fp16" if capability >= (7, 0) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("hyperparameters.precision: fp16 needs a GPU; use fp32, bf16 or auto")
    if precision == "bf16" and device.type == "cuda" and capability < BF16:
        name = torch.cuda.get_device_name(device)
        raise InputError(
            f"hyperparameters.precision: found bf16, which a {name} emulates slowly; use fp16, fp32 or auto"
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def peak_speed(
    device: torch.device, precision: torch.dtype | None, model: "GPT2LMHeadModel", sequence_length: int
) -> float | None:
    """Return the tokens per second that the device could train at its peak, or None if its peak is not known."""
    if device.type != "cuda":
        return None
    name = peak_name(torch.cuda.get_device_name(device))
    if name is None:
        return None
    parameters = sum(p.numel() for p in model.parameters()) - model.transformer.wpe.weight.numel()
    flops = flops_a_token(parameters, model.config.n_layer, model.config.n_embd, sequence_length)
    peak = PEAKS[name]
    return float((peak.half if precision else peak.single) * 1e12 / flops)
