"""Text by the model as it is at evaluations, for the report.

Nothing of the run depends on it: tokens are drawn by a generator of their own, gradients and modules stay as they
are, and all of it takes at most a hundredth of the time that this trainer trains.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

from trainer.contract.spec import JobSpec
from trainer.runs import samples
from trainer.runs.samples import Sample
from trainer.storage.base import Storage

SHARE, LONGEST = 0.01, 5.0  # of the time of training; seconds of one sample
PROMPT, TOKENS = 16, 64  # tokens; the second at most, and at least one
TEMPERATURE, TOP_K = 0.8, 40


class Sampler:
    """Of one trainer; only the first one takes samples. Whatever goes wrong is said and no more."""

    def __init__(
        self,
        storage: Storage,
        spec: JobSpec,
        model: GPT2LMHeadModel,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        log: Callable[[str], None],
    ) -> None:
        """prompt: token ids that every sample continues, at most half of the model's positions."""
        self._storage, self._run, self._log = storage, spec.run, log
        self._model, self._tokenizer, self._seed = model, tokenizer, spec.hyperparameters.seed
        self._prompt = list(prompt)
        self._writer = ThreadPoolExecutor(1, "samples")
        self._begun, self._spent = time.monotonic(), 0.0

    def take(self, step: int) -> None:
        """The model is in eval mode and its parameters are here."""
        begun = time.monotonic()
        try:
            text = self._continue(begun + min(SHARE * (begun - self._begun) - self._spent, LONGEST))
            prompt = self._tokenizer.decode(self._prompt)
            self._writer.submit(self._write, Sample(step=step, time=time.time(), prompt=prompt, text=text))
        except Exception as error:
            self._log(f"no sample of step {step} ({error})")
        self._spent += time.monotonic() - begun

    @torch.no_grad()
    def _continue(self, deadline: float) -> str:
        """The same seed and prompt each time: what differs is the model."""
        chance = torch.Generator().manual_seed(self._seed)
        device, vocabulary = next(self._model.parameters()).device, self._tokenizer.get_vocab_size()
        ids = list(self._prompt)
        room = min(TOKENS, self._model.config.n_positions - len(ids))
        while len(ids) < len(self._prompt) + room:
            inputs = torch.tensor([ids], device=device)
            hidden = self._model.transformer(inputs, use_cache=False).last_hidden_state[0, -1]
            logits = (self._model.lm_head.weight[:vocabulary] @ hidden).float().cpu() / TEMPERATURE
            best, places = torch.topk(logits, min(TOP_K, vocabulary))
            drawn = int(places[torch.multinomial(torch.softmax(best, 0), 1, generator=chance)])
            if drawn == self._model.config.eos_token_id:
                break
            ids.append(drawn)
            if time.monotonic() > deadline:
                break
        return str(self._tokenizer.decode(ids[len(self._prompt) :]))

    def _write(self, sample: Sample) -> None:
        try:
            samples.add(self._storage, self._run, sample)
        except Exception as error:  # storage away: the next one is written
            self._log(f"the sample of step {sample.step} could not be written ({error})")

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.shutdown()
