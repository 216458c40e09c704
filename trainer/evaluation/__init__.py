"""How good a model is at its task, and what it writes."""
