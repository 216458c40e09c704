"""What a master or worker is made of: data, model and engine, put together as a job says; and what it leaves."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer.cluster.announcement import Announcement
from trainer.compute.context import Parts
from trainer.contract import errors
from trainer.contract.errors import InputError
from trainer.contract.spec import Task
from trainer.data.batches import Batches, Examples, PairBatches, Windows
from trainer.data.prepared import Prepared
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.sampler import PROMPT_TOKENS, Sampler
from trainer.model import gpt2 as model_module
from trainer.model.device import peak_speed, pick
from trainer.model.export import export
from trainer.model.flat import Flat
from trainer.model.loss import Loss, compiled, make_loss
from trainer.parallel.diloco_trainer import LocalServed, LocalTraining
from trainer.parallel.ps_trainer import Served
from trainer.parallel.replicas import Replicas
from trainer.runs import scores
from trainer.training.engine import Engine
from trainer.training.loop import FP16_SCALE, Training
from trainer.training.progress import Progress


class Trainer(Training):
    """Training, with a beginning and an end."""

    parts: Parts
    prepared: Prepared
    tokenizer: Tokenizer
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
            "unigram_entropy": self.prepared.manifest.validation.unigram_entropy,
        }
        written = export(self.parts.storage, self.spec, self.exported(), self.tokenizer, facts, self.parts.scratch)
        if self.spec.evaluation.task is not None:
            self._score(written, self.spec.evaluation.task)

    def _score(self, model: GPT2LMHeadModel, task: Task) -> None:
        """How good the exported model is. The run has succeeded, whatever happens here."""

        def progress(done: int, total: int) -> None:
            if self.stopping():
                raise InterruptedError("this machine is to leave")
            self.journal.report(f"evaluating: {done:,} of {total:,}")

        storage, log = self.parts.storage, self.journal.log
        try:
            progress(0, 1)
            found, predictions = evaluate(
                model.to(self.device), self.tokenizer, self.spec, task, self.prepared, progress
            )
            scores.write(storage, found, predictions)
            log(f"evaluated: {scores.line(found)}")
        except Exception as error:  # too little memory, storage away
            log(
                f"not evaluated ({errors.first_line(error)}):"
                f" python -m scripts.evaluate {self.spec.run} --bucket {storage.url} does it later"
            )


class LocalTrainer(LocalTraining, Trainer):
    """A trainer that goes several steps alone."""


def assemble(parts: Parts, prepared: Prepared) -> Trainer:
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
    model.train(hyper.dropout > 0 or (spec.model.lora is not None and spec.model.lora.dropout > 0))
    scaled = precision == torch.float16
    pairs = spec.data.format == "pairs"
    # Of pairs, tokens that count are a part of those that are computed; with LoRA, not all gradients are.
    peak = None if pairs or spec.model.lora else peak_speed(device, precision, model, hyper.sequence_length)
    announcement = Announcement(peak=peak, scaled=scaled)
    progress = Progress(scale=FP16_SCALE if scaled else 1.0)
    hold = _hold(parts, model, tokenizer, device, precision, progress, announcement)
    batches, validation = _pairs(parts, prepared) if pairs else _text(parts, prepared)
    kind = LocalTrainer if spec.parallel.synchronization == "local" else Trainer
    trainer = kind(
        spec,
        engine=hold.engine,
        model=model,
        loss=hold.loss,
        zero=hold.zero,
        batches=batches,
        validation=validation,
        cluster=parts.cluster,
        checkpoints=parts.checkpoints,
        journal=parts.journal,
        device=device,
        scaled=scaled,
        stopping=parts.stopping if parts.processes is None else lambda: False,  # they leave together: Together.quorum
    )
    if parts.processes is None:
        longest = model.config.n_positions // 2 if pairs else PROMPT_TOKENS
        first = _prompt(prepared, pairs, longest)
        trainer.sampler = Sampler(
            parts.storage, spec.run, model, tokenizer, first, hyper.seed, parts.process.log, longest=longest
        )
    trainer.exported = hold.exported
    trainer.parts, trainer.prepared, trainer.tokenizer = parts, prepared, tokenizer
    return trainer


def _text(parts: Parts, prepared: Prepared) -> tuple[Batches, Windows]:
    hyper = parts.spec.hyperparameters
    batches = Batches(prepared.tokens("train"), hyper.batch_size, hyper.sequence_length, hyper.seed)
    return batches, Windows(prepared.tokens("validation"), hyper.sequence_length)


def _pairs(parts: Parts, prepared: Prepared) -> tuple[PairBatches, Examples]:
    hyper, manifest = parts.spec.hyperparameters, prepared.manifest
    length, examples = hyper.sequence_length, prepared.examples("train")
    batches = PairBatches(prepared.tokens("train"), examples, hyper.batch_size, length, hyper.seed)
    validation = Examples(prepared.tokens("validation"), prepared.examples("validation"), length)
    if manifest.skipped:
        parts.process.log(f"data: {manifest.skipped:,} bad lines were left out")
    if truncated := prepared.truncated("train", length):
        parts.process.log(
            f"data: {truncated:,} of {len(examples):,} examples are longer than sequenceLength {length}: the beginning"
            " of their prompts is cut off"
        )
    return batches, validation


def _prompt(prepared: Prepared, pairs: bool, longest: int) -> list[int]:
    """What samples continue: the held-out text's beginning, or a held-out prompt's end, as its completion follows."""
    held_out, start, end = prepared.tokens("validation"), 0, longest
    if pairs:
        end = int(prepared.examples("validation")["prompt"][0])  # the first example begins at 0
        start = max(0, end - longest)
    return [int(token) for token in held_out.read(start, min(end, len(held_out)))]


@dataclass(frozen=True)
class _Hold:
    """An engine, and the functions that go with where it has the parameters."""

    engine: Engine
    loss: Loss
    zero: Callable[[], object]
    exported: Callable[[], GPT2LMHeadModel]  # the whole model, when the engine has finished


def _hold(
    parts: Parts,
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    device: torch.device,
    precision: torch.dtype | None,
    progress: Progress,
    announcement: Announcement,
) -> _Hold:
    spec, hyper, log = parts.spec, parts.spec.hyperparameters, parts.process.log
    masked = spec.data.format == "pairs"
    if parts.processes is not None:
        from trainer.parallel.fsdp import Sharded  # its imports take a second, and no other engine needs them

        if hyper.compile:
            log("hyperparameters.compile means nothing to fsdp: going on without it")
        sharded = Sharded(
            model,
            hyper,
            device,
            precision,
            parts.processes.mesh,
            parts.checkpoints,
            parts.journal,
            progress,
            announcement,
            masked=masked,
        )
        return _Hold(sharded, sharded.loss, sharded.zero, lambda: sharded.exported or model)
    flat = Flat(model, device)
    loss = make_loss(model, precision, device, masked=masked)
    if hyper.compile:
        loss = compiled(loss, log, dynamic=masked)

    def begin() -> None:
        flat.parameters.copy_(Flat(model_module.build(spec.model, tokenizer, 0.0, hyper.seed), device).parameters)

    engine: Engine
    if spec.parallel.synchronization == "local":
        engine = LocalServed(spec, flat, begin, progress, log, announcement)
    elif spec.cluster.parameter_servers:
        engine = Served(spec, flat, begin, progress, log, announcement)
    else:
        engine = Replicas(flat, hyper, parts.checkpoints, parts.journal, progress, announcement)
    return _Hold(engine, loss, flat.gradients.zero_, lambda: model)
