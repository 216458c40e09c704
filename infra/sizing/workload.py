"""Count what a run computes, holds and sends on any machines: numbers of its model and its batch."""

import contextlib
import json
from pathlib import Path

from infra.inputs.checkpoint import TOKENS, locate
from infra.stack.config import StackConfig
from trainer.contract import errors, options
from trainer.contract.geometry import Dimensions, padded_vocabulary


def dimensions(config: StackConfig) -> Dimensions | None:
    """Return the size of a stack's model.

    None if a checkpoint alone knows it, which is neither a folder of this machine nor a published GPT-2.
    """
    model = config.file.model
    with contextlib.suppress(errors.InputError):  # job_spec() raises it
        if (start := locate(config)) is not None and start.folder is not None:
            model = model.model_copy(update={"initialize": str(start.folder)})
    return dimensions_of(model, config.file.data, config.root)


def dimensions_of(model: options.Model, data: options.Data, root: Path) -> Dimensions | None:
    """Return the size of a model, or None as dimensions() does. root: where a checkpoint's relative path starts."""
    start = model.initialize
    if start is None:
        layers, _, width = model.dimensions()
        tokens = {"train": data.vocabulary_size, **TOKENS}[data.tokenizer]
        return Dimensions(layers, width, model.positions, padded_vocabulary(tokens))
    published = options.SIZES.get(start.rpartition("/")[2])
    if published and start.count("/") <= 1 and not start.startswith((".", "~", "/")):
        return Dimensions(published[0], published[2], 1024, TOKENS["gpt2"])
    try:
        sizes = json.loads((root / Path(start).expanduser() / "config.json").read_text(encoding="utf-8"))
        return Dimensions(*(int(sizes[key]) for key in ("n_layer", "n_embd", "n_positions", "vocab_size")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluations(config: StackConfig) -> int:
    """Return how often a whole run evaluates: every evaluation.every steps, and after the last step."""
    return -(-config.file.training_input.hyperparameters.steps // config.file.evaluation.every)


def trained(config: StackConfig, size: Dimensions) -> int:
    """Return the number of parameters that are trained. LoRA trains two matrices for each of a layer's four."""
    lora = config.file.model.lora
    return size.parameters if lora is None else size.layers * lora.rank * 16 * size.width


def checkpoint_bytes(config: StackConfig, size: Dimensions) -> int:
    """Return the bytes of a checkpoint: the trained parameters in fp32, and two moments as large with AdamW."""
    return trained(config, size) * (12 if config.file.training_input.hyperparameters.optimizer == "adamw" else 4)
