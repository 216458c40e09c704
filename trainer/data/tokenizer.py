"""Make a vocabulary: trained on the text, GPT-2's, plain bytes, or a checkpoint's.

All are byte-level BPE, so decoding returns every text unchanged. `<|endoftext|>` in a text is always one token.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
from huggingface_hub.errors import LocalEntryNotFoundError
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from trainer.contract.errors import InputError, first_line
from trainer.contract.options import END_OF_TEXT, Data
from trainer.data.text import pieces
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

LARGEST = 1 << 16  # a token is stored as uint16
PIECE_BYTES = 1 << 13  # the library's time grows faster than the text, so it gets many short pieces
GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's names, OpenAI's names
GPT2_HUB = "openai-community/gpt2"
# The hash of GPT-2's entries in order of ids and its merges in order, as JSON. The files' layout does not matter.
GPT2_SHA256 = "54d5f3d8586c5be002cdcc233ca976a6447120ecaadc92074723b1983fb33585"
log = logging.getLogger(__name__)


def build(data: Data, sample: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that `data` asks for. A trained one learns from `sample`.

    Raise InputError if a vocabulary's files are missing or cannot be used.
    """
    if data.tokenizer == "train":
        return train(sample, data.vocabulary_size)
    if data.tokenizer == "byte":
        return from_bytes()
    if data.tokenizer == "gpt2":
        return gpt2(data.vocabulary_path)
    return from_checkpoint(data.vocabulary_path)


