"""Name the controller of a stack: the workflow of controller.yaml, and the scheduler's job that starts it.

The workflow runs at Google and needs no machine and no image of ours. Its job has the launch in its name: the
controller pauses the job when all machines are gone, and the next launch must get one that is not paused.
"""

import hashlib
import json
from pathlib import Path

from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec

SOURCE = Path(__file__).with_name("controller.yaml")
SCHEDULE = "*/5 * * * *"  # an execution takes four minutes at most
WAIT_SECONDS = 1200  # for so long a run may lack machines before it moves to the next zone


def workflow_name(config: StackConfig) -> str:
    return f"gpt2-{config.stack}-controller"


def executions_url(config: StackConfig) -> str:
    """Return the address at which an execution of the workflow is made."""
    place = f"projects/{config.project}/locations/{config.region}"
    return f"https://workflowexecutions.googleapis.com/v1/{place}/workflows/{workflow_name(config)}/executions"


def job_name(config: StackConfig, job: JobSpec) -> str:
    """Return the name of the scheduler's job of a launch; other limits are another end, so another job as well."""
    limits = config.file.limits
    identity = [job.run, job.launch, limits.max_hours, limits.max_cost_usd]
    return f"{workflow_name(config)}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def job_path(config: StackConfig, job: JobSpec) -> str:
    """Return the full name of the scheduler's job of a launch."""
    return f"projects/{config.project}/locations/{config.region}/jobs/{job_name(config, job)}"
