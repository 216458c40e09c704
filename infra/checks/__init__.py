"""Checks of a stack before anything starts: its keys, this computer, Google Cloud."""
