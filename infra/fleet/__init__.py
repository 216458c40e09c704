"""The machines of a run: which types exist, which ones the run uses, what they cost and when they end."""
