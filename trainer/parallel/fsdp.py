"""FSDP2: each process of one machine, one for each GPU, holds a part of the parameters and optimizer state.

A process owns some rows of every parameter, which are a contiguous range of the flat vector (model.flat). Its
checkpoints are parts like those of parameter servers, and restore onto these, onto replicas, or onto another number of
processes. Parameters are gathered block by block where they are needed; gradients are summed as they are made.
"""

import math
from dataclasses import replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import GPT2LMHeadModel

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.membership import Quorum
from trainer.contract.geometry import micro_batch_rows, piece_rows
from trainer.data.batches import Dealing
from trainer.model.flat import layout_of
from trainer.model.layout import Ranges
from trainer.model.loss import make_loss
from trainer.training.checkpoint import CheckpointShard, Vectors, order
from trainer.training.member_context import MemberContext
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class _Root(nn.Module):
    """The model and its loss as one module, so that the head's weight is there while the loss is computed with it."""

    def __init__(
        self, model: GPT2LMHeadModel, precision: torch.dtype | None, device: torch.device, masked: bool
    ) -> None:
        super().__init__()
        self.model, self._precision, self._device, self._masked = model, precision, device, masked

    def forward(
        self, inputs: Tensor, targets: Tensor, scale: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        loss = make_loss(
            self.model, self._precision, self._device, masked=self._masked
        )  # made here, from the parameters that are gathered now
        return loss(inputs, targets, scale, counted)


class Sharded:
    """One process's engine. All processes must call all methods alike, because most contain collectives.

    The processes never change, and an error in any of them ends all (trainer/cluster/processes.py).
    """

    writes = True  # the first process writes records and status

    def __init__(
        self,
        context: MemberContext,
        model: GPT2LMHeadModel,
        device: torch.device,
        precision: torch.dtype | None,
        announcement: Announcement,
    ) -> None:
        """Take `model` apart in place.

        Args:
            context: this process, which is one of context.processes.
            model: the same in all processes, and on `device`.
            device: this process's own.
            precision: the dtype that is computed in; None is fp32.
            announcement: what this trainer announces.
        """
        assert context.processes is not None
        mesh, hyper = context.processes.mesh, context.spec.hyperparameters
        self.progress, self.announcement = Progress.at_start(announcement.scaled), announcement
        self._model, self._hyper, self._device = model, hyper, device
        self._mesh, self._group = mesh, mesh.get_group()
        self._checkpoints, self._journal = context.checkpoints, context.journal
        self._saved = -1  # step of the newest checkpoint
        self._passes = 0  # forward passes since zero() or start()
        piece = piece_rows(hyper, mesh.size()) if model.training else None
        most = micro_batch_rows(hyper.sequence_length, hyper.micro_batch_size)
        self._passes_of_step = Dealing(hyper.batch_size, most, piece).passes(mesh.size())
        self.exported: GPT2LMHeadModel | None = None
        self.layout = layout_of(model)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._root = self._shard(precision, masked=context.spec.data.format == "pairs")
        sharded = dict(model.named_parameters())  # DTensors; later, while they are gathered, the model shows others
        self._whole = [(name, sharded[name]) for name, *_ in self.layout]
        self.ranges: Ranges = []  # of the flat vector, that this process owns
        self._mine: list[tuple[nn.Parameter, Tensor, bool]] = []  # the whole, a flat view of my rows, decayed
        for (name, start, _, decayed), (_, whole) in zip(self.layout, self._whole, strict=True):
            rows, row = shapes[name][0], math.prod(shapes[name][1:])
            most = -(-rows // mesh.size())  # as DTensor cuts
            first, last = (min(rows, most * i) for i in (mesh.get_local_rank(), mesh.get_local_rank() + 1))
            local = whole.detach().to_local().view(-1)
            assert len(local) == (last - first) * row
            if len(local):
                self.ranges.append((start + first * row, start + last * row))
                self._mine.append((whole, local, decayed))
        self._sizes = [len(local) for _, local, _ in self._mine]
        self._moments: Vectors = {}
        self._adamw = self._make_adamw() if hyper.optimizer == "adamw" else None

    def _shard(self, precision: torch.dtype | None, *, masked: bool) -> _Root:
        policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False)
        root = _Root(self._model, precision, self._device, masked)
        for block in self._model.transformer.h:
            fully_shard(block, mesh=self._mesh, mp_policy=policy)
        # What is left, the tied embeddings, is used at both ends of the forward pass and first in the backward pass.
        fully_shard(root, mesh=self._mesh, mp_policy=policy, reshard_after_forward=False)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the sum of all micro-batches, not the mean of the processes
                module.set_force_sum_reduction_for_comms(True)  # gloo knows nothing else
        return root

    def _make_adamw(self) -> torch.optim.AdamW:
        """Make AdamW on plain views of my rows, faster than DTensors. Its state is flat vectors, for checkpoints."""
        self._moments = {key: torch.zeros(sum(self._sizes), device=self._device) for key in ("moment1", "moment2")}
        groups = [
            {"params": [local for _, local, other in self._mine if other == decayed], "weight_decay": decay}
            for decayed, decay in ((True, self._hyper.weight_decay), (False, 0.0))
        ]
        betas = (self._hyper.beta1, self._hyper.beta2)
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=1e-8, fused=True)
        firsts, seconds = (torch.split(moment, self._sizes) for moment in self._moments.values())
        for (_, local, _), first, second in zip(self._mine, firsts, seconds, strict=True):
            step = torch.zeros((), device=self._device)
            adamw.state[local] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        return adamw

    # -- a step: what trainer/training/loop.py asks of an engine -------------------------------------------------------

    def prepare(self, quorum: Quorum) -> bool:
        """Do nothing: all processes started from the same checkpoint and took the same steps."""
        return True

    def start(self, quorum: Quorum) -> None:
        self._passes = 0

    def ready(self) -> None:
        """Do nothing: parameters are gathered as they are needed."""

    def zero(self) -> None:
        self._passes = 0
        for _, whole in self._whole:
            whole.grad = None

    def loss(
        self, inputs: Tensor, targets: Tensor, scale: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        """Return the summed cross-entropy in nats, like make_loss. Each process has rows of its own."""
        self._passes += 1
        result: Tensor = self._root(inputs, targets, scale, counted)
        return result

    def backward_begins(self) -> None:
        """Do nothing: gradients travel as they are made."""

    def backward_ends(self) -> None:
        """Compute empty passes until all processes have as many: each takes part in every pass."""
        self._even_out(self._passes_of_step)

    def forward_ends(self, passes: int) -> None:
        """Compute empty passes after an evaluation. passes: of the process that has most."""
        with torch.no_grad():
            self._even_out(passes)

    def _even_out(self, passes: int) -> None:
        nothing = torch.zeros((1, self._hyper.sequence_length), dtype=torch.int64, device=self._device)
        while self._passes < passes:
            loss = self.loss(nothing, nothing, torch.zeros((), device=self._device))  # so its gradient is zero
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, vote: Vote) -> Tally:
        """Sum the votes over all processes. Gradients were summed as they were made."""
        squares = [torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in self._gradients()]
        votes = replace(vote, squares=torch.stack(squares).sum().view(1)).to_tensor(self._device)
        dist.all_reduce(votes, group=self._group)
        return Vote.from_tensor(votes).tally()

    def _gradients(self) -> list[Tensor]:
        """Return the gradients of my rows as flat views, so that they can be scaled in place."""
        return [cast(DTensor, whole.grad).to_local().view(-1) for whole, _, _ in self._mine]

    @torch.no_grad()
    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        if decision.finite:
            gradients = self._gradients()
            torch._foreach_mul_(gradients, decision.factor)
            locals_ = [local for _, local, _ in self._mine]
            if self._adamw is None:
                torch._foreach_add_(locals_, gradients, alpha=-decision.rate)
            else:
                for local, gradient in zip(locals_, gradients, strict=True):
                    local.grad = gradient
                for group in self._adamw.param_groups:
                    group["lr"] = decision.rate
                self._adamw.step()
        self.progress.commit(decision, key, scaled)

    def abandon(self) -> None:
        """Never called: an error ends all processes."""

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """Write this process's part of this step's checkpoint, once.

        wait: wait for all parts. The first process then returns whether the checkpoint is whole.
        """
        step = self.progress.step
        if wait:
            self._checkpoints.wait()
        if self._saved != step:
            part = self._mesh.get_local_rank()
            before = self._journal.metrics.flush if part == 0 else lambda: None  # one writes for all
            shard = CheckpointShard(self._vectors(), self.layout, self.ranges, part, self._mesh.size())
            saving = self._checkpoints.save(shard, self.progress, attempt, before=before)
            self._saved = step if saving else self._saved
        if wait:
            self._checkpoints.wait()
            dist.barrier(self._group)
        return wait and self._mesh.get_local_rank() == 0 and self._checkpoints.whole(step, attempt)

    def _vectors(self) -> Vectors:
        return {"parameters": torch.cat([local for _, local, _ in self._mine]), **self._moments}

    def restore(self) -> None:
        """Take the newest checkpoint that is good for all processes, if there is one; else keep the seed's state."""
        skip: set[str] = set()
        while True:
            vectors = {key: torch.zeros(sum(self._sizes)) for key in ("parameters", *self._moments)}
            restored = self._checkpoints.restore(vectors, self.ranges, skip=skip, layout=self.layout)
            step, attempt = order(restored.name) if restored else (-1, 0)
            own_version = step << 32 | attempt
            bounds = torch.tensor([own_version, -own_version], device=self._device)
            dist.all_reduce(bounds, dist.ReduceOp.MIN, group=self._group)
            oldest, newest = int(bounds[0]), -int(bounds[1])
            if oldest == newest:
                break
            if restored is not None and own_version > oldest:  # it is damaged for another process
                skip.add(restored.name)
        if restored is not None:
            self._take(vectors, restored.progress)
            self._journal.log(f"restored the checkpoint of step {self.progress.step}")

    @torch.no_grad()
    def _take(self, vectors: Vectors, progress: Progress) -> None:
        for (_, local, _), values in zip(self._mine, torch.split(vectors["parameters"], self._sizes), strict=True):
            local.copy_(values)
        for key, moment in self._moments.items():
            moment.copy_(vectors[key])
        for state in self._adamw.state.values() if self._adamw else ():
            state["step"].fill_(progress.updates)
        self.progress, self._saved = progress, progress.step

    def finish(self, quorum: Quorum) -> bool:
        """Write the last checkpoint, and gather the whole model into the first process's `exported`."""
        self.save(quorum.attempt, leads=quorum.rank == 0, wait=True)
        self.exported = self._gather()
        return True

    @torch.no_grad()
    def _gather(self) -> GPT2LMHeadModel | None:
        """Return the whole model on the CPU in the first process, None in the others."""
        first, model = self._mesh.get_local_rank() == 0, None
        if first:
            with torch.device("meta"):
                model = GPT2LMHeadModel(self._model.config)
            model.to_empty(device="cpu")
            model.tie_weights()
        targets = dict(model.named_parameters()) if model else {}
        for name, whole in self._whole:
            full = whole.full_tensor()  # one at a time: the model may be larger than a GPU
            if first:
                targets[name].copy_(full)
        return model
