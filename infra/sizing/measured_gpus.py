"""Read what GPUs reached when `benchmarks.gpu` measured them; that is preferred to published figures.

The table is infra/sizing/measured_gpus.json, a list, and a GPU day adds to it. It is empty as long as no GPU has run.
"""

import json
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from trainer.contract import geometry
from trainer.contract.options import Strict

TABLE = Path(__file__).with_suffix(".json")


class MeasuredGpu(Strict):
    """The speed of one process on one GPU.

    device: as torch names it. model: the size of GPT-2. precision: fp32, bf16 or fp16. mfu: the part of the peak of
    trainer/contract/geometry.py that tokens_per_second is; None where the peak is not known. peak_memory: bytes that
    torch reserved. commit: of this project.
    """

    device: str
    model: str
    precision: str
    compiled: bool
    tokens_per_second: float = Field(gt=0)
    mfu: float | None = Field(gt=0, lt=1)
    peak_memory: float = Field(ge=0)
    date: str
    commit: str


@cache
def table(path: Path) -> tuple[MeasuredGpu, ...]:
    """Return all measurements of a file. Raise ValueError if the file has others than these."""
    found = TypeAdapter(list[MeasuredGpu]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    return tuple(found)


def measured(peak: str, *, half: bool, compiled: bool) -> MeasuredGpu | None:
    """Return the newest measurement of a GPU; None without one.

    Args:
        peak: the GPU's name in geometry.PEAKS.
        half: whether it computes in bf16 or fp16.
        compiled: whether torch.compile is used.
    """
    fitting = [
        one
        for one in table(TABLE)
        if one.mfu and geometry.peak_name(one.device) == peak and one.compiled == compiled
        if (one.precision != "fp32") == half
    ]
    return max(fitting, key=lambda one: one.date, default=None)
