"""The Pulumi program, wiring only: stack file -> configuration -> training run -> outputs."""

import gc

import pulumi

from infra import config
from infra.estimate import outputs
from infra.job import job_spec
from infra.run import TrainingRun
from trainer.spec import InputError
from trainer.storage import StorageError

# The program is over soon. A third of the time that Google's packages take to import would go to looking for garbage.
gc.disable()

try:
    stack = config.from_pulumi()
    job = job_spec(stack)
    estimated = outputs(stack)
    training = TrainingRun(stack, job)
except (config.ConfigError, InputError, StorageError) as error:
    raise pulumi.RunError(config.without_secrets(str(error))) from None

pulumi.export("run", training.run)
pulumi.export("bucket", training.bucket)
pulumi.export("model", training.trained_model)
pulumi.export("watch", f"python -m scripts.watch --stack {stack.stack}")
for name, value in estimated.items():
    pulumi.export(name, value)
