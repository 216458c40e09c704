"""The parts that a trainer and a parameter server have in common."""

from dataclasses import dataclass
from pathlib import Path

from trainer.cluster.host import Host
from trainer.cluster.membership import Membership
from trainer.cluster.processes import Processes
from trainer.contract.spec import JobSpec
from trainer.storage.base import Storage
from trainer.training.checkpoint import CheckpointStore
from trainer.training.journal import Journal


@dataclass(frozen=True)
class MemberContext:
    """One process of a member: its job, its place among the others, and where it writes."""

    storage: Storage
    spec: JobSpec
    host: Host
    membership: Membership
    checkpoints: CheckpointStore
    journal: Journal
    processes: Processes  # of this machine
    scratch: Path | None = None  # where files are made; None is the system's own place
