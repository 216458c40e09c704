"""What a model answers to many prompts: the likeliest token each time, in batches.

Prompts of a batch are padded on the left, and the padding is masked and takes no positions: a prompt gets the answer
that it would get alone, up to the rounding of sums where two tokens are all but equally likely.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

from trainer.data.tokenizer import end_of_text

BATCH_TOKENS = 16384  # positions of a batch
LARGEST_BATCH = 64  # prompts
Progress = Callable[[int, int], None]  # (done, in all)


@dataclass(frozen=True)
class Answers:
    texts: list[str]  # in the order of the prompts
    truncated: int  # prompts whose beginning was cut off


class _Alive(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing, but is called at each token: a batch of a large model may take minutes."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._tell()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def answer(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    longest: int,
    window: int,
    progress: Progress = lambda done, total: None,
    batch: int = LARGEST_BATCH,
) -> Answers:
    """The model's answer to each prompt, up to end-of-text.

    longest: tokens of an answer at most, end-of-text included. window: positions that the model knows; of a prompt too
    long for both, the end is kept, at least half of the window. progress: called often; may raise to stop.
    """
    end = end_of_text(tokenizer)
    keep = max(window - longest + 1, window // 2, 1)  # of a prompt; the last token of an answer is never an input
    most = min(longest, window - keep + 1)
    # Of GPT2's own vocabulary files, a prompt may be empty for the model: then it is the end of the text before.
    whole = [encoding.ids or [end] for encoding in tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    ids = [tokens[-keep:] for tokens in whole]
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))  # the longest first: too little memory shows now
    texts = [""] * len(ids)
    done = 0
    while done < len(order):
        rows = max(1, min(batch, BATCH_TOKENS // (len(ids[order[done]]) + most)))
        taken = order[done : done + rows]
        found = _batch(model, [ids[i] for i in taken], most, end, lambda: progress(done, len(ids)))  # noqa: B023
        for i, tokens in zip(taken, found, strict=True):
            texts[i] = str(tokenizer.decode(tokens, skip_special_tokens=True))
        done += len(taken)
        progress(done, len(ids))
    return Answers(texts, sum(len(tokens) > keep for tokens in whole))


@torch.inference_mode()
def _batch(
    model: GPT2LMHeadModel, prompts: list[list[int]], most: int, end: int, tell: Callable[[], None]
) -> list[list[int]]:
    width, device = max(map(len, prompts)), next(model.parameters()).device
    inputs = torch.full((len(prompts), width), end)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, tokens in enumerate(prompts):
        inputs[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    out: Any = model.generate(
        inputs.to(device),
        attention_mask=mask.to(device),
        do_sample=False,
        num_beams=1,
        max_new_tokens=most,
        eos_token_id=end,
        pad_token_id=end,
        stopping_criteria=StoppingCriteriaList([_Alive(tell)]),
    )
    answers = out[:, width:].tolist()
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in answers]
