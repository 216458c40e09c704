"""LoRA (Hu et al. 2021) by the `peft` library: small matrices beside the checkpoint's, which stay as they are.

Only they are trained, and so only they travel and are checkpointed. peft takes seconds to import: only who needs it
does so.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract.spec import Lora

# All matrices of GPT-2's blocks: attention's two and the MLP's two, two of which have the same name.
TARGETS = ["c_attn", "c_proj", "c_fc"]
ADAPTER = "default"  # peft's own name for the only one


def adapt(model: GPT2LMHeadModel, lora: Lora, seed: int) -> GPT2LMHeadModel:
    """`model` itself, with the matrices in it; all that was there does not change any more.

    Their first state is a function of the seed, and the same everywhere: one of each two is zero, so that the model
    begins as the checkpoint.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=TARGETS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # a factor like any other
        lora_dropout=lora.dropout,
        fan_in_fan_out=True,  # GPT-2's matrices are Conv1D, which keeps them the other way round
    )
    torch.manual_seed(seed)
    adapted: GPT2LMHeadModel = inject_adapter_in_model(config, model)
    return adapted


def merged(model: GPT2LMHeadModel) -> Iterator[tuple[str, Tensor]]:
    """The state_dict of a model without adapters that computes the same, one tensor after the other."""
    from peft.tuners.lora import Linear

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
    for name, value in model.state_dict().items():
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None:
            yield name.replace(".base_layer", ""), value + layer.get_delta_weight(ADAPTER)
        elif ".lora_" not in name:
            yield name.replace(".base_layer", ""), value


def save(model: GPT2LMHeadModel, start: str, folder: Path) -> None:
    """Writes what `PeftModel.from_pretrained(base, folder)` needs. start: where the base is, which it notes."""
    from peft import PeftConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    config: PeftConfig = model.peft_config[ADAPTER]
    config.base_model_name_or_path, config.inference_mode = start, True
    folder.mkdir()
    config.save_pretrained(str(folder))
    state = {
        f"base_model.model.{name}": value.detach().cpu().contiguous()  # the name of the model within a PeftModel
        for name, value in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
