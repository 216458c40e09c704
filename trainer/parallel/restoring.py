"""Restore one checkpoint into all processes of a machine."""

import torch

from trainer.cluster.processes import Processes
from trainer.parallel.shard import Shard
from trainer.training.checkpoint import CheckpointStore, Restored, Vectors, order


def restore_alike(
    checkpoints: CheckpointStore, vectors: Vectors, shard: Shard, processes: Processes
) -> Restored | None:
    """Fill `vectors`, laid out like the shard's lane, from the newest checkpoint that is good for all processes.

    Return None, and touch nothing, if there is none.
    """
    ranges, layout = list(shard.lane.ranges), shard.layout
    if processes.size == 1:
        return checkpoints.restore(vectors, ranges, layout=layout)
    skip: set[str] = set()
    while True:
        copies = {key: torch.zeros(vector.shape) for key, vector in vectors.items()}
        restored = checkpoints.restore(copies, ranges, skip=skip, layout=layout)
        step, attempt = order(restored.name) if restored else (-1, 0)
        version = step << 32 | attempt
        newest, oldest = processes.greatest(version), -processes.greatest(-version)
        if newest == oldest:
            break
        if restored is not None and version > oldest:  # it is damaged for another process
            skip.add(restored.name)
    if restored is not None:
        with torch.no_grad():
            for key, vector in vectors.items():
                vector.copy_(copies[key])
    return restored
