"""Who takes part in a run: membership, the Lighthouse and its lease, groups of processes."""
