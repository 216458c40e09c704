"""Score a model at its task, and let it write samples."""
