"""Keep a model's parameters and gradients in one flat vector each."""

import torch
from transformers import GPT2LMHeadModel

from trainer.model.layout import Layout, padded, total


def layout_of(model: GPT2LMHeadModel) -> Layout:
    """Return the layout of a flat vector of all trained parameters. Matrices and embeddings get weight decay."""
    layout, end = [], 0
    for name, parameter in reversed(list(model.named_parameters())):  # tied weights appear once
        if not parameter.requires_grad:
            continue
        layout.append((name, end, parameter.numel(), parameter.dim() >= 2))
        end += padded(parameter.numel())
    return layout


class Flat:
    """All trained parameters as views of one vector, and their gradients as views of another.

    The order is the reverse of the forward pass, so that the backward pass completes gradients from the front. Each
    tensor starts at a multiple of 64 elements. Members exchange this vector, checkpoints contain it, and parameter
    servers divide it into shards.

    Args:
        model: the model, whose parameters become views.
        device: the device of both vectors, which are fp32.
        length: of both vectors in elements, if they are longer than the layout.
    """

    def __init__(self, model: GPT2LMHeadModel, device: torch.device, length: int | None = None) -> None:
        self.model = model
        self.layout = layout_of(model)
        parameters = dict(model.named_parameters())
        self.parameters = torch.zeros(length or total(self.layout), device=device)
        self.gradients = torch.zeros_like(self.parameters)
        for name, start, size, _ in self.layout:
            parameter = parameters[name]
            shape = parameter.shape
            view = self.parameters[start : start + size].view(shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradients[start : start + size].view(shape)
