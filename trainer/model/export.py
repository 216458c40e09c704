"""Export the trained model as a folder that `transformers` loads: safetensors, tokenizer, model card, manifest."""

import math
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from trainer.contract import paths
from trainer.contract.geometry import VOCABULARY_MULTIPLE
from trainer.contract.options import Lora
from trainer.contract.spec import JobSpec
from trainer.data.tokenizer import save_tokenizer
from trainer.model import lora
from trainer.model.gpt2 import EXPORTED_ACTIVATION
from trainer.storage import manifest
from trainer.storage.base import Storage


def export(
    storage: Storage,
    spec: JobSpec,
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    facts: dict[str, float],
    scratch: Path | None = None,
) -> GPT2LMHeadModel:
    """Write runs/<run>/model/ and return the exported model, which is on the CPU and in fp32.

    With LoRA, export the merged model; its adapter/ folder holds the LoRA matrices alone, in peft's format.

    Args:
        storage: the bucket.
        spec: the run.
        model: the trained model, on any device. It is not changed.
        tokenizer: the run's vocabulary. Rows of the model's table beyond it are padding and are cut off.
        facts: validation_loss and unigram_entropy in nats per token, for the model card.
        scratch: the folder for temporary files; the system's default if None.
    """
    disable_progress_bar()  # it would show a single file
    with tempfile.TemporaryDirectory(prefix="model-", dir=scratch) as made:
        folder = Path(made)
        exported = _exportable(model, tokenizer.get_vocab_size(), adapted=spec.model.lora is not None)
        exported.save_pretrained(folder)
        if spec.model.lora is not None:
            lora.save_adapter(model, spec.model.initialize or "", folder / "adapter")
        save_tokenizer(tokenizer, folder, model.config.n_positions)
        (folder / "README.md").write_text(card(spec, model, facts), encoding="utf-8")
        written = manifest.write_manifest(folder, run=spec.run)
        # The manifest goes last, because it says that the model is complete.
        for name in (*written["files"], paths.MANIFEST):
            storage.upload(folder / name, paths.model_file(spec.run, name))
    return exported


def _exportable(model: GPT2LMHeadModel, vocabulary: int, *, adapted: bool = False) -> GPT2LMHeadModel:
    """Return a copy on the CPU with GPT-2's own activation name and without the rows that pad the vocabulary."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.activation_function = EXPORTED_ACTIVATION
    config.use_cache = True
    config.vocab_size = (
        vocabulary if model.config.vocab_size - vocabulary < VOCABULARY_MULTIPLE else model.config.vocab_size
    )
    config.architectures = ["GPT2LMHeadModel"]
    with torch.device("meta"):
        copy = GPT2LMHeadModel(config)
    copy.to_empty(device="cpu")
    copy.tie_weights()
    target = copy.state_dict()
    with torch.no_grad():
        for name, value in lora.merged(model) if adapted else model.state_dict().items():
            target[name].copy_(value[: target[name].shape[0]])
    copy.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id
    )
    return copy.eval()


def _trained(lora: Lora | None) -> str:
    if lora is None:
        return "all parameters"
    return f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}; merged into these weights, and alone in `adapter/`"


def card(spec: JobSpec, model: GPT2LMHeadModel, facts: dict[str, float]) -> str:
    """Return the model card: the model's dimensions, data, losses and settings, and how to load it."""
    hyper, config = spec.hyperparameters, model.config
    loss = facts.get("validation_loss", math.nan)
    tokens = hyper.steps * hyper.batch_size * hyper.sequence_length
    at_most = "at most " if spec.data.format == "pairs" else ""  # a row is as long as its example
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {spec.run}

GPT-2 with {config.n_layer} layers, {config.n_head} heads, width {config.n_embd} and {config.n_positions} positions,
trained by gpt2-training on `{Path(spec.data.path).name}` ({at_most}{tokens:,} tokens in {hyper.steps:,} steps of
{hyper.batch_size} × {hyper.sequence_length}).

| | |
|---|---|
| validation loss | {loss:.4f} nats a token (perplexity {math.exp(min(loss, 50)):.1f}) |
| unigram entropy of the same text | {facts.get("unigram_entropy", math.nan):.4f} nats a token |
| optimizer | {hyper.optimizer}, learning rate {hyper.learning_rate:g}, {hyper.schedule} schedule |
| tokenizer | {spec.data.tokenizer} |
| started from | {spec.model.initialize or f"random weights, seed {hyper.seed}"} |
| trained | {_trained(spec.model.lora)} |

```python
from transformers import pipeline

print(pipeline("text-generation", model="path/to/this/folder")("def ", max_new_tokens=50)[0]["generated_text"])
```

It continues text in the manner of what it was trained on. It knows nothing else, and its statements are not facts.
"""
