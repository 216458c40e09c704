"""The memory of a process that trains, in bytes by parts, and the micro-batch that fits into it.

infra/ predicts with it before anyone pays, and a trainer chooses its micro-batch with it at its start. It counts the
tensors of transformers' GPT2LMHeadModel as trainer/model calls it: fused causal attention, the head's loss in chunks.
The counts are those of all tensors that live in a step, eagerly on a CPU; tests/trainer/contract/test_memory.py repeats
them with a small model. torch.compile keeps the same ones for the backward pass (counted as well): matrix products,
attention, norms and the activation need their inputs, and it computes none of these again.

The memory of a step has its peak at the end of the forward pass, in the head's loss, or at the start of the backward
pass. Both are calculated, and the larger one counts.
"""

from dataclasses import dataclass, replace

from trainer.contract import geometry
from trainer.contract.options import Hyperparameters, Parallel

# Bytes that a token keeps for the backward pass, for each layer and element of the width, in fp32 and under autocast.
# In fp32 they are 16 numbers: the inputs of 2 norms, of attention's 2 products and of the MLP's first (3), queries,
# keys and values (3, and attention's output is the input of its second product), the inputs of the activation and of
# the MLP's second product (4 + 4). Under autocast the inputs of norms stay fp32. recompute: attention keeps the
# input of the norm before attention alone, and the MLP's; recompute: block keeps the input of each block.
KEPT = {"none": (64, 36), "attention": (44, 26), "block": (4, 4)}
MASKS = {"none": 2, "attention": 1, "block": 0}  # bytes more with dropout: of attention's and the MLP's output
FLYING = (20, 16)  # bytes of gradients that are on their way in the backward pass, of one layer, likewise
OUTPUT = 16  # bytes of the whole model: the last norm's input and output, and the gradient of the output, twice
COPIES_KEPT = {"none": 1.0, "attention": 8 / 12, "block": 0.0}  # the part of autocast's copies for the backward pass
BLOCK = 12  # parameters of a block for each element of width x width
GATHERED_BLOCKS = 2  # fsdp: the block that computes and the next one
# What allocators take for each byte of the tensors; bytes of a CUDA context and its libraries; of NCCL's buffers. Ours.
FRAGMENTS, CUDA, NCCL = 1.15, 600_000_000, 400_000_000
TRAINER_BYTES = 900_000_000  # of a process on a CPU, whatever the model; measured
# The most tokens of a micro-batch that is chosen by memory. Its matrix products have 65,536 rows, with which they reach
# their speed on any GPU, and the launches of kernels are hidden; nanoGPT and llm.c take as many on 80 GB. More would
# leave fewer backward passes behind which gradients can travel.
MOST_TOKENS = 65536


@dataclass(frozen=True)
class TrainerProcess:
    """A process that computes gradients: all that its memory depends on, but for the size of its micro-batch.

    size: the model. trained: how many of its parameters are trained; LoRA trains few.
    processes: those of its machine. half: whether it computes in bf16 or fp16.
    servers: whether parameter servers hold the optimizer's state. gpu: whether it computes on a GPU.
    """

    size: geometry.Dimensions
    hyper: Hyperparameters
    parallel: Parallel
    trained: int
    processes: int = 1
    half: bool = False
    servers: bool = False
    gpu: bool = True

    @property
    def sharded(self) -> bool:
        """Return whether each process has only its part of the parameters."""
        return self.parallel.parallelism == "fsdp" and self.processes > 1


@dataclass(frozen=True)
class Held:
    """Bytes of the tensors of a process at the peak of a step.

    state: parameters, gradients and the optimizer's moments. copies: weights in the precision that is computed in,
    which autocast makes or fsdp gathers. activations: what the backward pass needs. head: logits, and the gradient of
    the table of tokens.
    """

    state: float
    copies: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return self.state + self.copies + self.activations + self.head


def state_bytes(process: TrainerProcess) -> float:
    """Return the bytes of parameters, gradients and moments.

    Replicas have whole parameters and gradients in fp32. Where a machine has several processes, each also has its lane
    of both, and the moments of its lane alone (ZeRO-1). With fsdp everything is a part.
    """
    moments = 8.0 if process.hyper.optimizer == "adamw" else 0.0
    if process.servers:  # they hold the moments, but for those of processes that take steps of AdamW alone
        moments = moments if process.parallel.synchronization == "local" else 0.0
    if process.sharded:
        return (4.0 * process.size.parameters + (4.0 + moments) * process.trained) / process.processes
    lane = moments + (8.0 if process.processes > 1 else 0.0)
    return 4.0 * process.size.parameters + (4.0 + lane / process.processes) * process.trained


