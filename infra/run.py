"""TrainingRun: a training job as a resource, the same on every platform."""

import pulumi

from trainer.spec import JobSpec

from .config import StackConfig, division
from .local.stack import stand_up


class TrainingRun(pulumi.ComponentResource):
    """Its own inputs are the stack file's words, so that a preview shows which of them changed.

    What stands up the run, and what each change replaces, is the platform's.
    """

    run: pulumi.Output[str]
    bucket: pulumi.Output[str]
    model: pulumi.Output[str]

    def __init__(self, config: StackConfig, job: JobSpec, opts: pulumi.ResourceOptions | None = None):
        super().__init__("gpt2-training:run:TrainingRun", "training", config.words(), opts)
        if (said := division(config)) is not None:
            pulumi.log.info(said, self)
        bucket = stand_up(config, job, self)
        self.run = pulumi.Output.from_input(job.run)
        self.bucket = bucket
        self.model = bucket.apply(lambda url: f"{url}/runs/{job.run}/model")
        self.register_outputs({"run": self.run, "bucket": self.bucket, "model": self.model})
