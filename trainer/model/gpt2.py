"""Build GPT-2 as transformers' GPT2LMHeadModel, from random weights or from a checkpoint.

The model is the library's, so that every GPT-2 checkpoint loads here and every export loads anywhere. Only its
attention and its loss (trainer/model/loss.py) are called in our own way: without a mask, without a full fp32 tensor of
logits.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from trainer.contract.errors import InputError, first_line
from trainer.contract.geometry import padded_vocabulary
from trainer.contract.options import Model
from trainer.data import tokenizer as vocabularies
from trainer.model import lora
from trainer.model.fetch import fetch_folder

# GPT-2's activation is the tanh approximation of GELU. transformers computes "gelu_new" in five operations and
# "gelu_pytorch_tanh", the same function, in one: 20 to 40 % faster on CPU. We train with one and export the other.
TRAINED_ACTIVATION, EXPORTED_ACTIVATION = "gelu_pytorch_tanh", "gelu_new"
ATTENTION = "gpt2_training_causal"


def _causal_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute causal scaled dot-product attention without a mask, for transformers' AttentionInterface.

    Under torch.compile, the library's own "sdpa" makes a mask tensor in case sequences are packed. Ours never are, and
    PyTorch does not use its flash kernels with a mask.
    """
    assert attention_mask is None
    result = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _causal_attention)


def build(spec: Model, tokenizer: Tokenizer, dropout: float, seed: int) -> GPT2LMHeadModel:
    """Return a model on the CPU in fp32, made from its dimensions and the seed or loaded from a checkpoint.

    A new model's table of tokens is padded to a multiple of 64 rows for speed, and export cuts the padding off. With
    LoRA, only its matrices need gradients.

    Args:
        spec: the dimensions or the checkpoint, and LoRA.
        tokenizer: the run's vocabulary.
        dropout: the probability of all dropout modules.
        seed: of the new weights.

    Raises:
        InputError: if the checkpoint cannot be loaded or does not fit.
    """
    vocabulary, end = tokenizer.get_vocab_size(), vocabularies.end_of_text(tokenizer)
    if spec.initialize is not None:
        model = _from_checkpoint(spec.initialize, tokenizer, dropout)
        return model if spec.lora is None else lora.adapt(model, spec.lora, seed)
    layers, heads, width = spec.dimensions()
    config = GPT2Config(
        vocab_size=padded_vocabulary(vocabulary),
        n_positions=spec.positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    _train_settings(config, dropout)
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)


def _train_settings(config: GPT2Config, dropout: float) -> None:
    config.activation_function = TRAINED_ACTIVATION
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    config._attn_implementation = ATTENTION
    config.use_cache = False


def _from_checkpoint(source: str, tokenizer: Tokenizer, dropout: float) -> GPT2LMHeadModel:
    """Load a folder, a gs:// folder or a hub id. Only safetensors are read, so that loading runs no code."""
    folder, vocabulary = fetch_folder(source), tokenizer.get_vocab_size()
    try:
        # Refuse other architectures and vocabularies.
        config = GPT2Config.from_pretrained(folder)
        if config.model_type != "gpt2":
            raise InputError(f"model.initialize: {source} is a {config.model_type} model; only GPT-2 can be trained")
        if config.activation_function not in (TRAINED_ACTIVATION, EXPORTED_ACTIVATION):
            raise InputError(
                f"model.initialize: {source} has the activation {config.activation_function};"
                f" only GPT-2's, {EXPORTED_ACTIVATION}, can be trained"
            )
        if config.vocab_size < vocabulary:
            raise InputError(
                f"model.initialize: {source} knows {config.vocab_size} tokens, the tokenizer has {vocabulary};"
                " set data.tokenizer to checkpoint"
            )
        own = Path(folder) / "tokenizer.json"
        if own.is_file():
            own_vocabulary = vocabularies.parse_tokenizer(
                own.read_text(encoding="utf-8"), f"model.initialize: {source}"
            ).get_vocab()
            if tokenizer.get_vocab().items() - own_vocabulary.items():  # the checkpoint may have additional tokens
                raise InputError(
                    f"model.initialize: {source} has other tokens than the tokenizer, even if as many; set"
                    " data.tokenizer to checkpoint"
                )
        # Load the weights.
        _train_settings(config, dropout)
        verbosity = logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # the error below says in one line what the library says in a table
        try:
            model, loading = GPT2LMHeadModel.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(verbosity)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model.initialize: cannot load {source} ({first_line(error)}); give a folder, a hub id or gs://…"
        ) from error
    # Refuse tensors that are missing or of another size: transformers fills them with random numbers.
    unfit = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if unfit:
        raise InputError(
            f"model.initialize: the weights of {source} do not fit its config.json ({len(unfit)} are missing or of"
            f" another size, such as {unfit[0]}); fetch it again"
        )
    return model
