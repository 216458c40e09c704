"""Names of the trainer's metrics in Cloud Monitoring."""

PREFIX = "custom.googleapis.com/gpt2_training/"
STEP = PREFIX + "step"  # INT64: steps done
LOSS = PREFIX + "loss"  # DOUBLE: training loss of the newest step, nats
TOKENS_PER_SECOND = PREFIX + "tokens_per_second"  # DOUBLE: of all trainers together
SECONDS_SINCE_STEP = PREFIX + "seconds_since_step"  # DOUBLE: since the newest step, or since the master started
FAILED = PREFIX + "failed"  # INT64: 1 once the run has failed, 0 before
RESOURCE = "generic_task"
