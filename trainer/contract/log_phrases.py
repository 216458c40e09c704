"""Phrases of the machine's log that alerts on Google Cloud look for."""

# Log-based metrics match these; they are part of the contract with infra/google.
PREEMPTED = "gpt2-training: preempted: "
FAILED = "gpt2-training: failed: "
SUCCEEDED = "gpt2-training: succeeded: "
