"""Let a trained model write texts, for scripts.generate and scripts.serve.

Each text has its own random generator, so that its seed, prompt and options decide it, whatever other texts are
written at the same time.
"""

import argparse
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scripts.support.common import UserError, add_run_arguments, bucket_url, find_run
from scripts.support.downloading import fetched
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.runs.trials import trained_spec
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # the decoded text of an incomplete character
COLDEST = 1e-5  # a lower temperature counts as 0, because dividing by it is not exact


@dataclass(frozen=True)
class Sampling:
    """Options that say how tokens are drawn."""

    tokens: int = 100  # at most
    temperature: float = 0.8  # 0 always takes the likeliest token
    top_k: int = 50  # draw among so many of the likeliest tokens; 0 means all
    top_p: float = 1.0  # draw among the likeliest tokens that together have this probability
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and the arguments that name a run, which open_writer() evaluates."""
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a GPT-2 in Hugging Face format instead of a run's model"
    )
    add_run_arguments(parser)


def open_writer(options: argparse.Namespace) -> "Writer":
    """Return a writer with the model that the options name. Download it if it is in the cloud.

    Raise UserError if there is no such model.
    """
    if options.model is not None:
        folder: Path = options.model.resolve()
        name = folder.parent.name if folder.name == "model" else folder.name  # a run's is in <run>/model
        return Writer(*load(options.model), name=name)
    storage = open_storage(bucket_url(options))
    run = find_run(storage, options.run)
    return Writer(*load(model_folder(storage, run)), name=run, trained=trained_length(storage, run))


def model_folder(storage: Storage, run: str) -> Path:
    """Return the folder of a run's model. Download it into models/ if it is in the cloud.

    Raise UserError if there is no model yet.
    """
    local = storage.local_path(paths.model(run))
    if local is not None and (local / paths.MANIFEST).is_file():
        return local
    return fetched(storage, run)


def trained_length(storage: Storage, run: str) -> int | None:
    """Return how many positions the run trained, or None if its checkpoint may know more from the start."""
    try:
        spec = trained_spec(storage, JobSpec.model_validate_json(storage.read(paths.job(run))))
    except (FileNotFoundError, ValueError):
        return None
    return None if spec.model.initialize else spec.hyperparameters.sequence_length


def load(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model and tokenizer from a folder: only safetensors, no code from the folder, no network.

    Raise UserError if the folder is not such a model.
    """
    if not (folder / "config.json").is_file():
        missing = "there is no such folder" if not folder.is_dir() else "no config.json is in it"
        raise UserError(f"{folder}: {missing}; a folder in Hugging Face format is needed, as download_model writes it")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers  # 2 s of imports with torch, so after all checks that do not need it

    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    # A damaged folder makes transformers, tokenizers or safetensors raise errors of any type.
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model in {folder} cannot be loaded: {message[:200]}") from None
    if model.config.model_type != "gpt2":
        raise UserError(f"the model in {folder} is of type {model.config.model_type}; a GPT-2 is needed")
    return model.eval(), tokenizer


class Writer:
    """A model that can write, on the GPU if there is one. Several threads may write texts at the same time."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, name: str, trained: int | None = None
    ) -> None:
        """Take a loaded model. `trained` is the number of positions that were trained, or None for all of them."""
        import torch  # as in load()

        self.name = name
        self.window = min(int(model.config.max_position_embeddings), trained or 1 << 30)  # tokens
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, self.end = tokenizer, int(tokenizer.eos_token_id)
        self.vocabulary = min(len(tokenizer), int(model.config.vocab_size))  # the rest is padding
        self.lock = threading.Lock()  # held for one token at a time, so that texts share the machine evenly

    def encode(self, prompt: str) -> list[int]:
        """Return the prompt's tokens, or end-of-text for an empty prompt. Raise UserError if it is not UTF-8."""
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError("the prompt is not text: it has bytes or half characters that are not UTF-8") from None
        with self.lock:
            return self.tokenizer(prompt, add_special_tokens=False)["input_ids"] or [self.end]

    def write(self, prompt: list[int], sampling: Sampling) -> "WrittenText":
        """Return the text after `prompt` (token ids, at least one), of which the model sees the last window - 1."""
        return WrittenText(self, prompt, sampling)


