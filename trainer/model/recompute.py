"""Save memory by computing activations again in the backward pass instead of keeping them (Chen et al. 2016)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block


def apply(model: GPT2LMHeadModel, mode: Literal["none", "attention", "block"]) -> None:
    """Let each transformer block of `model` recompute activations, in place. The gradients stay the same bits.

    Only passes with gradients change. Call it before the blocks are compiled or sharded: the modules keep their hooks,
    which run once a pass.

    Args:
        model: the model, with or without LoRA.
        mode: `none` keeps all activations. `attention` keeps none of a block's first norm and attention. `block` keeps
            a block's input alone.
    """
    if mode == "none":
        return
    for block in model.transformer.h:
        block.forward = _recompute_block(block) if mode == "block" else _recompute_attention(block)


def _recompute_block(block: GPT2Block) -> Callable[..., Tensor]:
    whole: Callable[..., Tensor] = block.forward

    def forward(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return whole(hidden, *arguments, **options)
        return _again(block, whole, hidden, *arguments, **options)

    return forward


def _recompute_attention(block: GPT2Block) -> Callable[..., Tensor]:
    whole: Callable[..., Tensor] = block.forward

    def attend(hidden: Tensor) -> Tensor:
        result: Tensor = block.attn(block.ln_1(hidden))[0]
        return result

    def forward(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return whole(hidden, *arguments, **options)
        # GPT2Block.forward without a cache and a mask, which training never has.
        hidden = _again(block, attend, hidden) + hidden
        result: Tensor = hidden + block.mlp(block.ln_2(hidden))
        return result

    return forward


def _again(block: GPT2Block, function: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """Call `function` and keep its arguments alone. Without dropout there is no state of a generator to keep."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=block.training, **options)
    return result
