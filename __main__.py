"""The Pulumi program, wiring only: stack file -> configuration -> training run -> outputs."""

import pulumi

from infra import config
from infra.run import TrainingRun

try:
    stack = config.from_pulumi()
    job = config.job_spec(stack)
except config.ConfigError as error:
    raise pulumi.RunError(str(error)) from None

training = TrainingRun(stack, job)

pulumi.export("run", training.run)
pulumi.export("bucket", training.bucket)
pulumi.export("model", training.trained_model)
pulumi.export("watch", f"python -m scripts.watch --stack {stack.stack}")
