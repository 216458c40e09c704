"""Compute the loss together with the gradient of the model's head."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract import geometry
from trainer.model.compilation import Compiler


class Loss(Protocol):
    """The summed cross-entropy of a micro-batch."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, scale: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        """Return the sum in nats, a scalar.

        The loss is a sum and not a mean, so that the losses of micro-batches can be added, whichever trainers computed
        them.

        Args:
            inputs: integers of shape (rows, tokens).
            targets: integers of the same shape, negative where they do not count (trainer.data.batches.IGNORED).
            scale: a scalar on the same device that multiplies the gradient and not the loss; None is 1.
            counted: the positions of the targets that count, in the flattened targets; None if all of them do. The
                head computes these alone.
        """


def counted_positions(targets: Tensor) -> Tensor:
    """Return the positions of the targets that count, for a Loss. On a GPU this waits for the GPU."""
    return (targets.flatten() >= 0).nonzero().squeeze(1)


CrossEntropy = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed loss in fp32, and its gradient for the logits in their dtype, multiplied by `scale`.

    Args:
        logits: of shape (tokens, vocabulary). They may be overwritten.
        targets: int64 of shape (tokens, 1).
        scale: a scalar; None is 1.
    """
    logs = F.log_softmax(logits, dim=1, dtype=torch.float32)
    log_target = logs.gather(1, targets)
    target_gradient = log_target.exp() - 1.0  # d loss / d logits = softmax - one-hot
    if scale is not None:  # before the gradient is rounded: fp16 would lose small values
        logs, target_gradient = logs.add_(scale.log()), target_gradient * scale
    gradient = logs.exp_() if logits.dtype == torch.float32 else torch.exp(logs, out=logits)
    return -log_target.sum(), gradient.scatter_(1, targets, target_gradient.to(gradient.dtype))


class _HeadLoss(torch.autograd.Function):
    """The model's head and its cross-entropy as one function, computed for LOGIT_CHUNK tokens at a time.

    The forward pass computes the gradient together with the loss. So only one chunk's logits exist at a time, and the
    backward pass needs none: those of 16 x 1024 tokens of GPT-2 would be 3.3 GB. On CPU this also saves the two slowest
    operations after the matrix products (docs/performance.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor | None,
        dtype: torch.dtype,
        entropy: CrossEntropy,
    ) -> Tensor:
        differentiate, trained = ctx.needs_input_grad[:2]  # with LoRA the weight is not trained
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if differentiate else None
        weight_gradient: Tensor | None = None
        # Only fp16 needs the scale early. Elsewhere it multiplies the small gradients at the end.
        early, late = (scale, None) if dtype == torch.float16 else (None, scale)
        narrow = weight.to(dtype)
        for start in range(0, len(hidden), geometry.LOGIT_CHUNK):
            tokens = slice(start, start + geometry.LOGIT_CHUNK)
            part = hidden[tokens].to(dtype)
            logits, target = F.linear(part, narrow), targets[tokens]
            if hidden_gradient is None:
                total += F.cross_entropy(logits.float(), target, reduction="sum")
                continue
            loss, gradient = entropy(logits, target.unsqueeze(1), early)
            total += loss
            hidden_gradient[tokens] = gradient @ narrow
            if trained:  # added up in fp32, whatever the products are computed in
                product = (gradient.T @ part).to(weight.dtype)
                weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
        if differentiate:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
            ctx.scale = late
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        factor = outputs[0] if ctx.scale is None else outputs[0] * ctx.scale
        if weight_gradient is not None:
            weight_gradient = weight_gradient * factor
        return hidden_gradient * factor, weight_gradient, None, None, None, None


def make_loss(
    model: GPT2LMHeadModel,
    autocast: torch.dtype | None,
    device: torch.device,
    compiler: Compiler | None = None,
) -> Loss:
    """Return the function that computes the model's loss.

    Args:
        model: the model.
        autocast: the dtype of the forward pass, or None for fp32.
        device: the model's device.
        compiler: compiles the head. The model's blocks are compiled by it already, or not at all.
    """
    dtype = autocast or torch.float32
    entropy: CrossEntropy = compiler.function(cross_entropy) if compiler else cross_entropy

    def loss(inputs: Tensor, targets: Tensor, scale: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
            hidden = model.transformer(inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        flat_targets = targets.flatten().long()
        if counted is not None:  # skip ignored targets before the head, which is a large part of the work
            hidden, flat_targets = hidden[counted], flat_targets[counted]
        # The weight as it is now: with FSDP it is another one while it is gathered.
        result: Tensor = _HeadLoss.apply(hidden, model.lm_head.weight, flat_targets, scale, dtype, entropy)
        return result

    return loss if compiler is None else compiler.within(loss)
