"""Pairs -> token shards, an index of examples and the texts themselves, for each part.

An example's tokens are those of its prompt, then those of its completion, then end-of-text.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trainer.contract.spec import Data
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import EXAMPLE
from trainer.data.pairs import PARTS, Line, PairFile, part_of
from trainer.data.prepared import Listing, Split, sha256_of
from trainer.data.shard_writer import Shards
from trainer.data.text import MIB
from trainer.storage.base import Storage

AT_ONCE = 4096  # examples, or
BYTES_AT_ONCE = 8 * MIB  # of lines, that are tokenized together: the library has a thread a core
SAMPLE = 64 * MIB  # bytes that a vocabulary is trained on at most


def sample(file: PairFile, data: Data) -> Iterator[str]:
    """What a vocabulary learns from: the training part, evenly thinned out where it is very long."""
    stride = -(-file.size // SAMPLE)
    training = (line.pair for line in file if part_of(line.pair.prompt, data) == "train")
    for pair in itertools.islice(training, 0, None, stride):
        yield pair.prompt
        yield pair.completion


@dataclass
class _Part:
    shards: Shards
    index: Path
    lines: Path
    examples: int = 0
    bytes: int = 0
    waiting: list[Line] = field(default_factory=list)
    size: int = 0  # bytes of what waits

    def add(self, line: Line, tokenizer: Tokenizer) -> None:
        self.waiting.append(line)
        self.size += len(line.content)
        if len(self.waiting) >= AT_ONCE or self.size >= BYTES_AT_ONCE:
            self.flush(tokenizer)

    def flush(self, tokenizer: Tokenizer) -> None:
        if not self.waiting:
            return
        end = vocabularies.end_of_text(tokenizer)
        texts = [line.pair.prompt for line in self.waiting] + [line.pair.completion for line in self.waiting]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        prompts, completions = encoded[: len(self.waiting)], encoded[len(self.waiting) :]
        rows = np.empty(len(self.waiting), EXAMPLE)
        rows["prompt"] = [len(ids) for ids in prompts]
        rows["tokens"] = rows["prompt"] + np.array([len(ids) + 1 for ids in completions])
        rows["start"] = self.shards.tokens + np.cumsum(rows["tokens"], dtype=np.uint64) - rows["tokens"]
        rows["line"] = [line.number for line in self.waiting]
        counted = [(*ids, end) for ids in completions]
        whole = [ids for pair in zip(prompts, counted, strict=True) for ids in pair]
        tokens, targets = (np.fromiter(itertools.chain(*ids), np.uint16) for ids in (whole, counted))
        self.shards.add(tokens, targets)
        with self.index.open("ab") as file:
            file.write(rows.tobytes())
        with self.lines.open("ab") as file:
            file.writelines(line.content + b"\n" for line in self.waiting)
        self.examples += len(self.waiting)
        self.bytes += self.size + len(self.waiting)
        self.waiting, self.size = [], 0


def write(
    storage: Storage,
    folder: str,
    file: PairFile,
    data: Data,
    tokenizer: Tokenizer,
    work: Path,
    report: Callable[[int], None],
) -> dict[str, Split]:
    """All parts, into `folder` of the bucket. report: bytes read. Raises InputError for bad lines, as PairFile says."""
    parts = {}
    for name in PARTS:
        counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
        index, lines = work / f"{name}-examples.bin", work / f"{name}.jsonl"
        index.touch()
        lines.touch()
        parts[name] = _Part(Shards(storage, folder, name, work, counts), index, lines)
    for line in file:
        parts[part_of(line.pair.prompt, data)].add(line, tokenizer)
        if line.number % AT_ONCE == 0:
            report(file.done)
    report(file.size)
    splits = {}
    for part in parts.values():
        part.flush(tokenizer)
        part.shards.close()
    for name, part in parts.items():
        listings = []
        for path in (part.index, part.lines):
            listings.append(Listing(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path)))
            storage.upload(path, f"{folder}/{path.name}")
        split = part.shards.summary(part.bytes, parts["train"].shards.counts)
        splits[str(name)] = split.model_copy(
            update={"examples": part.examples, "index": listings[0], "lines": listings[1]}
        )
    return splits
