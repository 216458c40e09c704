"""Estimates of how long a run takes and what it costs, before anyone pays."""
