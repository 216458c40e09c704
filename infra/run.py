"""Declare a training run as a Pulumi component, the same on every platform."""

from typing import Any

import pulumi
from pulumi.runtime.config import CONFIG

from infra.fleet.caveats import sharing_caveats
from infra.fleet.fleet import Fleet
from infra.inputs.resolve import Inputs
from infra.job import division
from infra.load import load
from infra.stack.config import ROOT, StackConfig
from infra.stack.reading import gcp_values, own_values, parsed
from infra.stack.secrets import secret_keys
from trainer.contract import paths
from trainer.contract.spec import JobSpec


def from_pulumi() -> StackConfig:
    """Return the configuration of the stack whose program is running. Raise ConfigError."""
    texts: dict[str, Any] = CONFIG.get()  # Pulumi passes all values as texts, and objects as JSON
    values = {name: parsed(text) for name, text in own_values(texts, pulumi.get_stack()).items()}
    return load(values, pulumi.get_stack(), ROOT, gcp_values(texts))


class TrainingRun(pulumi.ComponentResource):
    """A training run.

    Its inputs are the stack file's keys, so that a preview shows which of them changed; its outputs have other names.
    The platform's own resources are its children.
    """

    run: pulumi.Output[str]
    bucket: pulumi.Output[str]
    trained_model: pulumi.Output[str]

    def __init__(
        self,
        config: StackConfig,
        fleet: Fleet,
        inputs: Inputs,
        job: JobSpec,
        opts: pulumi.ResourceOptions | None = None,
    ):
        properties = config.words()
        if secrets := secret_keys():  # a later review finds them in the state even if the stack file has lost them
            properties["secretKeys"] = secrets
        super().__init__("gpt2-training:run:TrainingRun", "training", properties, opts)
        if (note := division(config, fleet)) is not None:
            pulumi.log.info(note, self)
        for sentence in sharing_caveats(config, fleet):
            pulumi.log.warn(sentence, self)
        # A stack on this machine is spared 0.2 s of imports, Google's packages.
        if config.google:
            from infra.google import resources as on_google

            bucket = on_google.declare_resources(config, fleet, inputs, job, self)
        else:
            from infra.local import resources as on_this_machine

            bucket = on_this_machine.declare_resources(config, job, self)
        self.run = pulumi.Output.from_input(job.run)
        self.bucket = bucket
        self.trained_model = bucket.apply(lambda url: f"{url}/{paths.model(job.run)}")
        self.register_outputs({"run": self.run, "bucket": self.bucket, "model": self.trained_model})