class WrittenText:
    """A text while it is written. Iterating yields after each token the new text, which may be empty."""

    def __init__(self, writer: Writer, prompt: list[int], sampling: Sampling) -> None:
        self.tokens = 0  # drawn so far
        self.finish: Literal["stop", "length"] | None = None  # at the end: "length" if it has all its tokens
        self._writer, self._prompt, self._sampling = writer, prompt, sampling
        self._pieces = self._write()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._writer.lock:
            return next(self._pieces)

    def _write(self) -> Iterator[str]:
        """Yield the pieces of the text. Hold back incomplete characters and a possible beginning of a stop."""
        ids: list[int] = []  # tokens whose last character is incomplete
        text = ""  # held back, because it may be the beginning of a stop
        finish: Literal["stop", "length"] = "length"
        for token in islice(self._draw(), self._sampling.tokens):
            if token == self._writer.end:
                finish = "stop"
                break
            self.tokens += 1
            ids.append(token)
            if (characters := self._decode(ids)).endswith(INCOMPLETE):
                yield ""
                continue
            ids, text = [], text + characters
            if self._stop(text) is not None:
                break
            held_back = self._beginning_of_stop(text)
            yield text[: len(text) - held_back]
            text = text[len(text) - held_back :]
        text += self._decode(ids)
        if (place := self._stop(text)) is not None:
            text, finish = text[:place], "stop"
        self.finish = finish
        yield text

    def _draw(self) -> Iterator[int]:
        import torch  # as in load()
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        sampling, window = self._sampling, self._writer.window
        limits = LogitsProcessorList()
        if sampling.temperature >= COLDEST:
            limits.append(TemperatureLogitsWarper(sampling.temperature))
        if 0 < sampling.top_k < self._writer.vocabulary:
            limits.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            limits.append(TopPLogitsWarper(sampling.top_p))
        generator = torch.Generator().manual_seed(sampling.seed)
        ids = list(self._prompt)
        new, cache, seen = ids[-max(window - 1, 1) :], None, 0
        while True:
            if seen + len(new) > window:
                # The window is full. Continue from its newer half, without the cache, in which positions are fixed.
                new, cache, seen = ids[-max(window // 2, 1) :], None, 0
            logits, cache = self._step(new, cache)
            seen += len(new)
            if not torch.isfinite(logits).all():
                raise UserError(f"the model {self._writer.name} gives numbers that are not finite; it is of no use")
            if sampling.temperature < COLDEST:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(torch.softmax(limits(None, logits), -1), 1, generator=generator))
            ids.append(token)
            new = [token]
            yield token

    def _step(self, new: list[int], cache: object) -> "tuple[torch.Tensor, object]":
        """Return the next token's logits and the cache.

        The logits have shape (1, vocabulary) and are fp32 on the CPU, whose generator is the same everywhere.
        """
        import torch  # as in load()

        model = self._writer.model
        with torch.inference_mode():
            inputs = torch.tensor([new], device=model.device)
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1, : self._writer.vocabulary].float().cpu(), output.past_key_values

    def _decode(self, ids: list[int]) -> str:
        decode = self._writer.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _stop(self, text: str) -> int | None:
        """Return the position of the first stop, or None."""
        return min((place for stop in self._sampling.stop if (place := text.find(stop)) >= 0), default=None)

    def _beginning_of_stop(self, text: str) -> int:
        """Return how many characters at the end of `text` may be the beginning of a stop."""
        ends = (n for stop in self._sampling.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(ends, default=0)