def train(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocabulary_size` entries, including end-of-text (id 0).

    The same texts always give the same vocabulary.
    """
    tokenizer = _byte_level(BPE())
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    # Without this, the library would learn merges of the separator's letters.
    documents = (document for text in texts for document in text.split(END_OF_TEXT) if document)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def from_bytes() -> Tokenizer:
    """Return a tokenizer of 257 entries: a byte's id is its value, 256 is end-of-text."""
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    return _byte_level(BPE(vocab=vocabulary | {END_OF_TEXT: 256}, merges=[]))


def gpt2(folder: str | None) -> Tokenizer:
    """Return GPT-2's tokenizer of 50,257 entries.

    Read its two files, in either naming, from `folder` (which may be gs://…), or from the hub if that is None. Raise
    InputError if they are missing or are not GPT-2's.
    """
    if folder is None:
        try:
            files = {name: _from_hub(GPT2_HUB, name) for name in GPT2_FILES[0]}
        except OSError as error:
            raise InputError(
                f"data.tokenizer gpt2: the hub cannot give its vocabulary ({first_line(error)}):"
                " set data.vocabularyPath to a folder with vocab.json and merges.txt"
            ) from None
        return _from_files(GPT2_HUB, lambda name: files[name].read_bytes(), GPT2_FILES[0], GPT2_SHA256)
    read = _reader(folder)
    names = next((n for n in GPT2_FILES if _exist(read, n)), None)
    if names is None:
        raise InputError(
            f"data.vocabularyPath {folder}: has neither vocab.json and merges.txt nor encoder.json and vocab.bpe:"
            " give the folder with GPT-2's two vocabulary files"
        )
    return _from_files(folder, read, names, GPT2_SHA256)


def from_checkpoint(where: str | None) -> Tokenizer:
    """Return the tokenizer of a checkpoint: a folder, gs://… or a hub id. Raise InputError if it cannot be used."""
    if where is None:
        raise InputError(
            "data.tokenizer checkpoint: set data.vocabularyPath to the checkpoint: a folder, hub id or gs://…"
        )
    folder = Path(where).expanduser()
    try:
        if "://" in where:
            content = open_storage(where).read("tokenizer.json").decode()
        elif folder.is_dir():
            if not (folder / "tokenizer.json").is_file():  # old checkpoints have only GPT-2's two files
                return _from_files(where, _reader(where), GPT2_FILES[0])
            content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", where) and not where.startswith("."):
            content = _from_hub(where, "tokenizer.json").read_text(encoding="utf-8")
        else:
            raise FileNotFoundError("there is no such folder")
    except (OSError, StorageError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.vocabularyPath {where}: no tokenizer.json there ({first_line(error)}):"
            " give a folder, gs://… or hub id that has one"
        ) from None
    return parse_tokenizer(content, f"data.vocabularyPath {where}")


def parse_tokenizer(content: str, name: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, which errors call `name`.

    Raise InputError if it is broken, is too large, has no end-of-text or does not decode text to what it was.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more exact
        raise InputError(f"{name}: tokenizer.json cannot be read ({first_line(error)}): fetch it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    entries = tokenizer.get_vocab_size()
    if entries > LARGEST:
        raise InputError(f"{name}: {entries:,} entries, and at most {LARGEST:,} fit two bytes: use another tokenizer")
    if max(tokenizer.get_vocab().values()) >= entries:
        raise InputError(f"{name}: ids above its {entries:,} entries: use a tokenizer whose ids have no gaps")
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise InputError(f"{name}: has no {END_OF_TEXT} token: use a GPT-2 checkpoint's tokenizer")
    trial = "Ab  c\n\n é\u4e2d" + END_OF_TEXT + "\n\U0001f600"
    ids = tokenizer.encode(trial, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=False) != trial:
        raise InputError(f"{name}: does not give text back unchanged, so it is not byte-level: use a GPT-2 tokenizer")
    return tokenizer


def has_other_tokens(content: str, kind: Literal["byte", "gpt2"]) -> bool:
    """Return whether a tokenizer.json has other entries or merges than `kind`. Return False if it cannot be read."""
    try:
        model = json.loads(content)["model"]
        entries, merges = model["vocab"], [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
        ordered = sorted(entries, key=lambda token: entries[token])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    if kind == "byte":
        return (ordered, merges) != ([*_letters(), END_OF_TEXT], [])
    return hashlib.sha256(json.dumps([ordered, merges]).encode()).hexdigest() != GPT2_SHA256


def encode(tokenizer: Tokenizer, text: bytes) -> NDArray[np.uint16]:
    """Return the tokens of UTF-8 text, shape (tokens,).

    They are the tokens of the whole text in one string, but encoding it in pieces is many times faster.
    """
    parts = [piece.decode("utf-8") for piece in pieces(text, PIECE_BYTES)]
    encodings = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
    if not encodings:
        return np.empty(0, np.uint16)
    return np.concatenate([np.array(encoding.ids, np.uint16) for encoding in encodings])


def end_of_text(tokenizer: Tokenizer) -> int:
    """Return the id of `<|endoftext|>`, which is also the padding token and the token before a text."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    assert token is not None, "parse_tokenizer() refuses such a tokenizer"
    return token


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` needs. `positions`: the model's longest input."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }
    config |= {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "unk", "pad")}
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _byte_level(model: BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer


def _letters() -> list[str]:
    """Return GPT-2's printable letter for each byte: the byte itself if it is printable, else the next one from 256."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _reader(where: str) -> Callable[[str], bytes]:
    """Return a function that reads a file by its name from a folder or an address."""
    if "://" in where:
        return open_storage(where).read
    return lambda name: (Path(where).expanduser() / name).read_bytes()


def _exist(read: Callable[[str], bytes], names: Iterable[str]) -> bool:
    try:
        for name in names:
            read(name)
        return True
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False


def _from_files(
    where: str, read: Callable[[str], bytes], names: tuple[str, str], sha256: str | None = None
) -> Tokenizer:
    try:
        vocabulary, merge_lines = (read(name).decode("utf-8") for name in names)
        entries: dict[str, int] = json.loads(vocabulary)
        lines = [line for line in merge_lines.splitlines() if line and not line.startswith("#version")]
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
        listed = json.dumps([sorted(entries, key=lambda token: entries[token]), merges])
        tokenizer = _byte_level(BPE(vocab=entries, merges=merges))
    except StorageError:  # not the files' fault: the bucket may be back later
        raise
    except Exception as error:  # the library raises nothing more exact
        raise InputError(
            f"data.vocabularyPath {where}: {' and '.join(names)} cannot be read ({first_line(error)}): fetch them again"
        ) from None
    if sha256 and hashlib.sha256(listed.encode()).hexdigest() != sha256:
        raise InputError(
            f"data.vocabularyPath {where}: {len(entries):,} entries and {len(merges):,} merges that are not"
            " GPT-2's 50,257 and 50,000: fetch the files again, or set data.tokenizer to checkpoint"
        )
    return parse_tokenizer(tokenizer.to_str(), f"data.vocabularyPath {where}")


def _from_hub(repository: str, name: str) -> Path:
    """Return the path of a file of the hub, from its cache on this machine or else fetched.

    Raise OSError, whose text is one line, if neither is possible.
    """
    try:
        # The cache comes first: offline, asking the hub takes 20 s.
        return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=True))
    except Exception:  # not in the cache: the request below gives the exact reason of a failure
        log.info("fetching %s of %s from the hub", name, repository)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        raise OSError("the hub cannot be reached") from None
    except Exception as error:  # of many types: no such repository, a private one, a proxy
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from None
