"""Make the tokenizer and token shards of a text, once for each text and vocabulary.

trainer/data/prepared.py describes the files. The text is streamed, so memory does not grow with it.
"""

import errno
import hashlib
import logging
import math
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainer.contract import paths
from trainer.contract.errors import InputError
from trainer.contract.identity import fingerprint as fingerprint_of
from trainer.contract.options import Data
from trainer.data import pair_encoding
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import fits
from trainer.data.pairs import PARTS, PairFile, SplitName, count_problem
from trainer.data.prepared import DataProgress, Manifest, Prepared, cache_folder, damaged, fetch, find_prepared
from trainer.data.shard_writer import ShardWriter
from trainer.data.text import MIB, chunks, decode, held_out_start, read_bytes, size_of
from trainer.storage.base import Conflict, Storage
from trainer.storage.factory import open_storage

SAMPLE_BYTES = 64 * MIB  # most bytes that a vocabulary is trained on, spread evenly: more bytes hardly change a merge
SINGLE_PROCESS_BYTES = 32 * MIB  # below this, starting processes takes longer than it saves
log = logging.getLogger(__name__)


def prepare(
    storage: Storage,
    data: Data,
    fingerprint: str,
    progress: DataProgress | None = None,
    *,
    cache: Path | None = None,
    processes: int | None = None,
) -> Prepared:
    """Tokenize the text at `data.path` and return the prepared data. Return at once if that was done before.

    Memory does not grow with the text. Several machines may prepare at once: all make the same files, and the first
    manifest counts.

    Args:
        storage: the bucket that receives the files.
        data: the path of the text (in the bucket, or gs://… in another one), its format and its vocabulary.
        fingerprint: the hash that the text must have.
        progress: called with the bytes tokenized so far and the bytes of the text.
        cache: the folder for a text that is fetched from a gs:// bucket; cache_folder() if None.
        processes: the number of processes that tokenize; one per core if None.

    Raises:
        InputError: if the text, the vocabulary or the disk cannot be used; its message is one line.
    """
    prepared = find_prepared(storage, data, fingerprint)
    if prepared:
        return prepared
    name = f"data.path {data.path}"
    report = progress or (lambda done, total: None)
    try:
        # Find the text, and where its held-out part begins.
        text = _local_text(storage, data.path, fingerprint, cache or cache_folder(), name)
        size = size_of(text, name)
        folder = paths.tokens(fingerprint, data.tokens_key())
        pairs = PairFile(text, name, data.skip_bad_lines) if data.format == "pairs" else None
        border = size if pairs else held_out_start(text, size, data.validation_fraction)
        if not pairs and not 0 < border < size:
            raise InputError(f"{name}: {size} bytes are too small to train on: give a longer text")
        # A token takes two bytes, and is about two bytes of text or more, except a byte token. Pairs keep their texts.
        needed = (2 * size if data.tokenizer == "byte" else size) + (size if pairs else 0)
        _check_disk(storage.local_path(folder), needed, name)
        # Make the vocabulary.
        sample = pair_encoding.vocabulary_sample(pairs, data) if pairs else _vocabulary_sample(text, border, name)
        tokenizer, content = _claim_tokenizer(storage, folder, data, sample)
        # Encode all parts.
        with tempfile.TemporaryDirectory(prefix="gpt2-tokens-") as work:
            if pairs:
                parts = pair_encoding.write_pairs(
                    storage, folder, pairs, data, tokenizer, Path(work), lambda done: report(done, size)
                )
            else:
                encoder = _TextEncoder(storage, folder, text, name, tokenizer, content, Path(work), processes)
                train = encoder.split("train", 0, border, lambda done: report(done, size))
                validation = encoder.split("validation", border, size, lambda done: report(border + done, size))
                parts = {
                    "train": train.summary(border, train.counts),
                    "validation": validation.summary(size - border, train.counts),
                }
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{name}: the disk became full while its tokens were written: free some space") from None
    # Write the manifest, which makes the data exist.
    manifest = Manifest(
        fingerprint=fingerprint,
        tokenizer=data.tokenizer,
        tokenizer_sha256=hashlib.sha256(content).hexdigest(),
        vocabulary_size=tokenizer.get_vocab_size(),
        skipped=pairs.skipped if pairs else 0,
        **parts,
    )
    return _commit(storage, folder, manifest, lambda: find_prepared(storage, data, fingerprint))


