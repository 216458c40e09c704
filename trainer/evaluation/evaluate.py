"""Score a finished model at its task, and compare it with a baseline that needs no training.

A run's leader does this at the end of the run, and scripts.evaluate at any time later. Both evaluate the exported
model, so that both get the same scores. A text has no test part, so its whole held-out part is used. Pairs have a test
part, which is used for neither training nor validation.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer.contract.errors import InputError
from trainer.contract.options import Task, format_problem
from trainer.contract.spec import JobSpec
from trainer.data.batches import Windows
from trainer.data.prepared import Prepared
from trainer.evaluation.answers import EvaluationProgress, answer
from trainer.evaluation.measures import MEASURES, baseline, confusion
from trainer.runs.scores import SAMPLES, Baseline, Prediction, Scores

FORWARD_TOKENS = 4096  # tokens of a text in one forward pass, whose logits all exist at the same time


def evaluate(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    spec: JobSpec,
    task: Task,
    prepared: Prepared,
    progress: EvaluationProgress = lambda done, total: None,
) -> tuple[Scores, list[Prediction]]:
    """Return the scores of a run's model, and all its answers (none for a text).

    Args:
        model: the exported model, on any device.
        tokenizer: its vocabulary.
        spec: the run.
        task: what the model is evaluated at.
        prepared: the run's data.
        progress: called often; it may raise to stop.

    Raises:
        InputError: if the data does not have the task's format, or the model has numbers that are not finite.
    """
    if problem := format_problem(task, spec.data.format or "text"):
        raise InputError(problem)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise InputError(f"the model of {spec.run} has numbers that are not finite: lower the learning rate")
    model.eval()
    positions = int(model.config.n_positions)
    if task == "text":
        windows = Windows(prepared.tokens("validation"), min(spec.hyperparameters.sequence_length, positions))
        return _score_text(model, windows, spec.run, prepared.manifest.validation.unigram_entropy, progress), []
    # Answer all prompts of the test part.
    pairs = prepared.pairs("test")
    completions = tokenizer.encode_batch([pair.completion for pair in pairs], add_special_tokens=False)
    longest = max(len(encoding.ids) for encoding in completions) + 1  # with end-of-text
    # A new model has not learned any position beyond sequenceLength. A checkpoint may know all its positions.
    window = positions if spec.model.initialize else min(positions, spec.hyperparameters.sequence_length)
    answers = answer(model, tokenizer, [pair.prompt for pair in pairs], longest, window, progress)
    # Score the answers.
    expected = [pair.completion for pair in pairs]
    predictions = [
        Prediction(prompt=pair.prompt, expected=pair.completion, predicted=text)
        for pair, text in zip(pairs, answers.texts, strict=True)
    ]
    scores = Scores(
        run=spec.run,
        task=task,
        split="test",
        examples=len(pairs),
        metrics=MEASURES[task](expected, answers.texts),
        baseline=baseline(task, pairs, prepared.pairs("train") if task == "sentiment" else []),
        confusion=confusion(expected, answers.texts) if task == "sentiment" else None,
        samples=_spread(predictions),
        truncated=answers.truncated,
    )
    return scores, predictions


def _score_text(
    model: GPT2LMHeadModel, windows: Windows, run: str, unigram_entropy: float, progress: EvaluationProgress
) -> Scores:
    device = next(model.parameters()).device
    order = windows.first(len(windows))
    rows = max(1, FORWARD_TOKENS // windows.counted(order[:1]))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), rows):
            inputs, targets = (torch.from_numpy(part).to(device) for part in windows.rows(order[start : start + rows]))
            logits = cast(torch.Tensor, model(inputs, use_cache=False).logits)
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
            progress(min(start + rows, len(order)), len(order))
    return Scores(
        run=run,
        task="text",
        split="validation",
        examples=len(order),
        metrics=_loss_metrics(total / windows.counted(order)),
        baseline=Baseline(name="unigram", metrics=_loss_metrics(unigram_entropy)),
    )


def _loss_metrics(loss: float) -> dict[str, float]:
    return {"perplexity": math.exp(min(loss, 50)), "loss": loss}


def _spread(predictions: list[Prediction]) -> list[Prediction]:
    """Return a few predictions, spread evenly over the part."""
    count = min(SAMPLES, len(predictions))
    return [predictions[i * len(predictions) // count] for i in range(count)]
