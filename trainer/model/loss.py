"""Compute the loss together with the gradient of the model's head."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract import geometry
from trainer.contract.errors import first_line

Loss = Callable[[Tensor, Tensor, float], Tensor]


class _HeadLoss(torch.autograd.Function):
    """The model's head and its cross-entropy as one function, computed for LOGIT_CHUNK tokens at a time.

    The forward pass computes the gradient together with the loss. So only one chunk's logits exist at a time, and the
    backward pass needs none: those of 16 x 1024 tokens of GPT-2 would be 3.3 GB. On CPU this also saves the two slowest
    operations after the matrix products (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
        differentiate, trained = ctx.needs_input_grad[:2]  # with LoRA the weight is not trained
        total = torch.zeros((), device=hidden.device)
        hidden_parts, weight_gradient, chunk = [], None, geometry.LOGIT_CHUNK
        for part, target in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            target = target.unsqueeze(1)
            logs = F.log_softmax(F.linear(part, weight).float(), dim=1)
            total = total - logs.gather(1, target).sum()
            if differentiate:  # d loss / d logits = softmax - one-hot
                gradient = logs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=logs.dtype))
                if scale != 1.0:
                    gradient = gradient.mul_(scale)
                hidden_parts.append((gradient @ weight).to(hidden.dtype))
                if trained:
                    product = (gradient.T @ part).to(weight.dtype)
                    weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
        if differentiate:
            hidden_gradient = hidden_parts[0] if len(hidden_parts) == 1 else torch.cat(hidden_parts)
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if weight_gradient is not None:
            weight_gradient = weight_gradient * outputs[0]
        return hidden_gradient * outputs[0], weight_gradient, None, None


def make_loss(
    model: GPT2LMHeadModel, autocast: torch.dtype | None, device: torch.device, *, masked: bool = False
) -> Loss:
    """Return a function loss(inputs, targets, scale) that computes the summed cross-entropy in nats, a scalar.

    `inputs` and `targets` are int64 of shape (rows, tokens). `scale` multiplies the gradient and not the loss. The loss
    is a sum and not a mean, so that the losses of micro-batches can be added, whichever trainers computed them.

    Args:
        model: the model.
        autocast: the dtype of the forward pass, or None for fp32.
        device: the model's device.
        masked: whether some targets are negative and do not count (trainer.data.batches.IGNORED).
    """
    transformer, weight = model.transformer, model.lm_head.weight

    def loss(inputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
            hidden = transformer(inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            flat_targets = targets.flatten()
            if masked:  # skip ignored targets before the head, which is a large part of the work
                counted = flat_targets >= 0
                hidden, flat_targets = hidden[counted], flat_targets[counted]
            result: Tensor = _HeadLoss.apply(hidden, weight, flat_targets, scale)
            return result

    return loss


def compiled(loss: Loss, log: Callable[[str], None], *, dynamic: bool = False) -> Loss:
    """Return `loss` compiled by torch.compile. If compiling fails, log it once and continue without it.

    `dynamic` says whether the shapes of its tensors vary from call to call.
    """
    chosen: Loss | None = None

    def call(inputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        nonlocal chosen
        if chosen is None:
            try:
                fast: Loss = torch.compile(loss, dynamic=dynamic)
                result = fast(inputs, targets, scale)
                chosen = fast
                return result
            except Exception as error:  # any compiler failure: a missing g++, an unsupported GPU, a bug
                log(f"torch.compile failed ({first_line(error)}); continuing without it")
                chosen = loss
        return chosen(inputs, targets, scale)

    return call
