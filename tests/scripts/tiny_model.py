"""A model for tests of what writes: tiny, random, with opinions."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.data.tokenizer import end_of_text, from_bytes, save_tokenizer
from trainer.storage.manifest import write_manifest

POSITIONS = 32


def tiny_model(folder: Path) -> Path:
    """Puts a model that knows bytes into `folder`, in Hugging Face format; its weights are large: it has opinions."""
    tokenizer = from_bytes()
    end = end_of_text(tokenizer)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size() + 7,  # padded, as a model that was not exported by us may be
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
