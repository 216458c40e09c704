"""Let the model write a sample at each evaluation, for the report.

The run does not depend on it: a separate generator draws the tokens, gradients and modules do not change, and all
samples together take at most a hundredth of the time that this trainer trains.
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

SHARE = 0.01  # most of the training time that all samples may take
LONGEST = 5.0  # seconds of one sample
PROMPT_TOKENS = 16
SAMPLE_TOKENS = 64  # at most; a sample that takes too long ends earlier, but has at least one
TEMPERATURE, TOP_K = 0.8, 40


class Sampler:
    """A writer of samples. Only the first trainer has one. A sample that fails is logged, and the run continues."""

    def __init__(
        self,
        storage: Storage,
        spec: JobSpec,
        model: GPT2LMHeadModel,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        log: Callable[[str], None],
    ) -> None:
        """Prepare to sample.

        Args:
            storage: the bucket.
            spec: the run; its seed starts the generator that draws tokens.
            model: the trained model.
            tokenizer: its vocabulary.
            prompt: token ids that every sample continues, at most half of the model's positions.
            log: called with a line about a sample that failed.
        """
        self._storage, self._run, self._log = storage, spec.run, log
        self._model, self._tokenizer, self._seed = model, tokenizer, spec.hyperparameters.seed
        self._prompt = list(prompt)
        self._writer = ThreadPoolExecutor(1, "samples")
        self._created, self._spent = time.monotonic(), 0.0

    def take(self, step: int) -> None:
        """Write a sample. The model must be in eval mode and its parameters complete on this machine."""
        started = time.monotonic()
        try:
            text = self._continue(started + min(SHARE * (started - self._created) - self._spent, LONGEST))
            prompt = self._tokenizer.decode(self._prompt)
            self._writer.submit(self._write, Sample(step=step, time=time.time(), prompt=prompt, text=text))
        except Exception as error:
            self._log(f"no sample of step {step} ({error})")
        self._spent += time.monotonic() - started

    @torch.no_grad()
    def _continue(self, deadline: float) -> str:
        """Continue the prompt until the deadline. Seed and prompt are always the same, so only the model differs."""
        generator = torch.Generator().manual_seed(self._seed)
        device, vocabulary = next(self._model.parameters()).device, self._tokenizer.get_vocab_size()
        ids = list(self._prompt)
        most_new = min(SAMPLE_TOKENS, self._model.config.n_positions - len(ids))
        while len(ids) < len(self._prompt) + most_new:
            inputs = torch.tensor([ids], device=device)
            hidden = self._model.transformer(inputs, use_cache=False).last_hidden_state[0, -1]
            logits = (self._model.lm_head.weight[:vocabulary] @ hidden).float().cpu() / TEMPERATURE
            best_logits, best_ids = torch.topk(logits, min(TOP_K, vocabulary))
            token = int(best_ids[torch.multinomial(torch.softmax(best_logits, 0), 1, generator=generator)])
            if token == self._model.config.eos_token_id:
                break
            ids.append(token)
            if time.monotonic() > deadline:
                break
        return str(self._tokenizer.decode(ids[len(self._prompt) :]))

    def _write(self, sample: Sample) -> None:
        try:
            samples.add(self._storage, self._run, sample)
        except Exception as error:  # if the storage is back in time, the next sample is written
            self._log(f"the sample of step {sample.step} could not be written ({error})")

    def close(self) -> None:
        """Wait until all samples are written."""
        self._writer.shutdown()
