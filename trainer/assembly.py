"""What a master or worker is made of: data, model and engine, put together as a job says; and what it leaves."""

import math
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from trainer import model as model_module
from trainer.batches import Batches, Windows
from trainer.device import peak_speed, pick
from trainer.export import export
from trainer.model import Flat
from trainer.parallel.local import LocalServed, LocalTraining
from trainer.parallel.replicas import Replicas
from trainer.parallel.served import Served
from trainer.prepared import Prepared
from trainer.progress import Progress
from trainer.spec import InputError
from trainer.train import FP16_SCALE, Engine, Training

if TYPE_CHECKING:
    from trainer.compute import Parts


class Trainer(Training):
    """Training, with a beginning and an end."""

    parts: "Parts"
    tokenizer: Tokenizer
    unigram_entropy: float

    def prepare(self) -> None:
        """The newest state that is known, and a step that nobody counts: compiling and first allocations are slow."""
        self.engine.restore()
        self.journal.report("warming up")
        self.gradient(0, None)

    def finish(self) -> None:
        facts = {
            "validation_loss": self.progress.validation_loss or math.nan,
            "unigram_entropy": self.unigram_entropy,
        }
        export(self.parts.storage, self.spec, self.model, self.tokenizer, facts, self.parts.scratch)


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
    flat = Flat(model, device)
    loss = model_module.make_loss(model, precision, device)
    if hyper.compile:
        loss = model_module.compiled(loss, parts.process.log)
    scaled = precision == torch.float16
    told = {"peak": peak_speed(device, precision, model, hyper.sequence_length), "scaled": scaled}
    progress = Progress(scale=FP16_SCALE if scaled else 1.0)
    engine: Engine
    kind = Trainer
    if spec.parallel.synchronization == "local":
        engine, kind = LocalServed(spec, flat, progress, parts.process.log, told), LocalTrainer
    elif spec.cluster.parameter_servers:
        engine = Served(spec, flat, progress, parts.process.log, told)
    else:
        engine = Replicas(flat, hyper, parts.checkpoints, parts.journal, progress, told)
    trainer = kind(
        spec,
        engine=engine,
        model=model,
        loss=loss,
        zero=flat.gradients.zero_,
        batches=Batches(prepared.tokens("train"), hyper.batch_size, hyper.sequence_length, hyper.seed),
        validation=Windows(prepared.tokens("validation"), hyper.sequence_length),
        cluster=parts.cluster,
        journal=parts.journal,
        device=device,
        scaled=scaled,
        stopping=parts.stopping,
    )
    trainer.parts, trainer.tokenizer = parts, tokenizer
    trainer.unigram_entropy = prepared.manifest.validation.unigram_entropy
    return trainer
