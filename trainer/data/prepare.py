"""Text -> tokenizer and token shards in the bucket (trainer/data/prepared.py), made once for each text and vocabulary.

By streaming: memory does not grow with the text.
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
from trainer.contract.spec import Data
from trainer.data import pair_encoding
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import fits
from trainer.data.pairs import PARTS, PairFile, count_problem
from trainer.data.prepared import Manifest, Name, Prepared, Progress, cache_folder, damaged, fetch, find
from trainer.data.shard_writer import Shards
from trainer.data.text import MIB, chunks, decode, held_out_start, read, size_of
from trainer.storage.base import Conflict, Storage
from trainer.storage.factory import open_storage

SAMPLE = 64 * MIB  # bytes that a vocabulary is trained on at most, spread evenly: more changes hardly a merge
ALONE = 32 * MIB  # bytes below which starting processes takes longer than it saves
log = logging.getLogger(__name__)


def prepare(
    storage: Storage,
    data: Data,
    fingerprint: str,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    processes: int | None = None,
) -> Prepared:
    """Tokenizes the text at `data.path` (in the bucket, or gs://… in another); at once if that was done before.

    Memory does not grow with the text. May run in several places at once: all make the same files, and the first
    manifest counts. `cache`: where the text of a gs:// bucket goes. `processes`: default all cores.
    Raises InputError, one line, for whatever is wrong with the text, the vocabulary or the disk.
    """
    prepared = find(storage, data, fingerprint)
    if prepared:
        return prepared
    name = f"data.path {data.path}"
    report = progress or (lambda done, total: None)
    try:
        text = _local_text(storage, data.path, fingerprint, cache or cache_folder(), name)
        size = size_of(text, name)
        folder = paths.tokens(fingerprint, data.tokens_key())
        pairs = PairFile(text, name, data.skip_bad_lines) if data.format == "pairs" else None
        border = size if pairs else held_out_start(text, size, data.validation_fraction)
        if not pairs and not 0 < border < size:
            raise InputError(f"{name}: {size} bytes are too small to train on: give a longer text")
        needed = (2 * size if data.tokenizer == "byte" else size) + (size if pairs else 0)  # pairs: their texts, too
        _check_disk(storage.local_path(folder), needed, name)
        sample = pair_encoding.sample(pairs, data) if pairs else _sample(text, border, name)
        tokenizer, content = _claim_tokenizer(storage, folder, data, sample)
        with tempfile.TemporaryDirectory(prefix="gpt2-tokens-") as work:
            if pairs:
                parts = pair_encoding.write(
                    storage, folder, pairs, data, tokenizer, Path(work), lambda done: report(done, size)
                )
            else:
                run = _Encoding(storage, folder, text, name, tokenizer, content, Path(work), processes)
                train = run.split("train", 0, border, lambda done: report(done, size))
                validation = run.split("validation", border, size, lambda done: report(border + done, size))
                parts = {
                    "train": train.summary(border, train.counts),
                    "validation": validation.summary(size - border, train.counts),
                }
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{name}: the disk became full while its tokens were written: free some space") from None
    manifest = Manifest(
        fingerprint=fingerprint,
        tokenizer=data.tokenizer,
        tokenizer_sha256=hashlib.sha256(content).hexdigest(),
        vocabulary_size=tokenizer.get_vocab_size(),
        skipped=pairs.skipped if pairs else 0,
        **parts,
    )
    return _commit(storage, folder, manifest, lambda: find(storage, data, fingerprint))


def check_enough(prepared: Prepared, sequence_length: int, batch_size: int) -> None:
    """Raises InputError if a batch would have to hold a sequence twice, or nothing could be validated.

    Of pairs also if one's completion alone is longer than a sequence, or there is none to test on.
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
    found = {part: prepared.examples(part) for part in PARTS}
    if problem := count_problem({part: len(examples) for part, examples in found.items()}, batch_size):
        raise InputError(f"data.path: {problem}")
    long = [example for part in PARTS for example in found[part][~fits(found[part], sequence_length)]]
    if long:
        line, tokens = min((int(example["line"]), int(example["tokens"] - example["prompt"])) for example in long)
        others = f" (as {len(long) - 1:,} others)" if len(long) > 1 else ""
        raise InputError(
            f"data.path: the completion in line {line}{others} has {tokens:,} tokens with end-of-text, more than"
            f" sequenceLength, {sequence_length:,}: shorten it, or raise sequenceLength"
        )


@dataclass(frozen=True)
class _Encoding:
    storage: Storage
    folder: str
    text: Path
    name: str
    tokenizer: Tokenizer
    content: bytes  # of tokenizer.json
    work: Path
    processes: int | None

    def split(self, name: Name, start: int, end: int, report: Callable[[int], None]) -> Shards:
        """Encodes bytes start to end of the text. Cuts depend on the text alone, so its tokens do too."""
        counts = np.zeros(self.tokenizer.get_vocab_size(), np.int64)
        shards = Shards(self.storage, self.folder, name, self.work, counts)
        for done, tokens in self._encoded(start, end):
            shards.add(tokens)
            report(done - start)
        shards.close()
        return shards

    def _encoded(self, start: int, end: int) -> Iterator[tuple[int, NDArray[np.uint16]]]:
        processes = self.processes or (1 if end - start <= ALONE else os.cpu_count() or 1)
        parts = chunks(self.text, start, end)
        if processes == 1:  # the library itself has a thread a core
            for part in parts:
                yield part[1], _encode(self.text, self.name, self.tokenizer, part)
            return
        # Threads do not get far: each token passes the interpreter's lock. Spawned, because forking breaks threads.
        context = multiprocessing.get_context("spawn")
        arguments = (self.text, self.name, self.content)
        with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
            waiting: deque[tuple[int, Future[NDArray[np.uint16]]]] = deque()
            try:
                for part in parts:
                    waiting.append((part[1], pool.submit(_work, part)))
                    if len(waiting) > 3 * processes:  # bounds what waits in memory
                        done, future = waiting.popleft()
                        yield done, future.result()
                while waiting:
                    done, future = waiting.popleft()
                    yield done, future.result()
            except BrokenProcessPool:
                raise InputError(f"{self.name}: a process that tokenizes was killed: is there enough memory?") from None
            finally:
                pool.shutdown(cancel_futures=True)


_worker: tuple[Path, str, Tokenizer] | None = None  # of a spawned process


def _start_worker(text: Path, name: str, content: bytes) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each: there is a process a core
    _worker = (text, name, Tokenizer.from_str(content.decode()))


def _work(part: tuple[int, int]) -> NDArray[np.uint16]:
    assert _worker is not None
    return _encode(*_worker, part)


def _encode(text: Path, name: str, tokenizer: Tokenizer, part: tuple[int, int]) -> NDArray[np.uint16]:
    content = read(text, *part)
    decode(content, part[0], name)
    return vocabularies.encode(tokenizer, content)


def _sample(text: Path, end: int, name: str) -> Iterator[str]:
    parts = list(chunks(text, 0, end))
    stride = math.ceil(len(parts) * MIB / SAMPLE)
    for start, stop in parts[::stride]:
        yield decode(read(text, start, stop), start, name)


def _claim_tokenizer(storage: Storage, folder: str, data: Data, sample: Iterator[str]) -> tuple[Tokenizer, bytes]:
    """The tokenizer and its file. Whoever writes it first decides: all who prepare at once then make equal shards."""
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
    return vocabularies.parse(content.decode(), f"{storage.url}/{path}"), content


def _commit(storage: Storage, folder: str, manifest: Manifest, winner: Callable[[], Prepared | None]) -> Prepared:
    path = f"{folder}/{paths.MANIFEST}"
    content = manifest.model_dump_json(by_alias=True, indent=2).encode()
    try:
        generation = storage.read_generation(path)[1]  # of one that did not hold: it is replaced
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
    if path.startswith("gs://"):  # the text lies outside the run's bucket; its tokens go into that all the same
        bucket, _, path = path.removeprefix("gs://").partition("/")
        storage = open_storage(f"gs://{bucket}")
    local = storage.local_path(path)
    if local is not None:
        size_of(local, name)
        if fingerprint_of(local) != fingerprint:
            raise InputError(f"{name}: not the text that the run was declared with: run `pulumi up` again")
        return local
    size = next((entry.size for entry in storage.list(path.rpartition("/")[0]) if entry.path == path), None)
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
