"""The members of a run: membership, the Lighthouse and its lease, groups of processes."""
