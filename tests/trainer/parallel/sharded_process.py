"""The processes of test_sharded_model.py: `python -m tests.trainer.parallel.sharded_process FOLDER SIZE`.

The first one starts the others, as in a run. Each computes every case with its shard of a model, and the same alone
with the whole model. A case's name is that of a function here; what a process finds is written to FOLDER/RANK.json.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GPT2LMHeadModel

from trainer.cluster.processes import Processes
from trainer.compute.process import die_with_parent
from trainer.contract.options import Lora, Model
from trainer.data.tokenizer import from_bytes
from trainer.model import lora, recompute
from trainer.model.compilation import Compiler
from trainer.model.flat import Flat
from trainer.model.gpt2 import build
from trainer.model.loss import Loss, counted_positions, make_loss
from trainer.parallel.sharded_model import ShardedModel

CPU, LENGTH = torch.device("cpu"), 16
SCALE = torch.tensor(4.0)
Rows = tuple[Tensor, Tensor, Tensor | None]


def new_model(width: int = 23, layers: int = 3) -> GPT2LMHeadModel:
    """Return a model of 17 positions. Nothing divides by two, and some tensors are smaller than the alignment."""
    return build(Model(layers=layers, heads=1, width=width, positions=17), from_bytes(), 0.0, seed=1).eval()


def rows(number: int, *, pairs: bool = False) -> Rows:
    """Return a micro-batch of one to three rows."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 257, (2 + number % 2, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if not pairs:
        return inputs, targets, None
    targets = targets.masked_fill(targets % 3 == 0, -100)
    return inputs, targets, counted_positions(targets)


