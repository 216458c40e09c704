"""AdamW or plain SGD over the flat vectors of model.Flat, the learning-rate schedule, and the global norm."""

import math

import torch
from torch import Tensor

from trainer.model import Flat
from trainer.spec import Hyperparameters

NORM_BLOCK = 65536  # elements


def learning_rate(hyper: Hyperparameters, step: int) -> float:
    """The rate of the update after `step` updates are done (the first has step 0): linear warm-up, then cosine."""
    if step < hyper.warmup_steps:
        return hyper.learning_rate * (step + 1) / hyper.warmup_steps
    if hyper.schedule == "constant":
        return hyper.learning_rate
    done = (step - hyper.warmup_steps) / max(1, hyper.steps - hyper.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return hyper.learning_rate * (hyper.final_fraction + (1 - hyper.final_fraction) * cosine)


def norm(vector: Tensor) -> float:
    """The Euclidean norm, summed in float64 over fixed blocks in index order, so that it does not depend on shards."""
    whole = len(vector) // NORM_BLOCK * NORM_BLOCK
    squares = 0.0
    if whole:
        blocks = torch.linalg.vector_norm(vector[:whole].view(-1, NORM_BLOCK), dim=1, dtype=torch.float64)
        squares = float((blocks * blocks).sum())
    if whole < len(vector):
        squares += float(torch.linalg.vector_norm(vector[whole:], dtype=torch.float64)) ** 2
    return math.sqrt(squares) if math.isfinite(squares) else math.nan


class Optimizer:
    """`update` takes one step on flat.parameters with flat.gradients. Its state is flat vectors too."""

    def __init__(self, flat: Flat, hyper: Hyperparameters) -> None:
        self._flat, self._adamw = flat, None
        self.vectors: list[Tensor] = []  # AdamW: first and second moment, laid out like the parameters; SGD: none
        if hyper.optimizer == "sgd":
            return
        self.vectors = [torch.zeros_like(flat.parameters), torch.zeros_like(flat.parameters)]
        groups = [
            {"params": flat.decayed, "weight_decay": hyper.weight_decay},
            {"params": flat.undecayed, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=(hyper.beta1, hyper.beta2), eps=1e-8, fused=True)
        places = {p.data_ptr(): p for p in (*flat.decayed, *flat.undecayed)}
        for value, first, second in zip(
            flat.views(flat.parameters), *(flat.views(v) for v in self.vectors), strict=True
        ):
            parameter = places[value.data_ptr()]
            self._adamw.state[parameter] = {
                "step": torch.zeros((), device=value.device),
                "exp_avg": first.view(parameter.shape),
                "exp_avg_sq": second.view(parameter.shape),
            }

    @torch.no_grad()
    def update(self, rate: float) -> None:
        if self._adamw is None:
            self._flat.parameters.add_(self._flat.gradients, alpha=-rate)
            return
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()

    @property
    def updates(self) -> int:
        """Updates done: AdamW's bias correction depends on it."""
        return int(next(iter(self._adamw.state.values()))["step"]) if self._adamw else 0

    @updates.setter
    def updates(self, value: int) -> None:
        for state in self._adamw.state.values() if self._adamw else ():
            state["step"].fill_(value)
