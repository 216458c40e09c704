"""A model for tests of text generation: tiny, random, and with clear choices."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.data.tokenizer import end_of_text, from_bytes, save_tokenizer
from trainer.storage.manifest import write_manifest

POSITIONS = 32


def tiny_model(folder: Path) -> Path:
    """Put a model that knows bytes into `folder`, in Hugging Face format; large weights make its choices clear."""
    tokenizer = from_bytes()
    end = end_of_text(tokenizer)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size() + 7,  # the vocabulary is padded, as that of a model from elsewhere may be
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, POSITIONS)
    write_manifest(folder)
    return folder