class Case:
    """A sharded model beside the whole one."""

    def __init__(
        self,
        processes: Processes,
        new: Callable[[], GPT2LMHeadModel] = new_model,
        precision: torch.dtype | None = None,
        *,
        accumulates: bool = True,
        mode: Any = "none",
        compiler: Compiler | None = None,
        pairs: bool = False,
    ) -> None:
        self.processes, self.pairs = processes, pairs
        self.flat = Flat(new(), CPU)
        self.alone = make_loss(self.flat.model, precision, CPU)
        model = new()
        recompute.apply(model, mode)
        if compiler is not None:
            compiler.blocks(model)
        loss = make_loss(model, precision, CPU, compiler)
        self.sharded = ShardedModel(
            model, loss, processes, precision, new, sequence_length=LENGTH, accumulates=accumulates
        )  # fmt: skip

    def of_lane(self, vector: Tensor) -> Tensor:
        return torch.cat([vector[start:stop] for start, stop in self.sharded.lane.ranges])

    def step(self, passes: int = 3) -> dict[str, float]:
        """Take a step of some micro-batches, of which each process has another number."""
        rank, size, sharded = self.processes.rank, self.processes.size, self.sharded
        own = [number for number in range(passes) if number % size == rank]
        most = -(-passes // size)
        sharded.zero(most)
        summed = torch.zeros(())
        for number in own:
            inputs, targets, counted = rows(number, pairs=self.pairs)
            loss = sharded.loss(inputs, targets, SCALE, counted)
            if number == own[-1]:
                sharded.backward_begins()
            loss.backward()  # type: ignore[no-untyped-call]
            summed += loss.detach()
        if not own:
            sharded.backward_begins()
        sharded.backward_ends(most)
        for bucket in range(len(sharded.buckets)):
            sharded.reduce(bucket)
        self.processes.sum(summed)
        # The same alone.
        self.flat.gradients.zero_()
        total = torch.zeros(())
        for number in range(passes):
            inputs, targets, counted = rows(number, pairs=self.pairs)
            loss = self.alone(inputs, targets, SCALE, counted)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        wanted = self.of_lane(self.flat.gradients)
        return {
            "loss": float((summed - total).abs() / total),
            "gradient": float((sharded.gradients - wanted).abs().max() / self.flat.gradients.abs().max()),
        }

    @torch.no_grad()
    def update(self) -> None:
        for vector, gradient in (
            (self.sharded.parameters, self.sharded.gradients),
            (self.flat.parameters, self.flat.gradients),
        ):
            vector.add_(gradient, alpha=-1e-4)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Evaluate three micro-batches; return the relative difference of the loss."""
        rank, size = self.processes.rank, self.processes.size
        summed = torch.zeros(())
        for number in range(rank, 3, size):
            summed += self.sharded.loss(*rows(number)[:2])
        self.sharded.forward_ends(-(-3 // size))
        self.processes.sum(summed)
        total = sum(self.alone(*rows(number)[:2]) for number in range(3))
        return float((summed - total).abs() / total)


def steps(processes: Processes, *, accumulates: bool = True) -> Any:
    """Take three steps with an evaluation after each update."""
    case, found = Case(processes, accumulates=accumulates), []
    for _ in range(3):
        found.append(case.step())
        case.update()
        found[-1]["evaluated"] = case.evaluate()
    return found


def each_reduced(processes: Processes) -> Any:
    return steps(processes, accumulates=False)


def one_of_the_processes_without_rows(processes: Processes) -> Any:
    return [Case(processes).step(passes=1)]


def given_up(processes: Processes) -> Any:
    """Give a step up after a pass whose gradients are not reduced, and take the next one."""
    case = Case(processes)
    case.step()
    case.sharded.zero(2)
    case.sharded.loss(*rows(7)[:2]).backward()  # type: ignore[no-untyped-call]
    return [case.step()]


def pairs(processes: Processes) -> Any:
    return [Case(processes, pairs=True).step()]


def adapted(processes: Processes) -> Any:
    def new() -> GPT2LMHeadModel:
        # Matrices of one row, of which the second process has none.
        model = lora.adapt(new_model(), Lora(rank=1, alpha=2, dropout=0.0), 1).eval()
        with torch.no_grad():  # this includes the matrices that begin as zero
            Flat(model, CPU).parameters.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
        return model

    return [Case(processes, new).step(), Case(processes, new, torch.bfloat16).step()]


def recomputed(processes: Processes) -> Any:
    return [Case(processes, mode=mode).step() for mode in ("attention", "block")]


def compiled(processes: Processes) -> Any:
    """Compile without C++. All blocks share the compiled code, in all passes."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    said: list[str] = []
    case = Case(processes, mode="block", compiler=Compiler(said.append))
    found = [case.step(), case.step()]
    return [*found, {"graphs": counters["stats"]["unique_graphs"], "said": said}]


def in_bf16(processes: Processes) -> Any:
    """Return the loss's and the gradient's errors, sharded and alone, against fp32."""
    case = Case(processes, partial(new_model, 64, 4), torch.bfloat16)
    difference = case.step()
    exact = Flat(new_model(64, 4), CPU)
    loss: Loss = make_loss(exact.model, None, CPU)
    for number in range(3):
        loss(*rows(number)[:2], SCALE).backward()  # type: ignore[no-untyped-call]
    wanted = case.of_lane(exact.gradients)
    errors = [float((found - wanted).norm()) for found in (case.sharded.gradients, case.of_lane(case.flat.gradients))]
    return difference, errors, float(wanted.norm())


def early(processes: Processes) -> Any:
    """Return which buckets were final before the backward pass had ended, and the end was declared."""
    case = Case(processes)
    sharded = case.sharded
    sharded.zero(1)
    loss = sharded.loss(*rows(1)[:2])
    sharded.backward_begins()
    before = [event.is_set() for event in sharded.readiness._final]
    loss.backward()  # type: ignore[no-untyped-call]
    after = [event.is_set() for event in sharded.readiness._final]
    sharded.backward_ends(1)
    return before, after


def whole(processes: Processes) -> Any:
    """Return whether the whole model comes back, and whether another one is taken over."""
    case = Case(processes)
    case.step()
    case.update()
    exported, found = case.sharded.exported(), []
    if exported is not None:
        found = [torch.allclose(exported.get_parameter(n), p) for n, p in case.flat.model.named_parameters()]
    other = new_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    case.sharded.take(other)
    case.flat.parameters.copy_(Flat(other, CPU).parameters)
    again = case.sharded.exported()
    if again is not None:
        found += [torch.equal(again.get_parameter(n), p) for n, p in case.flat.model.named_parameters()]
    return found, exported is None, case.evaluate()


def lanes(processes: Processes) -> Any:
    return Case(processes).sharded.lane.ranges


CASES = (
    steps, each_reduced, one_of_the_processes_without_rows, given_up, pairs, adapted, recomputed, in_bf16, early, whole,
    lanes, compiled,
)  # fmt: skip


def main(folder: Path, size: int) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    processes = Processes(size, (0,), print)
    found = {}
    for case in CASES:
        found[case.__name__] = case(processes)
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))
    processes.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
