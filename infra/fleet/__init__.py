"""The machines of a run: which exist, which the run uses, what they cost and when they end."""
