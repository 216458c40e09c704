"""The position of a run, and the decision that a vote leads to: the same on every member, so that all act alike."""

import math
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Self

from trainer.cluster.announcement import Position, Tally
from trainer.contract.errors import InputError
from trainer.contract.geometry import MICRO_BATCH_TOKENS
from trainer.contract.options import Hyperparameters
from trainer.contract.spec import JobSpec

FP16_SCALE = 2.0**16 / MICRO_BATCH_TOKENS  # of the loss, at first: it is a sum over a micro-batch's tokens
SCALE_GROWTH = 2000  # good steps after which the loss scale of fp16 doubles
NOT_FINITE = {False: 10, True: 40}  # steps in a row without a finite gradient that end a run; True: in fp16


@dataclass
class Progress:
    """The state of a run besides the flat vectors. It is small, and the same on every member after a step."""

    step: int = 0
    updates: int = 0  # steps that were not skipped
    evaluations: int = 0  # step of the newest evaluation
    lineage: int = 0  # hash of the groups that took the steps: where it is equal, parameters are
    scale: float = 1.0  # of the loss, with fp16
    good_steps: int = 0  # since the scale last changed
    skipped: int = 0  # steps in a row whose gradient was not finite
    validation_loss: float | None = None  # the newest, in nats

    @classmethod
    def at_start(cls, scaled: bool) -> Self:
        """Return the progress of a run that begins. scaled: whether its loss is scaled (fp16)."""
        return cls(scale=FP16_SCALE if scaled else 1.0)

    @property
    def position(self) -> Position:
        """The position that members compare."""
        return Position(self.step, self.evaluations, self.lineage)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def count(self, finite: bool, scaled: bool, steps: int = 1) -> None:
        """Count steps that were taken, or skipped because a gradient was not finite, and adapt the scale of fp16."""
        self.step += steps
        self.updates += steps * finite
        self.skipped = 0 if finite else self.skipped + 1  # several steps that were decided at once count as one
        if scaled:
            before = self.good_steps
            self.good_steps = before + steps if finite else 0
            if not finite:
                self.scale /= 2
            elif self.good_steps // SCALE_GROWTH > before // SCALE_GROWTH:
                self.scale *= 2

    def commit(self, decision: "Decision", key: str, scaled: bool, steps: int = 1) -> None:
        """Count the step of `decision`, which the group `key` took. Raise InputError if too many were skipped."""
        self.lineage = self.next_lineage(key)
        self.count(decision.finite, scaled, steps)
        if self.skipped >= NOT_FINITE[scaled]:
            raise InputError(
                f"the gradient was not finite for {self.skipped} steps in a row up to step {self.step};"
                " lower hyperparameters.learningRate or raise warmupSteps"
            )

    def next_lineage(self, key: str) -> int:
        """Return the lineage after the next step, if the group `key` takes it."""
        return zlib.crc32(f"{self.lineage}/{key}/{self.step}".encode())

    def evaluation_due(self, spec: JobSpec) -> bool:
        due = self.step % spec.evaluation.every == 0 or self.step >= spec.hyperparameters.steps
        return self.step > 0 and due and self.evaluations < self.step

    def evaluated(self, mean: float) -> None:
        self.evaluations, self.validation_loss = self.step, mean


@dataclass(frozen=True)
class Decision:
    """The conclusion of all members from the same vote."""

    loss: float  # mean over the step's tokens, nats
    tokens: int
    gradient_norm: float  # of the mean gradient, before clipping
    finite: bool
    rate: float  # learning rate
    factor: float  # of the summed gradient: makes it the mean, unscaled and clipped


def decide(hyper: Hyperparameters, progress: Progress, tally: Tally) -> Decision:
    """Return what the tally of the whole batch says about the next step."""
    divisor = tally.tokens * progress.scale
    gradient_norm = tally.norm / divisor
    clip = min(1.0, hyper.gradient_clip / (gradient_norm + 1e-6)) if hyper.gradient_clip else 1.0
    return Decision(
        loss=tally.loss / tally.tokens,
        tokens=int(tally.tokens),
        gradient_norm=gradient_norm,
        finite=math.isfinite(gradient_norm) and math.isfinite(tally.loss),
        rate=learning_rate(hyper, progress.step),
        factor=clip / divisor,
    )


def decide_meeting(hyper: Hyperparameters, last: int, tally: Tally) -> Decision:
    """Return what the tally says about several steps that trainers went alone, up to step `last`.

    The norm is that of the trainers' averaged move.
    """
    finite = math.isfinite(tally.loss) and math.isfinite(tally.norm)
    rate = learning_rate(hyper, last)
    return Decision(tally.loss / tally.tokens, int(tally.tokens), tally.norm, finite, rate, factor=1.0)


def learning_rate(hyper: Hyperparameters, step: int) -> float:
    """Return the rate of the update after `step` steps (0 for the first): linear warm-up, then cosine or constant."""
    if step < hyper.warmup_steps:
        return hyper.learning_rate * (step + 1) / hyper.warmup_steps
    if hyper.schedule == "constant":
        return hyper.learning_rate
    done = (step - hyper.warmup_steps) / max(1, hyper.steps - hyper.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return hyper.learning_rate * (hyper.final_fraction + (1 - hyper.final_fraction) * cosine)
