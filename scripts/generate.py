"""Write text with a trained model: the run's own, or any GPT-2 in Hugging Face format from a folder."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common import UserError, add_run_arguments, bucket_url, find_run, run_main
from scripts.download_model import fetched
from trainer import manifest
from trainer.spec import JobSpec
from trainer.storage import Storage, open_storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_folder(storage: Storage, run: str) -> Path:
    """The run's model on this machine, fetched into models/ if it is in the cloud. UserError if there is none yet."""
    local = storage.local_path(f"runs/{run}/model")
    if local is not None and (local / manifest.NAME).is_file():
        return local
    return fetched(storage, run)


def trained_length(storage: Storage, run: str) -> int | None:
    """How many positions the run trained, in tokens; None if the model knew more from the start."""
    try:
        spec = JobSpec.model_validate_json(storage.read(f"runs/{run}/job.json"))
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
    return model.eval(), tokenizer


def continuations(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: list[int],
    *,
    tokens: int,
    temperature: float,
    top_k: int,
    window: int,
    show: Callable[[str], None],
) -> str:
    """The text after `prompt` (token ids), up to `tokens` tokens or the end of the text; `show` gets it as it comes.

    The model sees at most the last `window` tokens; temperature 0 always takes the likeliest, top_k 0 allows all.
    """
    import torch
    from transformers.generation.streamers import BaseStreamer

    class Shown(BaseStreamer):  # type: ignore[misc]
        """Shows whole characters only: one may be spread over several tokens."""

        def __init__(self) -> None:
            self.ids: list[int] = []
            self.text = ""

        def start(self) -> None:
            self.prompt_follows = True

        def put(self, value: torch.Tensor) -> None:
            if self.prompt_follows:
                self.prompt_follows = False
                return
            self.ids += value.flatten().tolist()
            text = tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                self.flush(text)

        def flush(self, text: str) -> None:
            show(text[len(self.text) :])
            self.text = text

        def end(self) -> None:
            pass

    end = tokenizer.eos_token_id
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    padding = list(range(len(tokenizer), model.config.vocab_size))
    shown = Shown()
    seen = prompt[-(window - 1) :]
    while len(shown.ids) < tokens and end not in shown.ids:
        shown.start()
        model.generate(
            context := torch.tensor([seen]),
            attention_mask=torch.ones_like(context),
            max_new_tokens=min(tokens - len(shown.ids), window - len(seen)),
            pad_token_id=end,
            eos_token_id=end,
            suppress_tokens=padding or None,
            streamer=shown,
            **sampling,
        )
        # The window is full: go on from its newer half, since tokens cannot change their position in a cache.
        seen = (prompt + shown.ids)[-(window // 2) :]
    shown.flush(tokenizer.decode(shown.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return shown.text


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 18 digits")
    return int(text)


def positive(text: str) -> int:
    if (number := whole_number(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100; 0 always takes the likeliest token")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.generate", description=__doc__)
    parser.add_argument("prompt", help="the beginning of the text; an empty one starts a text of its own")
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model in Hugging Face format instead of a run's"
    )
    parser.add_argument("--tokens", type=positive, default=100, help="how many to write at most (default %(default)s)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.8, help="0 is always the likeliest token (default %(default)s)"
    )
    parser.add_argument(
        "--top-k", type=whole_number, default=50, help="choose among so many, 0 is all (default %(default)s)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the choice (default %(default)s)")
    parser.add_argument("--samples", type=positive, default=1, help="how many texts (default %(default)s)")
    add_run_arguments(parser)
    options = parser.parse_args(arguments)

    trained = None
    folder = options.model
    if folder is None:
        storage = open_storage(bucket_url(options))
        run = find_run(storage, options.run)
        folder = model_folder(storage, run)
        trained = trained_length(storage, run)
    model, tokenizer = load(folder)
    positions = int(model.config.max_position_embeddings)
    window = min(positions, trained or positions)
    ids = tokenizer(options.prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    if len(ids) >= window:
        print(f"the prompt has {len(ids)} tokens, the model sees the last {window - 1} of them", file=sys.stderr)

    import torch

    torch.manual_seed(options.seed)
    prompt = f"\033[1m{options.prompt}\033[0m" if sys.stdout.isatty() and options.prompt else options.prompt
    for sample in range(options.samples):
        if options.samples > 1:
            print(f"{'' if sample == 0 else chr(10)}--- {sample + 1} of {options.samples} ---")
        print(prompt, end="", flush=True)
        continuations(
            model,
            tokenizer,
            ids,
            tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            window=window,
            show=lambda text: print(text, end="", flush=True),
        )
        print()
    return 0


if __name__ == "__main__":
    run_main(main)
