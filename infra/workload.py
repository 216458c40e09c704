"""What a run has to compute, hold and send, whatever the machines: numbers of its model and of its batch.

Pure. As trainer/model.py and trainer/batches.py have it, which nobody needs to import torch for here.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.start import TOKENS, locate
from trainer import spec

if TYPE_CHECKING:
    from infra.config import StackConfig

ROWS = 64  # the table of tokens is padded to a multiple of it
PIECE_TOKENS = 16384  # of a micro-batch, unless microBatchSize says otherwise
CHUNK = 4096  # tokens whose logits exist at one time


@dataclass(frozen=True)
class Dimensions:
    layers: int
    width: int
    positions: int
    vocabulary: int  # padded

    @property
    def parameters(self) -> int:
        """Weights and biases of attention (4·E² + 4·E), MLP (8·E² + 5·E) and norms (4·E) a layer; embeddings; norm."""
        layer = 12 * self.width**2 + 13 * self.width
        return self.layers * layer + (self.vocabulary + self.positions + 2) * self.width

    def flops_a_token(self, sequence_length: int) -> float:
        """6·N + 12·L·H·Q·T, forward and backward (Chowdhery et al. 2022), N without the table of positions."""
        attention = 12 * self.layers * self.width * sequence_length
        return 6 * (self.parameters - self.positions * self.width) + attention


def dimensions(config: "StackConfig") -> Dimensions | None:
    """The network of a stack; None if they stand in a checkpoint that is not a folder here or a published GPT-2."""
    model = config.file.model
    with contextlib.suppress(spec.InputError):  # job_spec() says it
        if (start := locate(config)) is not None and start.folder is not None:
            model = model.model_copy(update={"initialize": str(start.folder)})
    return dimensions_of(model, config.file.data, config.root)


def dimensions_of(model: spec.Model, data: spec.Data, root: Path) -> Dimensions | None:
    """root: where a relative path of a checkpoint starts."""
    start = model.initialize
    if start is None:
        layers, _, width = model.dimensions()
        tokens = {"train": data.vocabulary_size, **TOKENS}[data.tokenizer]
        return Dimensions(layers, width, model.positions, -(-tokens // ROWS) * ROWS)
    published = spec.SIZES.get(start.rpartition("/")[2])
    if published and start.count("/") <= 1 and not start.startswith((".", "~", "/")):
        return Dimensions(published[0], published[2], 1024, TOKENS["gpt2"])
    try:
        found = json.loads((root / Path(start).expanduser() / "config.json").read_text(encoding="utf-8"))
        return Dimensions(*(int(found[key]) for key in ("n_layer", "n_embd", "n_positions", "vocab_size")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Share:
    """What the busiest trainer computes of a step."""

    rows: int  # sequences of a micro-batch, at most
    passes: int  # micro-batches
    length: int  # tokens of a sequence

    @property
    def tokens(self) -> int:
        return self.rows * self.passes * self.length


def share(hyper: spec.Hyperparameters, trainers: int) -> Share:
    """trainers: processes that compute; a batch is cut for those that are declared (trainer/batches.py)."""
    most = hyper.micro_batch_size or max(1, PIECE_TOKENS // hyper.sequence_length)
    count = min(hyper.batch_size, trainers * -(-hyper.batch_size // (most * trainers)))
    return Share(-(-hyper.batch_size // count), -(-count // trainers), hyper.sequence_length)


def evaluations(config: "StackConfig") -> int:
    """How often a whole run evaluates: every so many steps, and after the last."""
    return -(-config.file.training_input.hyperparameters.steps // config.file.evaluation.every)


def trained(config: "StackConfig", size: Dimensions) -> int:
    """Parameters that need gradients: with LoRA those of the two matrices beside each of a layer's four."""
    lora = config.file.model.lora
    return size.parameters if lora is None else size.layers * lora.rank * 16 * size.width


def checkpoint_bytes(config: "StackConfig", size: Dimensions) -> int:
    """fp32 parameters that are trained, and with AdamW two moments as large."""
    return trained(config, size) * (12 if config.file.training_input.hyperparameters.optimizer == "adamw" else 4)


def trainers(config: "StackConfig", accelerators: int) -> int:
    """Processes that compute. A machine of several GPUs is one, with one of them, unless fsdp shares a model."""
    return max(1, accelerators) if config.file.parallel.parallelism == "fsdp" else 1 + config.workers
