"""How good a finished model is at its task, beside what takes no training: by a run's leader, or scripts.evaluate.

Text: the whole held-out part, as there is no test part of it. Pairs: the test part, which nothing was trained or
validated on. The model is the exported one, so that both get the same.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer.contract.errors import InputError
from trainer.contract.spec import JobSpec, Task, format_problem
from trainer.data.batches import Windows
from trainer.data.prepared import Prepared
from trainer.evaluation.answers import answer
from trainer.evaluation.measures import MEASURES, baseline, confusion
from trainer.runs.scores import SAMPLES, Baseline, Prediction, Scores

FORWARD_TOKENS = 4096  # of text in one forward pass, whose logits exist at one time
Progress = Callable[[int, int], None]  # (done, in all)


def evaluate(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    spec: JobSpec,
    task: Task,
    prepared: Prepared,
    progress: Progress = lambda done, total: None,
) -> tuple[Scores, list[Prediction]]:
    """The scores of the run's model, and all that it answered. progress may raise to stop.

    Raises InputError if the data is not of the task's format, or the model's numbers are not finite.
    """
    if problem := format_problem(task, spec.data.format or "text"):
        raise InputError(problem)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise InputError(f"the model of {spec.run} has numbers that are not finite: lower the learning rate")
    model.eval()
    positions = int(model.config.n_positions)
    if task == "text":
        windows = Windows(prepared.tokens("validation"), min(spec.hyperparameters.sequence_length, positions))
        return _text(model, windows, spec.run, prepared.manifest.validation.unigram_entropy, progress), []
    pairs = prepared.pairs("test")
    completions = tokenizer.encode_batch([pair.completion for pair in pairs], add_special_tokens=False)
    longest = max(len(encoding.ids) for encoding in completions) + 1  # with end-of-text
    # A new model has learned no position beyond sequenceLength; a checkpoint's may know all of its own.
    window = positions if spec.model.initialize else min(positions, spec.hyperparameters.sequence_length)
    answers = answer(model, tokenizer, [pair.prompt for pair in pairs], longest, window, progress)
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


def _text(model: GPT2LMHeadModel, windows: Windows, run: str, unigram_entropy: float, progress: Progress) -> Scores:
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
        metrics=_of_loss(total / windows.counted(order)),
        baseline=Baseline(name="unigram", metrics=_of_loss(unigram_entropy)),
    )


def _of_loss(loss: float) -> dict[str, float]:
    return {"perplexity": math.exp(min(loss, 50)), "loss": loss}


def _spread(predictions: list[Prediction]) -> list[Prediction]:
    """A few, from all over the part."""
    count = min(SAMPLES, len(predictions))
    return [predictions[i * len(predictions) // count] for i in range(count)]
