"""Put a trainer together as its job says, from data, model and engine; export and score its model at the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer.cluster.announcement import Announcement
from trainer.cluster.quorum import Quorum
from trainer.compute.micro_batch import MicroBatch, fit_micro_batch
from trainer.contract import errors
from trainer.contract.errors import InputError
from trainer.contract.options import Task
from trainer.data.batches import Batches, Examples, PairBatches, Windows
from trainer.data.prepared import Prepared
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.sampler import PROMPT_TOKENS, Sampler
from trainer.model import gpt2 as model_module
from trainer.model import recompute
from trainer.model.compilation import Compiler
from trainer.model.device import peak_speed, pick
from trainer.model.export import export
from trainer.model.loss import make_loss
from trainer.parallel.all_reduce_trainer import AllReduceTrainer
from trainer.parallel.diloco_trainer import DilocoTrainer, DilocoTraining
from trainer.parallel.ps_trainer import PsTrainer
from trainer.parallel.replica import Replica
from trainer.parallel.shard import Shard
from trainer.parallel.sharded_model import ShardedModel
from trainer.runs import scores
from trainer.training.engine import Engine
from trainer.training.loop import Training
from trainer.training.member_context import MemberContext


class TrainingMember(Training):
    """Training, with a beginning and an end."""

    prepared: Prepared
    tokenizer: Tokenizer
    exported: Callable[[], GPT2LMHeadModel | None]
    _written: GPT2LMHeadModel | None = None

    def prepare(self) -> None:
        """Restore the newest checkpoint, and compute a step that does not count."""
        self.engine.restore()
        self.journal.report("warming up")
        self.warm_up()

    def run(self) -> Quorum:
        quorum = super().run()
        if quorum.rank == 0:  # all its processes help to put the model together, and the first one has it
            self._written = self.exported()
        return quorum

    def finish(self) -> None:
        """Write the model, and its scores if the job has a task."""
        if self.sampler is not None:
            self.sampler.close()
        facts = {
            "validation_loss": self.progress.validation_loss or math.nan,
            "unigram_entropy": self.prepared.manifest.validation.unigram_entropy,
        }
        assert self._written is not None
        written = export(self.context.storage, self.spec, self._written, self.tokenizer, facts, self.context.scratch)
        if self.spec.evaluation.task is not None:
            self._score(written, self.spec.evaluation.task)

    def _score(self, model: GPT2LMHeadModel, task: Task) -> None:
        """Score the exported model. The run has succeeded, whatever happens here."""

        def progress(done: int, total: int) -> None:
            if self.context.host.stopping():
                raise InterruptedError("this machine is to leave")
            self.journal.report(f"evaluating: {done:,} of {total:,}")

        storage, log = self.context.storage, self.journal.log
        try:
            progress(0, 1)
            new_scores, predictions = evaluate(
                model.to(self.device), self.tokenizer, self.spec, task, self.prepared, progress
            )
            scores.write(storage, new_scores, predictions)
            log(f"evaluated: {scores.line(new_scores)}")
        except Exception as error:  # too little memory, storage away
            log(
                f"not evaluated ({errors.first_line(error)}):"
                f" python -m scripts.evaluate {self.spec.run} --bucket {storage.url} does it later"
            )


class DilocoTrainingMember(DilocoTraining, TrainingMember):
    """A trainer that takes several steps alone."""


def assemble(context: MemberContext, prepared: Prepared) -> TrainingMember:
    """Make this process's trainer. Raise InputError for what cannot be trained."""
    spec, hyper = context.spec, context.spec.hyperparameters

    # The model, on this machine's device.
    device, precision = pick(hyper.precision, context.processes.rank)
    tokenizer = prepared.tokenizer()
    model = model_module.build(spec.model, tokenizer, hyper.dropout, hyper.seed)
    if hyper.sequence_length > model.config.n_positions:  # of a checkpoint, which has its own
        raise InputError(
            f"hyperparameters.sequenceLength: {hyper.sequence_length} is longer than the {model.config.n_positions}"
            f" positions of {spec.model.initialize}; lower it"
        )
    # Without dropout, training and evaluation compute the same function, and eval mode skips the dropout modules.
    model.train(hyper.dropout > 0 or (spec.model.lora is not None and spec.model.lora.dropout > 0))

    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    fit = fit_micro_batch(spec, model, memory, half=precision is not None, log=context.host.log)

    # How the trainers share a step. With pairs only some of the computed tokens count, and with LoRA only some of the
    # gradients are computed: then there is no peak to compare with.
    pairs, scaled = spec.data.format == "pairs", precision == torch.float16
    peak = None if pairs or spec.model.lora else peak_speed(device, precision, model, hyper.sequence_length)
    network = _Network(model, tokenizer, device, precision)
    shard = _make_shard(context, network, fit)
    if peak is not None:  # of the machine, whose GPUs are alike
        peak *= context.processes.size
    engine = _make_engine(context, network, shard, Announcement(peak=peak, scaled=scaled))

    # The loop over the data. The processes of a machine leave together: Membership.quorum says when.
    batches, validation = _pairs(context, prepared) if pairs else _text(context, prepared)
    kind = DilocoTrainingMember if spec.parallel.synchronization == "local" else TrainingMember
    trainer = kind(
        context,
        engine=engine,
        model=model,
        loss=shard.loss,
        zero=shard.zero,
        batches=batches,
        validation=validation,
        device=device,
        micro_batch_rows=fit.rows,
        scaled=scaled,
        stopping=context.host.stopping if context.processes.size == 1 else lambda: False,
    )
    if context.processes.rank == 0 and shard.whole:
        prompt = _prompt(prepared, pairs, model.config.n_positions // 2)
        trainer.sampler = Sampler(context.storage, spec, model, tokenizer, prompt, context.host.log)
    trainer.exported, trainer.prepared, trainer.tokenizer = shard.exported, prepared, tokenizer
    return trainer


def _text(context: MemberContext, prepared: Prepared) -> tuple[Batches, Windows]:
    hyper = context.spec.hyperparameters
    batches = Batches(prepared.tokens("train"), hyper.batch_size, hyper.sequence_length, hyper.seed)
    return batches, Windows(prepared.tokens("validation"), hyper.sequence_length)


def _pairs(context: MemberContext, prepared: Prepared) -> tuple[PairBatches, Examples]:
    hyper, manifest = context.spec.hyperparameters, prepared.manifest
    length, examples = hyper.sequence_length, prepared.examples("train")
    batches = PairBatches(prepared.tokens("train"), examples, hyper.batch_size, length, hyper.seed)
    validation = Examples(prepared.tokens("validation"), prepared.examples("validation"), length)
    if manifest.skipped:
        context.host.log(f"data: {manifest.skipped:,} bad lines were left out")
    if truncated := prepared.truncated("train", length):
        context.host.log(
            f"data: {truncated:,} of {len(examples):,} examples are longer than sequenceLength {length}: the beginning"
            " of their prompts is cut off"
        )
    return batches, validation


def _prompt(prepared: Prepared, pairs: bool, longest: int) -> list[int]:
    """Return what samples continue: the held-out text's beginning, or the end of a held-out prompt."""
    held_out, start, end = prepared.tokens("validation"), 0, min(PROMPT_TOKENS, longest)
    if pairs:  # the end, because the completion follows it
        end = int(prepared.examples("validation")["prompt"][0])  # the first example begins at 0
        start = max(0, end - longest)
    return [int(token) for token in held_out.read(start, min(end, len(held_out)))]


@dataclass(frozen=True)
class _Network:
    """The model, and how it is computed."""

    model: GPT2LMHeadModel  # on the CPU
    tokenizer: Tokenizer
    device: torch.device
    precision: torch.dtype | None  # None is fp32


def _make_shard(context: MemberContext, network: _Network, fit: MicroBatch) -> Shard:
    """Give the model to this process's shard."""
    spec, hyper = context.spec, context.spec.hyperparameters
    model, device, masked = network.model, network.device, spec.data.format == "pairs"
    compiler = Compiler(context.host.log, widths=masked) if hyper.compile else None
    recompute.apply(model, hyper.recompute)
    if compiler is not None:
        compiler.blocks(model)
    loss = make_loss(model, network.precision, device, compiler)
    if spec.parallel.parallelism == "fsdp" and context.processes.size > 1:
        return ShardedModel(
            model,
            loss,
            context.processes,
            network.precision,
            lambda: model_module.build(spec.model, network.tokenizer, 0.0, hyper.seed),
            sequence_length=hyper.sequence_length,
            accumulates=fit.whole_gradients,
        )
    model.to(device)
    # Nobody listens to hooks where no other process trains.
    alone = spec.cluster.trainers + spec.cluster.parameter_servers + context.processes.size == 2
    return Replica(model, loss, device, context.processes, hooks=not alone, pulls=spec.cluster.parameter_servers > 0)


def _make_engine(context: MemberContext, network: _Network, shard: Shard, announcement: Announcement) -> Engine:
    """Make the engine that the run's `parallel` and `cluster` ask for."""
    spec = context.spec

    def begin() -> None:
        shard.take(model_module.build(spec.model, network.tokenizer, 0.0, spec.hyperparameters.seed))

    if spec.parallel.synchronization == "local":
        return DilocoTrainer(context, shard, begin, announcement)
    if spec.cluster.parameter_servers:
        return PsTrainer(context, shard, begin, announcement)
    return AllReduceTrainer(context, shard, announcement)
