"""TrainingRun: a training job as a resource, the same on every platform."""

import pulumi

from infra.config import StackConfig, secret_keys
from infra.job import division
from trainer.spec import JobSpec


class TrainingRun(pulumi.ComponentResource):
    """Its own inputs are the stack file's words, so that a preview shows which of them changed.

    Its outputs have other names than these. What stands up the run, and what each change replaces, is the platform's.
    """

    run: pulumi.Output[str]
    bucket: pulumi.Output[str]
    trained_model: pulumi.Output[str]

    def __init__(self, config: StackConfig, job: JobSpec, opts: pulumi.ResourceOptions | None = None):
        words = config.words()
        if secrets := secret_keys():  # for a later review: by then the stack file may not have them, the state does
            words["secretKeys"] = secrets
        super().__init__("gpt2-training:run:TrainingRun", "training", words, opts)
        if (said := division(config)) is not None:
            pulumi.log.info(said, self)
        if (sweep := config.file.sweep) is not None and sweep.max_parallel_trials > 1:
            pulumi.log.warn(
                f"sweep.maxParallelTrials: found {sweep.max_parallel_trials}, and ignored: all machines train one trial"
                " after the other; remove it",
                self,
            )
        if config.google:
            from infra.google.stack import stand_up  # a stack on this machine loads nothing of Google's
        else:
            from infra.local.stack import stand_up
        bucket = stand_up(config, job, self)
        self.run = pulumi.Output.from_input(job.run)
        self.bucket = bucket
        self.trained_model = bucket.apply(lambda url: f"{url}/runs/{job.run}/model")
        self.register_outputs({"run": self.run, "bucket": self.bucket, "model": self.trained_model})
