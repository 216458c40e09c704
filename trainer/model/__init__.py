"""Build, load, adapt and export the GPT-2 model, and compute its loss."""