def check_enough(prepared: Prepared, sequence_length: int, batch_size: int) -> None:
    """Raise InputError if a part of the data has too few tokens or pairs.

    A batch must not hold a sequence twice, and there must be something to validate on. Pairs also need a test part, and
    no completion may be longer than a sequence of `sequence_length` tokens.
    """
    if prepared.manifest.test is not None:
        _check_pairs(prepared, sequence_length, batch_size)
        return
    for name, split, sequences, cure in (
        ("training", prepared.manifest.train, batch_size, "lower batchSize or sequenceLength"),
        ("held-out", prepared.manifest.validation, 1, "raise data.validationFraction, lower sequenceLength"),
    ):
        needed = sequences * sequence_length + 1
        if split.tokens < needed:
            raise InputError(
                f"data.path: the {name} part of the text has {split.tokens:,} tokens, and {needed:,} are needed"
                f" ({sequences} x sequenceLength {sequence_length} + 1): give a longer text, or {cure}"
            )


def _check_pairs(prepared: Prepared, sequence_length: int, batch_size: int) -> None:
    examples = {part: prepared.examples(part) for part in PARTS}
    if problem := count_problem({part: len(rows) for part, rows in examples.items()}, batch_size):
        raise InputError(f"data.path: {problem}")
    too_long = [row for rows in examples.values() for row in rows[~fits(rows, sequence_length)]]
    if too_long:
        line, tokens = min((int(row["line"]), int(row["tokens"] - row["prompt"])) for row in too_long)
        others = f" (as {len(too_long) - 1:,} others)" if len(too_long) > 1 else ""
        raise InputError(
            f"data.path: the completion in line {line}{others} has {tokens:,} tokens with end-of-text, more than"
            f" sequenceLength, {sequence_length:,}: shorten it, or raise sequenceLength"
        )


