"""Let a model answer many prompts in batches, always with the likeliest token.

Prompts of a batch are padded on the left. The padding is masked and takes no positions, so a prompt gets the same
answer as it would alone, unless two tokens are so nearly equally likely that the rounding of sums decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

from trainer.data.tokenizer import end_of_text

BATCH_TOKENS = 16384  # most positions of a batch
LARGEST_BATCH = 64  # prompts
EvaluationProgress = Callable[[int, int], None]  # (examples done, examples in all)


@dataclass(frozen=True)
class Answers:
    texts: list[str]  # in the order of the prompts
    truncated: int  # prompts whose beginning was cut off


class _EachToken(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion that never stops, but calls a function after each token.

    A batch of a large model may take minutes, and the function may raise to stop it.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._call()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def answer(
    model: GPT2LMHeadModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    longest: int,
    window: int,
    progress: EvaluationProgress = lambda done, total: None,
    batch: int = LARGEST_BATCH,
) -> Answers:
    """Return the model's answer to each prompt, up to end-of-text.

    Args:
        model: the model, on any device.
        tokenizer: its vocabulary.
        prompts: the prompts.
        longest: most tokens of an answer, end-of-text included.
        window: the positions that the model knows. If prompt and answer need more, the beginning of the prompt is cut
            off, but at least half of the window is left for it.
        progress: called after each token; it may raise to stop.
        batch: most prompts of a batch.
    """
    # Cut long prompts.
    end = end_of_text(tokenizer)
    longest_prompt = max(
        window - longest + 1, window // 2, 1
    )  # most tokens of a prompt; an answer's last token is never an input
    most_new = min(longest, window - longest_prompt + 1)
    # With GPT-2's own vocabulary files a prompt may have no tokens at all; the model then continues an end-of-text.
    uncut = [encoding.ids or [end] for encoding in tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
    ids = [tokens[-longest_prompt:] for tokens in uncut]
    # Answer batch by batch, the longest prompts first, so that too little memory shows at once.
    order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
    texts = [""] * len(ids)
    done = 0
    while done < len(order):
        rows = max(1, min(batch, BATCH_TOKENS // (len(ids[order[done]]) + most_new)))
        taken = order[done : done + rows]
        answers = _batch(model, [ids[i] for i in taken], most_new, end, lambda: progress(done, len(ids)))  # noqa: B023
        for i, tokens in zip(taken, answers, strict=True):
            texts[i] = str(tokenizer.decode(tokens, skip_special_tokens=True))
        done += len(taken)
        progress(done, len(ids))
    return Answers(texts, sum(len(tokens) > longest_prompt for tokens in uncut))


@torch.inference_mode()
def _batch(
    model: GPT2LMHeadModel, prompts: list[list[int]], most_new: int, end: int, each_token: Callable[[], None]
) -> list[list[int]]:
    """Return the tokens of the answer to each prompt, at most `most_new`, without end-of-text."""
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
        max_new_tokens=most_new,
        eos_token_id=end,
        pad_token_id=end,
        stopping_criteria=StoppingCriteriaList([_EachToken(each_token)]),
    )
    answers = out[:, width:].tolist()
    return [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in answers]
