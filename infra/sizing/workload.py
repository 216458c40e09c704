"""What a run has to compute, hold and send, whatever the machines: numbers of its model and of its batch.

Pure. As trainer/model/gpt2.py and trainer/data/batches.py have it, which nobody needs to import torch for here.
"""

import contextlib
import json
from pathlib import Path

from infra.inputs.checkpoint import TOKENS, locate
from infra.stack.config import StackConfig
from trainer.contract import errors, spec
from trainer.contract.geometry import Dimensions, padded_vocabulary


def dimensions(config: StackConfig) -> Dimensions | None:
    """The network of a stack; None if they stand in a checkpoint that is not a folder here or a published GPT-2."""
    model = config.file.model
    with contextlib.suppress(errors.InputError):  # job_spec() says it
        if (start := locate(config)) is not None and start.folder is not None:
            model = model.model_copy(update={"initialize": str(start.folder)})
    return dimensions_of(model, config.file.data, config.root)


def dimensions_of(model: spec.Model, data: spec.Data, root: Path) -> Dimensions | None:
    """root: where a relative path of a checkpoint starts."""
    start = model.initialize
    if start is None:
        layers, _, width = model.dimensions()
        tokens = {"train": data.vocabulary_size, **TOKENS}[data.tokenizer]
        return Dimensions(layers, width, model.positions, padded_vocabulary(tokens))
    published = spec.SIZES.get(start.rpartition("/")[2])
    if published and start.count("/") <= 1 and not start.startswith((".", "~", "/")):
        return Dimensions(published[0], published[2], 1024, TOKENS["gpt2"])
    try:
        found = json.loads((root / Path(start).expanduser() / "config.json").read_text(encoding="utf-8"))
        return Dimensions(*(int(found[key]) for key in ("n_layer", "n_embd", "n_positions", "vocab_size")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def evaluations(config: StackConfig) -> int:
    """How often a whole run evaluates: every so many steps, and after the last."""
    return -(-config.file.training_input.hyperparameters.steps // config.file.evaluation.every)


def trained(config: StackConfig, size: Dimensions) -> int:
    """Parameters that need gradients: with LoRA those of the two matrices beside each of a layer's four."""
    lora = config.file.model.lora
    return size.parameters if lora is None else size.layers * lora.rank * 16 * size.width


def checkpoint_bytes(config: StackConfig, size: Dimensions) -> int:
    """fp32 parameters that are trained, and with AdamW two moments as large."""
    return trained(config, size) * (12 if config.file.training_input.hyperparameters.optimizer == "adamw" else 4)


def trainers(config: StackConfig, accelerators: int) -> int:
    """Processes that compute. A machine of several GPUs is one, with one of them, unless fsdp shares a model."""
    return max(1, accelerators) if config.file.parallel.parallelism == "fsdp" else 1 + config.workers
