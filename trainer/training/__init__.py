"""The training loop, the optimizer, checkpoints, and the journal of a run."""
