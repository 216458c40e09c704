"""What a master or worker is made of: data, model and engine, put together as a job says; and what it leaves."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer import model as model_module
from trainer.batches import Batches, Windows
from trainer.device import peak_speed, pick
from trainer.export import export
from trainer.model import Flat, Loss
from trainer.parallel.local import LocalServed, LocalTraining
from trainer.parallel.replicas import Replicas
from trainer.parallel.served import Served
from trainer.prepared import Prepared
from trainer.progress import Progress
from trainer.sampler import PROMPT, Sampler
from trainer.spec import InputError
from trainer.train import FP16_SCALE, Engine, Training

if TYPE_CHECKING:
    from trainer.compute import Parts


class Trainer(Training):
    """Training, with a beginning and an end."""

    parts: "Parts"
    tokenizer: Tokenizer
    unigram_entropy: float
    exported: Callable[[], GPT2LMHeadModel]

    def prepare(self) -> None:
        """The newest state that is known, and a step that nobody counts: compiling and first allocations are slow."""
        self.engine.restore()
        self.journal.report("warming up")
        self.gradient(0, None)

    def finish(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
        facts = {
            "validation_loss": self.progress.validation_loss or math.nan,
            "unigram_entropy": self.unigram_entropy,
        }
        export(self.parts.storage, self.spec, self.exported(), self.tokenizer, facts, self.parts.scratch)


class LocalTrainer(LocalTraining, Trainer):
    """A trainer that goes several steps alone."""


def assemble(parts: "Parts", prepared: Prepared) -> Trainer:
    """Raises InputError for what cannot be trained."""
    spec = parts.spec
    hyper = spec.hyperparameters
    device, precision = pick(hyper.precision)
    tokenizer = prepared.tokenizer()
    model = model_module.build(spec.model, tokenizer, hyper.dropout, hyper.seed).to(device)
    if hyper.sequence_length > model.config.n_positions:  # of a checkpoint, which has its own
        raise InputError(
            f"hyperparameters.sequenceLength: {hyper.sequence_length} is longer than the {model.config.n_positions}"
            f" positions of {spec.model.initialize}; lower it"
        )
    # Without dropout, training and evaluation compute the same function, and eval mode skips the dropout modules.
    model.train(hyper.dropout > 0)
    scaled = precision == torch.float16
    told = {"peak": peak_speed(device, precision, model, hyper.sequence_length), "scaled": scaled}
    progress = Progress(scale=FP16_SCALE if scaled else 1.0)
    hold = _hold(parts, model, tokenizer, device, precision, progress, told)
    held_out = prepared.tokens("validation")
    kind = LocalTrainer if spec.parallel.synchronization == "local" else Trainer
    trainer = kind(
        spec,
        engine=hold.engine,
        model=model,
        loss=hold.loss,
        zero=hold.zero,
        batches=Batches(prepared.tokens("train"), hyper.batch_size, hyper.sequence_length, hyper.seed),
        validation=Windows(held_out, hyper.sequence_length),
        cluster=parts.cluster,
        journal=parts.journal,
        device=device,
        scaled=scaled,
        stopping=parts.stopping if parts.processes is None else lambda: False,  # they leave together: Together.quorum
    )
    if parts.processes is None:
        first = held_out.read(0, min(PROMPT, len(held_out))).tolist()
        trainer.sampler = Sampler(parts.storage, spec.run, model, tokenizer, first, hyper.seed, parts.process.log)
    trainer.exported = hold.exported
    trainer.parts, trainer.tokenizer = parts, tokenizer
    trainer.unigram_entropy = prepared.manifest.validation.unigram_entropy
    return trainer


@dataclass(frozen=True)
class _Hold:
    """An engine, and the functions that go with where it has the parameters."""

    engine: Engine
    loss: Loss
    zero: Callable[[], object]
    exported: Callable[[], GPT2LMHeadModel]  # the whole model, when the engine has finished


def _hold(
    parts: "Parts",
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    device: torch.device,
    precision: torch.dtype | None,
    progress: Progress,
    told: dict[str, Any],
) -> _Hold:
    spec, hyper, log = parts.spec, parts.spec.hyperparameters, parts.process.log
    if parts.processes is not None:
        from trainer.parallel.fsdp import Sharded  # its imports take a second, and no other engine needs them

        if hyper.compile:
            log("hyperparameters.compile means nothing to fsdp: going on without it")
        sharded = Sharded(
            model, hyper, device, precision, parts.processes.mesh, parts.checkpoints, parts.journal, progress, told
        )
        return _Hold(sharded, sharded.loss, sharded.zero, lambda: sharded.exported or model)
    flat = Flat(model, device)
    loss = model_module.make_loss(model, precision, device)
    if hyper.compile:
        loss = model_module.compiled(loss, log)

    def begin() -> None:
        flat.parameters.copy_(Flat(model_module.build(spec.model, tokenizer, 0.0, hyper.seed), device).parameters)

    engine: Engine
    if spec.parallel.synchronization == "local":
        engine = LocalServed(spec, flat, begin, progress, log, told)
    elif spec.cluster.parameter_servers:
        engine = Served(spec, flat, begin, progress, log, told)
    else:
        engine = Replicas(flat, hyper, parts.checkpoints, parts.journal, progress, told)
    return _Hold(engine, loss, flat.gradients.zero_, lambda: model)
