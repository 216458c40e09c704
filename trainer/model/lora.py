"""Train small matrices next to a checkpoint's own: LoRA (Hu et al. 2021), by the `peft` library.

The checkpoint's matrices do not change. Only the small ones are trained, exchanged and checkpointed. peft takes seconds
to import, so each function that needs it imports it.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Linear
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract.options import Lora

# All matrices of GPT-2's blocks: two of attention, two of the MLP. Both have a c_proj.
TARGETS = ["c_attn", "c_proj", "c_fc"]
ADAPTER = "default"  # peft's own name for a model's only adapter


def adapt(model: GPT2LMHeadModel, lora: Lora, seed: int) -> GPT2LMHeadModel:
    """Insert the LoRA matrices into `model`, freeze its own parameters, and return it.

    The seed alone decides the new matrices, so that all members have the same ones. One matrix of each pair is zero, so
    that the model computes what the checkpoint does before the first step.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=TARGETS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft wants an int, but only multiplies by it
        lora_dropout=lora.dropout,
        fan_in_fan_out=True,  # GPT-2's matrices are Conv1D, which stores them transposed
    )
    torch.manual_seed(seed)
    adapted: GPT2LMHeadModel = inject_adapter_in_model(config, model)
    return adapted


def merged(model: GPT2LMHeadModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the state_dict of a model without adapters that computes the same, one tensor at a time."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    for name, value in model.state_dict().items():
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None:
            yield name.replace(".base_layer", ""), value + layer.get_delta_weight(ADAPTER)
        elif ".lora_" not in name:
            yield name.replace(".base_layer", ""), value


def save_adapter(model: GPT2LMHeadModel, base: str, folder: Path) -> None:
    """Write the files that `PeftModel.from_pretrained(base, folder)` needs. They name the checkpoint `base`."""
    config: PeftConfig = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base, True
    folder.mkdir()
    config.save_pretrained(str(folder))
    state = {
        f"base_model.model.{name}": value.detach().cpu().contiguous()  # a PeftModel calls its model base_model.model
        for name, value in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
