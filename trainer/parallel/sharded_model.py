"""FSDP2: the processes of one machine share the parameters too, and each has some rows of every one.

These rows are the process's lane of the flat vector (model.flat). Blocks are gathered where they are needed, and their
gradients are reduced to the rows of each, all inside of the forward and the backward pass: so all processes compute the
same number of passes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.tensor import DTensor
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from trainer.cluster.processes import Processes
from trainer.model.flat import layout_of
from trainer.model.layout import Layout, total
from trainer.model.loss import Loss
from trainer.parallel.ownership import Lane, cut_buckets
from trainer.parallel.readiness import Readiness

EMPTY_ROWS = 2  # of a pass that only takes part: a single row would be compiled on its own


class _ReduceInOrder(ReduceScatter):
    """The reduce-scatter of a CPU, which is several times as fast as gloo's own."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *_: object, **__: object) -> None:
        self._processes.reduce(input_tensor, output_tensor)


class _Root(nn.Module):
    """The model and its loss as one module, so that the head's weight is gathered while the loss is computed."""

    def __init__(self, model: GPT2LMHeadModel, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, inputs: Tensor, targets: Tensor, scale: Tensor | None, counted: Tensor | None) -> Tensor:
        return self._loss(inputs, targets, scale, counted)


@dataclass(frozen=True)
class _Rows:
    """A process's rows of one trained parameter."""

    start: int  # in the flat vector
    stop: int
    place: int  # of the first one in the lane's own vector

    @property
    def elements(self) -> int:
        return self.stop - self.start


