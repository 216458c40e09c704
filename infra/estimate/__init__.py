"""How long a run will take and what it will cost, each figure with its origin."""