def held(process: TrainerProcess, rows: int) -> Held:
    """Return what a process holds at the peak of a step with micro-batches of so many sequences."""
    size, hyper = process.size, process.hyper
    tokens = rows * hyper.sequence_length
    elements, column = float(tokens * size.width), 1 if process.half else 0

    # Activations: those that are kept, and those of the one block that is computed again.
    kept_of_layer = {mode: elements * (KEPT[mode][column] + (MASKS[mode] if hyper.dropout else 0)) for mode in KEPT}
    kept = kept_of_layer[hyper.recompute] * size.layers
    again = kept_of_layer["none"] - kept_of_layer["block"] if hyper.recompute == "block" else 0

    state, (forward, at_loss, backward) = state_bytes(process), _copies(process)
    logits, table = _head_bytes(process, tokens)
    moments_of_a_step = (
        Held(state, forward, kept + again, 0.0),  # in the last block
        Held(state, at_loss, kept + elements * OUTPUT, logits),
        Held(state, backward, kept + elements * OUTPUT, 2 * table),  # the head's backward pass
        Held(state, backward, kept + again + elements * FLYING[column], 2 * table),  # that of the last block
        Held(state, backward, 0.0, 3 * table),  # the table's gradient as input, that as output, and their sum
    )
    return max(moments_of_a_step, key=lambda moment: moment.total)


def _copies(process: TrainerProcess) -> tuple[float, float, float]:
    """Return the bytes of weights in the precision of the computation: in the blocks, in the loss, and going back.

    Autocast keeps all its copies until the blocks' forward pass is over, and then those that the backward pass needs.
    What is computed again copies its weights again.
    """
    size, recompute, weight = process.size, process.hyper.recompute, 2.0 if process.half else 4.0
    block, table = weight * BLOCK * size.width**2, weight * size.vocabulary * size.width
    if process.sharded:
        gathered = table + GATHERED_BLOCKS * block
        return gathered, gathered, gathered + (1 + 4.0 / weight) * block  # a block's gradient, and in fp32 for its sum
    if not process.half:
        return 0.0, 0.0, 0.0
    kept = block * size.layers * COPIES_KEPT[recompute]
    return block * size.layers, kept + table, max(kept, block)


def _head_bytes(process: TrainerProcess, tokens: int) -> tuple[float, float]:
    """Return the bytes of the head's loss, and those of the gradient of the table of tokens.

    A chunk has logits and, in fp32, their copy and their logarithms. Their gradient takes the place of the logits, or
    in fp32 that of the logarithms. All chunks add to the gradient of the table.
    """
    weight, chunk = 2.0 if process.half else 4.0, min(geometry.LOGIT_CHUNK, tokens)
    trained = process.trained >= process.size.parameters  # with LoRA it has no gradient
    table = 4.0 * process.size.vocabulary * process.size.width if trained else 0.0
    logits = weight * chunk * process.size.vocabulary
    entropy, gradient = logits * (5 if process.half else 2), logits * (1 if process.half else 2)
    product = table * (1.5 if process.half else 1)  # in half precision, and then in fp32
    if tokens <= chunk:
        return max(entropy, gradient + product), table
    # Of earlier chunks there are the sum, the newest product and the newest logits.
    return 2 * table + max(entropy + logits, gradient + product), table


def usual_bytes(process: TrainerProcess, rows: int) -> float:
    """Return the bytes of its GPU that a process takes: its tensors, and what allocators and libraries add.

    On a CPU they are those of the machine, where checkpoints are copied too.
    """
    tensors = FRAGMENTS * held(process, rows).total
    if process.gpu:
        return tensors + CUDA + NCCL
    copied = 0.0 if process.servers else 12.0 * process.trained / process.processes
    return tensors + copied + TRAINER_BYTES


def fitting_rows(process: TrainerProcess, memory_bytes: float) -> int:
    """Return how many sequences a micro-batch has at most.

    An explicit microBatchSize is obeyed, whether it fits or not. Else a micro-batch is as large as fits: on a GPU up to
    MOST_TOKENS, on a CPU up to MICRO_BATCH_TOKENS, because a larger one is no faster there.

    Args:
        process: the process that computes.
        memory_bytes: all memory of its GPU, or its part of the machine's; 0 if that is not known.

    Returns:
        Sequences; 0 if not even one fits.
    """
    hyper = process.hyper
    if hyper.micro_batch_size is not None or not (process.gpu or memory_bytes):
        return geometry.micro_batch_rows(hyper.sequence_length, hyper.micro_batch_size)
    low, high = 0, max(1, (MOST_TOKENS if process.gpu else geometry.MICRO_BATCH_TOKENS) // hyper.sequence_length)
    while low < high:  # what a process holds grows with the rows
        middle = (low + high + 1) // 2
        if usual_bytes(process, middle) <= memory_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def with_recompute(process: TrainerProcess, recompute: str) -> TrainerProcess:
    """Return a process that recomputes other activations and has no explicit microBatchSize."""
    return replace(process, hyper=process.hyper.model_copy(update={"recompute": recompute, "micro_batch_size": None}))


def keeps_whole_gradients(process: TrainerProcess, rows: int, memory_bytes: float) -> bool:
    """Return whether fsdp has room for a whole gradient in fp32 while it adds up several micro-batches.

    If so, it sums over the processes once a step; else after each micro-batch, which takes longer.
    """
    return usual_bytes(process, rows) + FRAGMENTS * 4.0 * process.trained <= memory_bytes