class ShardedModel:
    """One process's shard (trainer.parallel.shard.Shard), which FSDP2 reduces and gathers."""

    whole = waits = False

    def __init__(
        self,
        model: GPT2LMHeadModel,
        loss: Loss,
        processes: Processes,
        precision: torch.dtype | None,
        new: Callable[[], GPT2LMHeadModel],
        *,
        sequence_length: int,
        accumulates: bool,
    ) -> None:
        """Take `model` apart in place. Its parts move to the device one at a time, and only this process's rows stay.

        Args:
            model: the same in all processes, and on the CPU; recomputing and compiling are set up already.
            loss: of the model.
            processes: of this machine, at least two.
            precision: the dtype that is computed in; None is fp32.
            new: makes such a model again on the CPU.
            sequence_length: of the passes that only take part.
            accumulates: whether a step's micro-batches add to a whole fp32 gradient on each GPU, which is reduced once,
                or each is reduced on its own (contract.memory.keeps_whole_gradients). All processes must say the same.
        """
        self.model, self._new, self._length, self._accumulates = model, new, sequence_length, accumulates
        self.device = torch.device(processes.mesh.device_type)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.layout: Layout = layout_of(model)
        self.total = self.length = total(self.layout)
        self.buckets = cut_buckets(self.total, processes.size)
        self._rank = processes.rank
        self._rows, most = _own_rows(model, self.layout, processes.rank, processes.size)
        self.lane = Lane(tuple((rows.start, rows.stop) for rows in self._rows.values() if rows.elements))
        # FSDP reads as many rows from each process, also from one that has fewer. So there is some room after the last.
        self._storage = torch.zeros(self.lane.size + most, device=self.device)
        self.parameters = self._storage[: self.lane.size]
        self.gradients = torch.zeros(self.lane.size, device=self.device)
        self._shares: list[tuple[nn.Parameter, DTensor]] = []  # each trained parameter, and its gradient
        self._root = self._shard(_Root(model, loss), processes, precision)
        self.readiness = Readiness(self.buckets, self.device)
        self.readiness.hook_gradients(self)
        self._passes_of_step = self._passes = self._evaluated = 0
        self._unreduced = False  # whether a backward pass may have left gradients that are not reduced

    # -- taking the model apart ------------------------------------------------------------------------------------

    def _shard(self, root: _Root, processes: Processes, precision: torch.dtype | None) -> FSDPModule:
        """Shard the blocks, and then what is left: the embeddings, of which one is the head's weight."""
        # Exactly what autocast casts for replicas is gathered in low precision. The rest stays fp32: embeddings, and
        # with them the sum that goes through all blocks, norms, and LoRA's own matrices.
        cast = {id(p) for m in root.modules() if isinstance(m, Conv1D) for p in m.parameters(recurse=False)}
        policy = MixedPrecisionPolicy(
            param_dtype=precision,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
            param_dtype_override_fn=lambda parameter: None if id(parameter) in cast else parameter.dtype,
        )
        mesh = processes.mesh
        *blocks, last = self.model.transformer.h
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
            self._adopt(block)
        # The last norm goes with the last block, as its gradient is the first that is final. What the backward pass
        # needs first stays gathered.
        fully_shard([last, self.model.transformer.ln_f], mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self._adopt(last)
        fully_shard(root, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self._adopt(root)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the sum of all micro-batches, not the mean of the processes
                module.set_force_sum_reduction_for_comms(True)  # a CPU knows nothing else
                if self.device.type == "cpu":
                    module.set_custom_reduce_scatter(_ReduceInOrder(processes))
        assert isinstance(root, FSDPModule)
        return root

    @torch.no_grad()
    def _adopt(self, module: nn.Module) -> None:
        """Move the trained parameters of FSDP's module into this process's own vectors.

        FSDP gathers from `_sharded_param_data`, which has as many elements on every process: a process with fewer rows
        shows what follows them, which nobody reads. It adds a reduced gradient to the parameter's `grad`, if there is
        one. Both survive all passes; tests/trainer/parallel/test_sharded_model.py holds it to that.
        """
        assert isinstance(module, FSDPModule)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in module._get_fsdp_state()._fsdp_param_groups:
            for share in group.fsdp_params:
                rows = self._rows.get(names[id(share.sharded_param)])
                if rows is not None:
                    self._place(share, rows)

    def _place(self, share: FSDPParam, rows: _Rows) -> None:
        sharded = share.sharded_param
        local = sharded._local_tensor  # type: ignore[attr-defined] # a DTensor
        assert local.numel() == rows.elements
        own = slice(rows.place, rows.place + rows.elements)
        view = self.parameters[own].view(local.shape)
        view.copy_(local)
        sharded._local_tensor = view  # type: ignore[attr-defined]
        share._sharded_param_data = self._storage[rows.place :][: share.padded_sharded_param_size.numel()]
        gradient = share.to_sharded_dtensor(self.gradients[own].view(local.shape))
        sharded.grad = gradient
        self._shares.append((sharded, gradient))

    # -- a step ----------------------------------------------------------------------------------------------------

    def zero(self, passes: int) -> None:
        """Set the gradients to zero for a step in which the busiest process of the machine computes so many passes."""
        if self._unreduced:  # of a step that was given up
            self._root.reset_iter_state()
            for sharded, gradient in self._shares:
                sharded.grad = gradient
            self._unreduced = False
        self.gradients.zero_()
        self._passes_of_step, self._passes, self._evaluated = passes, 0, 0

    @property
    def loss(self) -> Loss:
        return self._loss

    def _loss(
        self, inputs: Tensor, targets: Tensor, scale: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        if not torch.is_grad_enabled():
            self._evaluated += 1
            result = self._forward(inputs, targets, scale, counted)
            self._reshard()  # else it would keep these values when the parameters have changed
            return result
        self._passes += 1
        self._unreduced = True
        self._root.set_requires_gradient_sync(self._is_last or not self._accumulates)
        return self._forward(inputs, targets, scale, counted)

    def _forward(self, *arguments: Tensor | None) -> Tensor:
        assert isinstance(self._root, nn.Module)
        result: Tensor = self._root(*arguments)
        return result

    @property
    def _is_last(self) -> bool:
        """Whether the newest pass is the step's last, on all processes."""
        return self._passes >= self._passes_of_step

    def backward_begins(self) -> None:
        """Let gradients that become final travel: this process's last backward pass, or its first empty one, begins."""
        if self._is_last:
            self.readiness.watch()
        else:
            self.readiness.expect()

    def backward_ends(self, passes: int) -> None:
        """Compute empty passes until all processes have as many. passes: as zero() was told."""
        while self._passes < passes:
            loss = self._empty()
            if self._is_last:
                self.readiness.watch()
            loss.backward()  # type: ignore[no-untyped-call]
        self._unreduced = False
        self.readiness.finish()

    @torch.no_grad()
    def forward_ends(self, passes: int) -> None:
        """Compute empty passes after an evaluation. passes: of the busiest process."""
        while self._evaluated < passes:
            self._empty()
        self._evaluated = 0

    def _empty(self) -> Tensor:
        """Compute a loss of which no target counts, so that all gradients are zero."""
        rows = torch.zeros((EMPTY_ROWS, self._length), dtype=torch.int64, device=self.device)
        return self._loss(rows, rows, None, rows.new_zeros(0))

    def reduce(self, bucket: int) -> None:
        """Wait until FSDP has reduced a bucket."""
        self.readiness.until_final(bucket)

    def gather(self, bucket: int) -> None:
        """Do nothing: FSDP gathers what it needs."""

    def _reshard(self) -> None:
        for module in (self._root, self.model.transformer.h[-1]):
            assert isinstance(module, FSDPModule)
            module.reshard()

    # -- the whole model -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def take(self, model: GPT2LMHeadModel) -> None:
        """Take over the parameters of a model on the CPU."""
        for name, start, _, _ in self.layout:
            rows = self._rows[name]
            values = model.get_parameter(name).view(-1)[rows.start - start : rows.stop - start]
            self.parameters[rows.place : rows.place + rows.elements].copy_(values)

    @torch.no_grad()
    def exported(self) -> GPT2LMHeadModel | None:
        """Return the whole model on the CPU, in the first process. All processes must call this together."""
        model = self._new() if self._rank == 0 else None
        sharded = dict(self.model.named_parameters())
        for name, *_ in self.layout:
            full = sharded[name].full_tensor()  # one at a time: all may be larger than a GPU
            if model is not None:
                model.get_parameter(name).copy_(full)
        return model


def _own_rows(model: GPT2LMHeadModel, layout: Layout, rank: int, processes: int) -> tuple[dict[str, _Rows], int]:
    """Return a process's rows of each trained parameter, and the most elements that a process has of one.

    The rows of a parameter are cut as torch.chunk does: all processes have as many, but for the last ones with rows.
    """
    own, place, most = {}, 0, 0
    for name, start, size, _ in layout:
        count = model.get_parameter(name).shape[0]
        each, row = math.ceil(count / processes), size // count
        first, last = (min(count, each * edge) for edge in (rank, rank + 1))
        own[name] = _Rows(start + first * row, start + last * row, place)
        place, most = place + (last - first) * row, max(most, each * row)
    return own, most
