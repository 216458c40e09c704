"""The Pulumi program, wiring only: stack file -> configuration -> machines -> training run -> outputs."""

import gc

import pulumi

from infra.estimate.estimate import outputs
from infra.fleet.fleet import resolve_fleet
from infra.job import declare
from infra.run import TrainingRun, from_pulumi
from infra.stack.config import ConfigError
from infra.stack.secrets import without_secrets
from trainer.contract.errors import InputError
from trainer.storage.base import StorageError

# The program is over soon. A third of the time that Google's packages take to import would go to looking for garbage.
gc.disable()
try:
    stack = from_pulumi()
    fleet = resolve_fleet(stack)
    inputs, job = declare(stack, fleet)
    estimated = outputs(stack, fleet)
    training = TrainingRun(stack, fleet, inputs, job)
except (ConfigError, InputError, StorageError) as error:
    raise pulumi.RunError(without_secrets(str(error))) from None
pulumi.export("run", training.run)
pulumi.export("bucket", training.bucket)
pulumi.export("model", training.trained_model)
pulumi.export("watch", f"python -m scripts.watch --stack {stack.stack}")
for name, value in estimated.items():
    pulumi.export(name, value)
