"""Choose how many sequences a process computes at a time: as many as its memory holds."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from transformers import GPT2LMHeadModel

from trainer.contract import geometry
from trainer.contract.errors import InputError
from trainer.contract.geometry import Dimensions
from trainer.contract.memory import (
    TrainerProcess,
    fitting_rows,
    held,
    keeps_whole_gradients,
    usual_bytes,
    with_recompute,
)
from trainer.contract.spec import JobSpec

GIB = 2**30


@dataclass(frozen=True)
class MicroBatch:
    """The size of a micro-batch.

    rows: sequences, at most. whole_gradients: whether fsdp has room to add up a whole gradient over several of them.
    """

    rows: int
    whole_gradients: bool = True


def fit_micro_batch(
    spec: JobSpec, model: GPT2LMHeadModel, memory_bytes: int | None, *, half: bool, log: Callable[[str], None]
) -> MicroBatch:
    """Return the micro-batch that fits. All processes of a run have the same GPUs and choose alike.

    Args:
        spec: the run.
        model: with or without LoRA.
        memory_bytes: all memory of this process's GPU; None on a CPU.
        half: whether the model computes in bf16 or fp16.
        log: called with what the choice takes.

    Raises:
        InputError: if the tensors of a micro-batch alone, as it is given or of one sequence, are more than the GPU has.
    """
    process = process_of(spec, model, half=half, gpu=memory_bytes is not None)
    if memory_bytes is None:
        return MicroBatch(max(1, fitting_rows(process, _host_bytes(spec))))
    rows = max(1, fitting_rows(process, memory_bytes))
    computed = geometry.share(spec.hyperparameters, spec.cluster.trainers * spec.cluster.processes, rows).rows
    needed, has = held(process, computed).total, f"{memory_bytes / GIB:.3g} GiB"
    if needed > memory_bytes:
        sequences = f"{computed} sequence{'' if computed == 1 else 's'}"
        raise InputError(
            f"hyperparameters: {sequences} of {spec.hyperparameters.sequence_length} tokens at a time take at least"
            f" {needed / GIB:.3g} GiB of the GPU, which has {has}; {_remedy(process, memory_bytes)}"
        )
    log(f"micro-batches of {computed} sequences, which take about {usual_bytes(process, computed) / GIB:.2g} of {has}")
    return MicroBatch(rows, keeps_whole_gradients(process, rows, memory_bytes))


def _host_bytes(spec: JobSpec) -> int:
    """Return this process's part of its machine's memory; 0 on a computer that it shares with other machines."""
    if not spec.hardware:
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // spec.cluster.processes


def process_of(spec: JobSpec, model: GPT2LMHeadModel, *, half: bool, gpu: bool) -> TrainerProcess:
    """Return what the memory of this process depends on."""
    config = model.config
    return TrainerProcess(
        size=Dimensions(config.n_layer, config.n_embd, config.n_positions, config.vocab_size),
        hyper=spec.hyperparameters,
        parallel=spec.parallel,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        processes=spec.cluster.processes,
        half=half,
        servers=spec.cluster.parameter_servers > 0,
        gpu=gpu,
    )


def _remedy(process: TrainerProcess, memory_bytes: int) -> str:
    """Return the cheapest change with which the process fits, for the end of an error."""
    chosen = with_recompute(process, process.hyper.recompute)
    if rows := fitting_rows(chosen, memory_bytes):
        free = process.hyper.micro_batch_size is not None and not process.hyper.dropout  # with dropout pieces are fixed
        return f"use microBatchSize {rows}{', or leave it out' if free else ''}"
    for mode in ("attention", "block"):
        if fitting_rows(with_recompute(process, mode), memory_bytes):
            return f"use recompute: {mode}"
    if process.processes > 1 and not process.sharded:
        return "use parallel.parallelism: fsdp, or a GPU with more memory"
    return "use a GPU with more memory, or a smaller model"
