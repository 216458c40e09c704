"""Encode pairs into token shards, an index of examples and a file of the texts, for each part of the data.

An example's tokens are those of its prompt, then those of its completion, then end-of-text.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trainer.contract.identity import sha256_of
from trainer.contract.options import Data
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import EXAMPLE
from trainer.data.pairs import PARTS, PairFile, PairLine, part_of
from trainer.data.prepared import Listing, Split
from trainer.data.shard_writer import ShardWriter
from trainer.data.text import MIB
from trainer.storage.base import Storage

# The library tokenizes with a thread per core, so it gets this many examples or bytes of lines at once.
EXAMPLES_AT_ONCE = 4096
BYTES_AT_ONCE = 8 * MIB
SAMPLE_BYTES = 64 * MIB  # most bytes that a vocabulary is trained on


def vocabulary_sample(file: PairFile, data: Data) -> Iterator[str]:
    """Yield the texts that a vocabulary learns from: the training part, thinned out evenly if it is very long."""
    stride = -(-file.size // SAMPLE_BYTES)
    training = (line.pair for line in file if part_of(line.pair.prompt, data) == "train")
    for pair in itertools.islice(training, 0, None, stride):
        yield pair.prompt
        yield pair.completion


@dataclass
class _SplitEncoder:
    """The files of one part as they grow, and the lines that wait to be tokenized together."""

    shards: ShardWriter
    index: Path
    lines: Path
    examples: int = 0
    bytes: int = 0
    waiting: list[PairLine] = field(default_factory=list)
    waiting_bytes: int = 0

    def add(self, line: PairLine, tokenizer: Tokenizer) -> None:
        self.waiting.append(line)
        self.waiting_bytes += len(line.content)
        if len(self.waiting) >= EXAMPLES_AT_ONCE or self.waiting_bytes >= BYTES_AT_ONCE:
            self.flush(tokenizer)

    def flush(self, tokenizer: Tokenizer) -> None:
        """Tokenize the waiting lines and append them to the part's files."""
        if not self.waiting:
            return
        # Tokenize prompts and completions in one call.
        end = vocabularies.end_of_text(tokenizer)
        texts = [line.pair.prompt for line in self.waiting] + [line.pair.completion for line in self.waiting]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        prompts, completions = encoded[: len(self.waiting)], encoded[len(self.waiting) :]
        # The index: one row per example.
        rows = np.empty(len(self.waiting), EXAMPLE)
        rows["prompt"] = [len(ids) for ids in prompts]
        rows["tokens"] = rows["prompt"] + np.array([len(ids) + 1 for ids in completions])
        rows["start"] = self.shards.tokens + np.cumsum(rows["tokens"], dtype=np.uint64) - rows["tokens"]
        rows["line"] = [line.number for line in self.waiting]
        # The shards: all tokens, of which the completions and end-of-text are targets.
        target_ids = [(*ids, end) for ids in completions]
        all_ids = [ids for pair in zip(prompts, target_ids, strict=True) for ids in pair]
        tokens, targets = (np.fromiter(itertools.chain(*ids), np.uint16) for ids in (all_ids, target_ids))
        self.shards.add(tokens, targets)
        # The files.
        with self.index.open("ab") as file:
            file.write(rows.tobytes())
        with self.lines.open("ab") as file:
            file.writelines(line.content + b"\n" for line in self.waiting)
        self.examples += len(self.waiting)
        self.bytes += self.waiting_bytes + len(self.waiting)
        self.waiting, self.waiting_bytes = [], 0


def write_pairs(
    storage: Storage,
    folder: str,
    file: PairFile,
    data: Data,
    tokenizer: Tokenizer,
    work: Path,
    report: Callable[[int], None],
) -> dict[str, Split]:
    """Encode all parts of a file and upload them. Return each part's name and description.

    Args:
        storage: the bucket.
        folder: the folder of the bucket that receives the files.
        file: the pairs.
        data: the fractions that decide which part a pair belongs to.
        tokenizer: the vocabulary.
        work: a folder on this machine for files that are not complete yet.
        report: called with the number of bytes read so far.

    Raises:
        InputError: for bad lines, as PairFile does.
    """
    # Open the files of each part.
    parts = {}
    for name in PARTS:
        counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
        index, lines = work / f"{name}-examples.bin", work / f"{name}.jsonl"
        index.touch()
        lines.touch()
        parts[name] = _SplitEncoder(ShardWriter(storage, folder, name, work, counts), index, lines)
    # Encode line by line.
    for line in file:
        parts[part_of(line.pair.prompt, data)].add(line, tokenizer)
        if line.number % EXAMPLES_AT_ONCE == 0:
            report(file.done)
    report(file.size)
    for part in parts.values():
        part.flush(tokenizer)
        part.shards.close()
    # Upload the indexes and texts, and describe the parts.
    splits = {}
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
