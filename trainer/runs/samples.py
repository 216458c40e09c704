"""Keep text that the model wrote at evaluations, in samples.jsonl; trainer/evaluation/sampler.py makes it."""

import json
from contextlib import suppress

from pydantic import ValidationError

from trainer.contract import paths
from trainer.contract.options import Strict
from trainer.storage.base import Storage

KEPT = 48  # samples; when there are twice as many, every other one is dropped


class Sample(Strict):
    """A text that the model wrote: it continues the first words of the held-out text."""

    step: int
    time: float
    prompt: str
    text: str


def read(storage: Storage, run: str) -> list[Sample]:
    """Return the samples in order of step, without lines of another version of this project."""
    samples = []
    with suppress(FileNotFoundError):
        for line in storage.read(paths.samples(run)).splitlines():
            with suppress(ValidationError):
                samples.append(Sample.model_validate_json(line))
    return samples


def add(storage: Storage, run: str, sample: Sample) -> None:
    """Add the newest sample, and drop those of steps that a resume undid. Of too many, keep every other one."""
    samples = [*(each for each in read(storage, run) if each.step < sample.step), sample]
    if len(samples) >= 2 * KEPT:
        samples = [*samples[:-1:2], samples[-1]]
    storage.write(paths.samples(run), "".join(json.dumps(each.to_json()) + "\n" for each in samples).encode())
