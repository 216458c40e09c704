"""Declare a run on `platform: local`."""

import pulumi

from infra.lifecycle import status_line
from infra.local.machines import Machine
from infra.local.storage import Bucket, Job, Text
from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec
from trainer.runs.status import read_status
from trainer.storage.factory import open_storage


def declare_resources(config: StackConfig, job: JobSpec, parent: pulumi.Resource) -> pulumi.Output[str]:
    """Declare everything that a run needs on this machine, and return the bucket's address.

    All addresses are known beforehand, so that a preview of a new stack shows them; depends_on gives the order.
    """
    url = config.bucket
    if (notice := status_line(read_status(open_storage(url), job.run), url, job)) is not None:
        attention, line = notice
        (pulumi.log.warn if attention else pulumi.log.info)(line, parent)
    bucket = Bucket("bucket", url, pulumi.ResourceOptions(parent=parent))
    text = Text("text", url, config.text, job, pulumi.ResourceOptions(parent=parent, depends_on=[bucket]))
    declared = Job("job", url, job, pulumi.ResourceOptions(parent=parent, depends_on=[text]))
    for name, role in job.cluster.machines():
        Machine(name, role, url, job, pulumi.ResourceOptions(parent=parent, depends_on=[declared]))
    return bucket.url
