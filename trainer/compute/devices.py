"""Check that this machine has the GPUs with which it was declared."""

import os

import torch

from trainer.contract.errors import MissingGpus
from trainer.contract.spec import Cluster


def check_devices(cluster: Cluster) -> None:
    """Raise MissingGpus if torch sees fewer GPUs on this trainer machine than it was declared with.

    On its CPU it would be a hundred times slower, and the others would wait for it at every step; or it would form
    gloo groups where they form NCCL's. Make no CUDA context.
    """
    seen = torch.cuda.device_count()
    if seen >= cluster.gpus:
        return
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    among = "" if chosen is None else f" among CUDA_VISIBLE_DEVICES={chosen}"
    raise MissingGpus(
        f"GPUs: this machine was declared with {cluster.gpus}, torch sees {seen}{among}, and no CPU trains instead;"
        " `nvidia-smi` must list them, and torch be one for CUDA"
    )
