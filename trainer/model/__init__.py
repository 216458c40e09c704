"""The GPT-2 model: its parameters as one flat vector, its loss, its device, LoRA, and export."""
