"""runs/<run>/samples.jsonl: text that the model wrote at evaluations. trainer/evaluation/sampler.py makes it."""

import json
from contextlib import suppress

from pydantic import ValidationError

from trainer.contract import paths
from trainer.contract.spec import Strict
from trainer.storage.base import Storage

KEPT = 48  # at twice as many, every other one is dropped


class Sample(Strict):
    """How the model goes on after the first words of the held-out text."""

    step: int
    time: float
    prompt: str
    text: str


def read(storage: Storage, run: str) -> list[Sample]:
    """In order of step; lines of another version are left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in storage.read(paths.samples(run)).splitlines():
            with suppress(ValidationError):
                found.append(Sample.model_validate_json(line))
    return found


def add(storage: Storage, run: str, sample: Sample) -> None:
    """The newest one; those that a resume undid are forgotten, and of many every other one."""
    kept = [*(each for each in read(storage, run) if each.step < sample.step), sample]
    if len(kept) >= 2 * KEPT:
        kept = [*kept[:-1:2], kept[-1]]
    storage.write(paths.samples(run), "".join(json.dumps(each.to_json()) + "\n" for each in kept).encode())
