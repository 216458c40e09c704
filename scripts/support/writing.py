"""A trained model that writes: what scripts.generate and scripts.serve share.

Texts are drawn token by token, each with a generator of its own: the seed, the prompt and the options decide a text,
not what else is being written.
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

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character are decoded to
COLDEST = 1e-5  # a lower temperature is taken for 0: dividing by it is no longer exact


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    tokens: how many at most. temperature: 0 always takes the likeliest. top_k: among so many, 0 is all. top_p: among
    the likeliest that together have this probability. stop: the text ends before the first of these.
    """

    tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model and which run; open_writer() takes what was parsed."""
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a GPT-2 in Hugging Face format instead of a run's model"
    )
    add_run_arguments(parser)


def open_writer(options: argparse.Namespace) -> "Writer":
    """The model that add_model_arguments() asked for, fetched if it is in the cloud. Raises UserError."""
    if options.model is not None:
        folder: Path = options.model.resolve()
        name = folder.parent.name if folder.name == "model" else folder.name  # a run's is in <run>/model
        return Writer(*load(options.model), name=name)
    storage = open_storage(bucket_url(options))
    run = find_run(storage, options.run)
    return Writer(*load(model_folder(storage, run)), name=run, trained=trained_length(storage, run))


def model_folder(storage: Storage, run: str) -> Path:
    """The run's model on this machine, fetched into models/ if it is in the cloud. UserError if there is none yet."""
    local = storage.local_path(paths.model(run))
    if local is not None and (local / paths.MANIFEST).is_file():
        return local
    return fetched(storage, run)


def trained_length(storage: Storage, run: str) -> int | None:
    """How many positions the run trained, in tokens; None if the model knew more from the start."""
    try:
        spec = trained_spec(storage, JobSpec.model_validate_json(storage.read(paths.job(run))))
    except (FileNotFoundError, ValueError):
        return None
    return None if spec.model.initialize else spec.hyperparameters.sequence_length


def load(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer from a folder: safetensors only, no code from the folder, no network.

    Raises UserError if the folder is not such a model.
    """
    if not (folder / "config.json").is_file():
        missing = "there is no such folder" if not folder.is_dir() else "no config.json is in it"
        raise UserError(f"{folder}: {missing}; a folder in Hugging Face format is needed, as download_model writes it")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers  # takes seconds, so after all that can be said without it

    transformers.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (
        Exception
    ) as error:  # whatever a damaged or foreign folder makes transformers, tokenizers or safetensors raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model in {folder} cannot be loaded: {words[:200]}") from None
    if model.config.model_type != "gpt2":
        raise UserError(f"the model in {folder} is of type {model.config.model_type}; a GPT-2 is needed")
    return model.eval(), tokenizer


class Writer:
    """A model ready to write, on the GPU if there is one. Several threads may write texts at the same time."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, name: str, trained: int | None = None
    ) -> None:
        """trained: how many positions were trained, in tokens, if not all of them."""
        import torch

        self.name = name
        self.window = min(int(model.config.max_position_embeddings), trained or 1 << 30)  # tokens
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer, self.end = tokenizer, int(tokenizer.eos_token_id)
        self.vocabulary = min(len(tokenizer), int(model.config.vocab_size))  # the rest is padding
        self.lock = threading.Lock()  # for a token at a time, so that texts share the machine evenly

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens; of an empty one the end of the text before. Raises UserError."""
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError("the prompt is not text: it has bytes or half characters that are not UTF-8") from None
        with self.lock:
            return self.tokenizer(prompt, add_special_tokens=False)["input_ids"] or [self.end]

    def write(self, prompt: list[int], sampling: Sampling) -> "Text":
        """The text after `prompt` (token ids, at least one), of which the last window - 1 are seen."""
        return Text(self, prompt, sampling)


class Text:
    """A text while it is written. Iterate: after each token comes what can be shown of it, which may be nothing.

    tokens: how many were drawn so far. finish: at the end, "length" if it has all its tokens, else "stop".
    """

    def __init__(self, writer: Writer, prompt: list[int], sampling: Sampling) -> None:
        self.tokens = 0
        self.finish: Literal["stop", "length"] | None = None
        self._writer, self._prompt, self._sampling = writer, prompt, sampling
        self._pieces = self._write()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._writer.lock:
            return next(self._pieces)

    def _write(self) -> Iterator[str]:
        ids: list[int] = []  # whose last character is not whole yet: one may be spread over several tokens
        text = ""  # which may be the beginning of a stop
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
            kept = self._beginning_of_stop(text)
            yield text[: len(text) - kept]
            text = text[len(text) - kept :]
        text += self._decode(ids)
        if (place := self._stop(text)) is not None:
            text, finish = text[:place], "stop"
        self.finish = finish
        yield text

    def _draw(self) -> Iterator[int]:
        import torch
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        sampling, window = self._sampling, self._writer.window
        limits = LogitsProcessorList()
        if sampling.temperature >= COLDEST:
            limits.append(TemperatureLogitsWarper(sampling.temperature))
        if 0 < sampling.top_k < self._writer.vocabulary:
            limits.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            limits.append(TopPLogitsWarper(sampling.top_p))
        chance = torch.Generator().manual_seed(sampling.seed)
        ids = list(self._prompt)
        new, cache, seen = ids[-max(window - 1, 1) :], None, 0
        while True:
            if seen + len(new) > window:
                # The window is full: go on from its newer half, since tokens cannot change their position in a cache.
                new, cache, seen = ids[-max(window // 2, 1) :], None, 0
            logits, cache = self._step(new, cache)
            seen += len(new)
            if not torch.isfinite(logits).all():
                raise UserError(f"the model {self._writer.name} gives numbers that are not finite; it is of no use")
            if sampling.temperature < COLDEST:
                drawn = int(logits.argmax())
            else:
                drawn = int(torch.multinomial(torch.softmax(limits(None, logits), -1), 1, generator=chance))
            ids.append(drawn)
            new = [drawn]
            yield drawn

    def _step(self, new: list[int], cache: object) -> "tuple[torch.Tensor, object]":
        """Logits of the next token (1 x vocabulary, fp32 on the CPU, where chance is the same everywhere)."""
        import torch

        model = self._writer.model
        with torch.inference_mode():
            inputs = torch.tensor([new], device=model.device)
            found = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1, : self._writer.vocabulary].float().cpu(), found.past_key_values

    def _decode(self, ids: list[int]) -> str:
        decode = self._writer.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _stop(self, text: str) -> int | None:
        """Where the first stop begins."""
        return min((place for stop in self._sampling.stop if (place := text.find(stop)) >= 0), default=None)

    def _beginning_of_stop(self, text: str) -> int:
        """How many characters at the end of `text` may be the beginning of a stop."""
        ends = (n for stop in self._sampling.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(ends, default=0)