@dataclass(frozen=True)
class _TextEncoder:
    storage: Storage
    folder: str  # in the bucket
    text: Path
    name: str  # of the text in errors
    tokenizer: Tokenizer
    content: bytes  # of tokenizer.json
    work: Path
    processes: int | None

    def split(self, name: SplitName, start: int, end: int, report: Callable[[int], None]) -> ShardWriter:
        """Encode bytes start to end of the text into shards, and call `report` with the number of bytes done.

        The cuts depend on the text alone, and so do the tokens.
        """
        counts = np.zeros(self.tokenizer.get_vocab_size(), np.int64)
        shards = ShardWriter(self.storage, self.folder, name, self.work, counts)
        for done, tokens in self._encoded(start, end):
            shards.add(tokens)
            report(done - start)
        shards.close()
        return shards

    def _encoded(self, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        """Yield the tokens of each chunk with the byte at which the chunk ends."""
        processes = self.processes or (1 if end - start <= SINGLE_PROCESS_BYTES else os.cpu_count() or 1)
        chunk_bounds = chunks(self.text, start, end)
        if processes == 1:  # the library itself uses a thread per core
            for chunk in chunk_bounds:
                yield chunk[1], _encode(self.text, self.name, self.tokenizer, chunk)
            return
        # Threads would help little, because the interpreter's lock is needed for each token. Processes are spawned,
        # because forking is unsafe with threads.
        context = multiprocessing.get_context("spawn")
        arguments = (self.text, self.name, self.content)
        with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
            waiting: deque[tuple[int, Future[NDArray[np.uint16]]]] = deque()
            try:
                for chunk in chunk_bounds:
                    waiting.append((chunk[1], pool.submit(_encode_in_worker, chunk)))
                    if len(waiting) > 3 * processes:  # bounds the memory of encoded chunks
                        done, future = waiting.popleft()
                        yield done, future.result()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
            except BrokenProcessPool:
                raise InputError(f"{self.name}: a process that tokenizes was killed: is there enough memory?") from None
            finally:
                pool.shutdown(cancel_futures=True)


_worker: tuple[Path, str, Tokenizer] | None = None  # in a spawned process: the text, its name, the tokenizer


def _start_worker(text: Path, name: str, content: bytes) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    _worker = (text, name, Tokenizer.from_str(content.decode()))


def _encode_in_worker(chunk: tuple[int, int]) -> NDArray[np.uint16]:
    assert _worker is not None
    return _encode(*_worker, chunk)


def _encode(text: Path, name: str, tokenizer: Tokenizer, chunk: tuple[int, int]) -> NDArray[np.uint16]:
    content = read_bytes(text, *chunk)
    decode(content, chunk[0], name)
    return vocabularies.encode(tokenizer, content)


def _vocabulary_sample(text: Path, end: int, name: str) -> Iterator[str]:
    chunk_bounds = list(chunks(text, 0, end))
    stride = math.ceil(len(chunk_bounds) * MIB / SAMPLE_BYTES)
    for start, stop in chunk_bounds[::stride]:
        yield decode(read_bytes(text, start, stop), start, name)


def _claim_tokenizer(storage: Storage, folder: str, data: Data, sample: Iterator[str]) -> tuple[Tokenizer, bytes]:
    """Return the tokenizer and the content of its file.

    The first machine to write the file decides, so that machines that prepare at once make equal shards.
    """
    path = f"{folder}/{paths.TOKENIZER}"
    try:
        content = storage.read(path)
    except FileNotFoundError:
        log.info("%s: making the vocabulary (%s)", data.path, data.tokenizer)
        content = vocabularies.build(data, sample).to_str().encode()
        try:
            storage.write(path, content, if_generation=0)
        except Conflict:
            content = storage.read(path)
    return vocabularies.parse_tokenizer(content.decode(), f"{storage.url}/{path}"), content


def _commit(storage: Storage, folder: str, manifest: Manifest, winner: Callable[[], Prepared | None]) -> Prepared:
    """Write the manifest, or return what `winner` finds if another machine wrote it first."""
    path = f"{folder}/{paths.MANIFEST}"
    content = manifest.model_dump_json(by_alias=True, indent=2).encode()
    try:
        generation = storage.read_generation(path)[1]  # an existing manifest is invalid here: replace it
    except FileNotFoundError:
        generation = 0
    try:
        storage.write(path, content, if_generation=generation)
    except Conflict:
        prepared = winner()
        if prepared is None:
            raise InputError(damaged(storage, path, folder)) from None
        return prepared
    return Prepared(storage, folder, manifest)


def _local_text(storage: Storage, path: str, fingerprint: str, cache: Path, name: str) -> Path:
    """Return the path of the text on this machine. Fetch it if the bucket is elsewhere."""
    if path.startswith("gs://"):  # the text is in another bucket; only its tokens go into the run's
        bucket, _, path = path.removeprefix("gs://").partition("/")
        storage = open_storage(f"gs://{bucket}")
    local = storage.local_path(path)
    if local is not None:
        size_of(local, name)
        if fingerprint_of(local) != fingerprint:
            raise InputError(f"{name}: not the text that the run was declared with: run `pulumi up` again")
        return local
    size = storage.size(path)
    if size is None:
        raise InputError(f"{name}: not in {storage.url}: upload it with `python -m scripts.upload_data`")
    target = cache / fingerprint / path.rpartition("/")[2]
    _check_disk(target, 2 * size, name)
    fetch(storage, path, target, size, fingerprint)
    return target


def _check_disk(folder: Path | None, needed: int, name: str) -> None:
    if folder is None:
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{name}: its tokens need about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free at {folder}:"
            " free some space"
        )
