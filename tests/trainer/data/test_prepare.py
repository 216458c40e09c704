"""Text in, batches out: prepare(), the shards that it writes, and the order of the batches."""

import hashlib
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract.errors import InputError
from trainer.contract.options import END_OF_TEXT, Data
from trainer.data import prepare as data_module
from trainer.data import tokenizer as vocabularies
from trainer.data.batches import TOKEN, Batches, Tokens, Windows
from trainer.data.prepare import check_enough, prepare
from trainer.data.prepared import Manifest, Prepared, find_prepared
from trainer.data.text import check_text, chunks, held_out_start
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

LINES = "".join(f"line {i} of the text, écrite {i * 7919 % 10007}\n" for i in range(4000))
DOCUMENTS = f"\n{END_OF_TEXT}\n".join(LINES[i : i + 3000] for i in range(0, len(LINES), 3000))


@pytest.fixture(params=["file", "gs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "file":
        return open_storage(str(tmp_path / "bucket"))
    return open_storage(request.getfixturevalue("gcs_bucket"))


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "bucket"))


def put(storage: Storage, content: str | bytes, **fields: object) -> tuple[Data, str]:
    content = content.encode() if isinstance(content, str) else content
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = f"data/{fingerprint}/my text.txt"
    storage.write(path, content)
    return Data.model_validate({"path": path, "tokenizer": "byte"} | fields), fingerprint


def text_of(prepared: Prepared) -> str:
    parts = [prepared.tokens("train"), prepared.tokens("validation")]
    ids = [int(token) for part in parts for token in part.read(0, len(part))]
    return str(prepared.tokenizer().decode(ids, skip_special_tokens=False))


# The output of prepare().


@pytest.mark.parametrize("fields", [{"tokenizer": "byte"}, {"tokenizer": "train", "vocabulary_size": 500}])
def test_shards_contain_all_of_the_text(storage: Storage, fields: dict[str, object]) -> None:
    data, fingerprint = put(storage, DOCUMENTS, **fields)
    prepared = prepare(storage, data, fingerprint)
    assert text_of(prepared) == DOCUMENTS
    manifest = prepared.manifest
    assert manifest.train.bytes + manifest.validation.bytes == len(DOCUMENTS.encode())
    assert manifest.validation.bytes == pytest.approx(0.05 * len(DOCUMENTS.encode()), rel=0.5)
    for split in (manifest.train, manifest.validation):
        for shard in split.shards:
            content = storage.read(f"{prepared.folder}/{shard.name}")
            assert len(content) == 2 * shard.tokens
            assert hashlib.sha256(content).hexdigest() == shard.sha256
    assert Manifest.model_validate_json(storage.read(f"{prepared.folder}/manifest.json")) == manifest


def test_unigram_entropy_is_that_of_the_counts_plus_one(folder: Storage) -> None:
    data, fingerprint = put(folder, "a" * 60 + "\n" + "b" * 40, validation_fraction=0.4)
    manifest = prepare(folder, data, fingerprint).manifest
    assert (manifest.train.tokens, manifest.validation.tokens, manifest.vocabulary_size) == (61, 40, 257)
    assert manifest.validation.unigram_entropy == pytest.approx(-math.log(1 / (61 + 257)))
    expected = (60 * math.log(61 / 318) + math.log(2 / 318)) / -61
    assert manifest.train.unigram_entropy == pytest.approx(expected)


def test_trained_vocabulary_learns_nothing_of_the_held_out_part(folder: Storage) -> None:
    training = "abcdefgh\n" * 1000
    vocabulary = []
    for end in ("XYZXYZXYZ\n" * 50, "QRSQRSQRS\n" * 50):
        data, fingerprint = put(folder, training + end, tokenizer="train", validation_fraction=0.06)
        vocabulary.append(prepare(folder, data, fingerprint).tokenizer().get_vocab())
    assert vocabulary[0] == vocabulary[1]


def test_tokens_do_not_depend_on_processes_or_shards(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "chunks", lambda path, start, end: chunks(path, start, end, size=5000))
    data, fingerprint = put(folder, DOCUMENTS, tokenizer="train", vocabulary_size=300)
    prepared = prepare(folder, data, fingerprint, processes=2)
    one = [prepared.tokens(name).read(0, len(prepared.tokens(name))) for name in ("train", "validation")]
    folder.delete(f"{prepared.folder}/manifest.json")
    monkeypatch.setattr("trainer.data.shard_writer.TOKENS_PER_SHARD", 10_007)
    again = prepare(folder, data, fingerprint, processes=1)
    two = [again.tokens(name).read(0, len(again.tokens(name))) for name in ("train", "validation")]
    assert len(again.manifest.train.shards) > 3
    assert [shard.tokens for shard in again.manifest.train.shards[:2]] == [10_007, 10_007]
    assert [a.tobytes() for a in one] == [b.tobytes() for b in two]


def test_progress_of_prepare_ends_at_the_texts_size(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "chunks", lambda path, start, end: chunks(path, start, end, size=20_000))
    data, fingerprint = put(folder, DOCUMENTS)
    seen: list[tuple[int, int]] = []
    prepare(folder, data, fingerprint, lambda done, total: seen.append((done, total)))
    size = len(DOCUMENTS.encode())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 5
    assert seen[-1] == (size, size)


def test_prepare_a_second_time_makes_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fingerprint = put(storage, DOCUMENTS)
    assert find_prepared(storage, data, fingerprint) is None
    first = prepare(storage, data, fingerprint)
    monkeypatch.setattr(vocabularies, "encode", None)
    storage.delete(data.path)
    assert prepare(storage, data, fingerprint).manifest == first.manifest


@pytest.mark.parametrize("damage", ["manifest.json", "train-00000.bin", "tokenizer.json"])
def test_damaged_prepared_file_is_made_again(folder: Storage, damage: str) -> None:
    data, fingerprint = put(folder, DOCUMENTS)
    prepared = prepare(folder, data, fingerprint)
    if damage == "manifest.json":
        folder.write(f"{prepared.folder}/{damage}", b"{}")
    else:
        folder.delete(f"{prepared.folder}/{damage}")
    assert find_prepared(folder, data, fingerprint) is None
    assert text_of(prepare(folder, data, fingerprint)) == DOCUMENTS


def test_prepare_by_four_threads_at_once_gives_one_result(storage: Storage) -> None:
    data, fingerprint = put(storage, DOCUMENTS, tokenizer="train", vocabulary_size=400)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepare(storage, data, fingerprint), range(4)))
    assert all(result.manifest == results[0].manifest for result in results)
    assert text_of(results[0]) == DOCUMENTS


def test_prepare_that_is_overtaken_keeps_the_first_manifest(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fingerprint = put(folder, DOCUMENTS)
    encode = vocabularies.encode
    first: list[Prepared] = []

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(vocabularies, "encode", encode)
        # Another process prepares from begin to end in the middle of ours.
        first.append(prepare(folder, data, fingerprint))
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(vocabularies, "encode", overtaken)
    assert prepare(folder, data, fingerprint).manifest == first[0].manifest
    assert text_of(first[0]) == DOCUMENTS


def test_text_in_another_bucket_is_prepared_without_a_write_there(
    folder: Storage, gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = open_storage(gcs_bucket)
    inside, fingerprint = put(source, DOCUMENTS)
    data = inside.model_copy(update={"path": f"{gcs_bucket}/{inside.path}"})
    prepared = prepare(folder, data, fingerprint)
    assert text_of(prepared) == DOCUMENTS
    assert folder.list(prepared.folder)
    assert [entry.path for entry in source.list("")] == [inside.path]  # we may only read that bucket

    missing = data.model_copy(update={"path": f"{gcs_bucket}/none.txt"})
    assert f"data.path {gcs_bucket}/none.txt: not in {gcs_bucket}" in error_of(folder, missing, "0" * 16)
    assert "SHA-256 differs" in error_of(folder, data, "0" * 16)


def test_shards_in_a_google_bucket_are_fetched_once_and_checked(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = open_storage(gcs_bucket)
    data, fingerprint = put(storage, DOCUMENTS)
    prepared = prepare(storage, data, fingerprint)
    tokens = prepared.tokens("train", tmp_path / "mine")
    path = f"{prepared.folder}/train-00000.bin"
    damaged = bytearray(storage.read(path))
    damaged[0] ^= 1
    storage.write(path, bytes(damaged))
    assert (prepared.tokens("train", tmp_path / "mine").read(0, 9) == tokens.read(0, 9)).all()
    with pytest.raises(InputError, match="SHA-256 differs"):
        prepared.tokens("train", tmp_path / "other")
    assert not [file for file in (tmp_path / "other").rglob("*") if file.is_file()]


@pytest.mark.slow
def test_memory_of_prepare_does_not_grow_with_the_text(tmp_path: Path) -> None:
    code = """
import resource, sys
from trainer.data import prepare
from trainer.storage.factory import open_storage
from trainer.contract.identity import fingerprint
from trainer.contract.options import Data
from pathlib import Path
bucket = Path(sys.argv[1])
prepare.SAMPLE_BYTES = 2 << 20
spec = Data(path="text.txt", tokenizer="train", vocabulary_size=300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare.prepare(open_storage(str(bucket)), spec, fingerprint(bucket / "text.txt"), processes=1)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = []
    for megabytes in (3, 12):
        bucket = tmp_path / str(megabytes)
        bucket.mkdir()
        with (bucket / "text.txt").open("w") as file:
            while file.tell() < megabytes << 20:
                file.write(LINES)
        run = subprocess.run([sys.executable, "-c", code, str(bucket)], capture_output=True, text=True, check=True)
        grown.append(int(run.stdout))
    # The limit is 20 MB, for 9 MB more of text, which would take 18 MB or more as Python's integers.
    assert grown[1] - grown[0] < 20


# Errors in a text.


def error_of(storage: Storage, data: Data, fingerprint: str) -> str:
    with pytest.raises(InputError) as error:
        prepare(storage, data, fingerprint)
    assert "\n" not in str(error.value)
    assert find_prepared(storage, data, fingerprint) is None
    return str(error.value)


@pytest.mark.parametrize("tokenizer", ["byte", "train"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"a", "too small"),
        (b"good\n" * 300_000 + b"caf\xe9 au lait\n" * 9, "not UTF-8 at byte 1,500,003 (0xe9)"),
        (b"\xff\xfe" + "text".encode("utf-16-le") * 99, "this is UTF-16"),
        (b"text\n" * 99 + b"\x00\x01" * 9, "byte 495 is zero"),
    ],
)
def test_text_that_cannot_be_trained_on_is_refused(
    folder: Storage, content: bytes, message: str, tokenizer: str
) -> None:
    data, fingerprint = put(folder, content, tokenizer=tokenizer)
    error = error_of(folder, data, fingerprint)
    assert message in error
    assert error.startswith(f"data.path {data.path}: ")


def test_missing_text_is_named(storage: Storage) -> None:
    assert "data.path data/0/none.txt" in error_of(storage, Data(path="data/0/none.txt", tokenizer="byte"), "0")


def test_text_that_differs_from_the_declared_fingerprint_is_refused(storage: Storage) -> None:
    data, fingerprint = put(storage, DOCUMENTS)
    storage.write(data.path, DOCUMENTS.encode() + b"!")
    assert data.path in error_of(storage, data, fingerprint)


def test_prepare_on_a_full_disk_says_how_much_is_free(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**5))
    data, fingerprint = put(folder, LINES)
    assert "0 MB are free" in error_of(folder, data, fingerprint)


def test_check_enough_with_too_few_tokens_says_how_many_are_needed(folder: Storage) -> None:
    data, fingerprint = put(folder, "a" * 900 + "\n" + "b" * 100, validation_fraction=0.1)
    prepared = prepare(folder, data, fingerprint)
    check_enough(prepared, sequence_length=90, batch_size=10)
    with pytest.raises(InputError, match=r"training part of the text has 901 tokens, and 902 are needed"):
        check_enough(prepared, sequence_length=53, batch_size=17)
    with pytest.raises(InputError, match=r"held-out part of the text has 100 tokens, and 101 are needed"):
        check_enough(prepared, sequence_length=100, batch_size=1)


def test_check_text_reads_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(LINES.encode() * 20)
    assert check_text(path, "text") == len(LINES.encode()) * 20
    with path.open("ab") as file:
        file.write(b"\xc3")
    with pytest.raises(InputError, match=f"byte {len(LINES.encode()) * 20:,} "):
        check_text(path, "text")
    with pytest.raises(InputError, match="this is a folder"):
        check_text(tmp_path, "text")


# Where the text is cut.


@given(st.text(alphabet="aé\u4e2d \n", min_size=2, max_size=400), st.floats(0.01, 0.49), st.integers(1, 50))
def test_cuts_never_split_a_character(tmp_path_factory: pytest.TempPathFactory, text: str, f: float, size: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"cuts-{os.getpid()}.txt"
    path.write_bytes(text.encode())
    total = len(text.encode())
    border = held_out_start(path, total, f)
    assert total - int(total * f) <= border <= total
    text.encode()[:border].decode()
    parts = list(chunks(path, 0, total, size))
    assert [start for start, _ in parts] == [0] + [end for _, end in parts[:-1]]
    assert parts[-1][1] == total
    for start, end in parts:
        assert text.encode()[start:end].decode()


@pytest.mark.parametrize(
    ("end", "begins"),
    [
        (f"one two\nthree\n{END_OF_TEXT}\nfour" + " five" * 20, "four five"),
        ("one two\nthree" + " four" * 20, "three four"),
        ("é" * 60, "é" * 50),
    ],
)
def test_held_out_part_begins_at_a_document_line_or_character(tmp_path: Path, end: str, begins: str) -> None:
    path = tmp_path / "text.txt"
    text = ("x" * (10 * len(end.encode()) - len(end.encode())) + end).encode()
    path.write_bytes(text)
    assert text[held_out_start(path, len(text), 0.1) :].decode().startswith(begins)


# Batches.


@pytest.fixture
def counting(tmp_path: Path) -> Callable[[int, int], Tokens]:
    """Return a function that makes the tokens 0, 1, 2, ... in shards of a given length."""

    def make(n: int, shard: int) -> Tokens:
        files = []
        for start in range(0, n, shard):
            files.append(tmp_path / f"{start}.bin")
            np.arange(start, min(start + shard, n)).astype(TOKEN).tofile(files[-1])
        return Tokens(files)

    return make


def test_tokens_are_read_across_shards(counting: Callable[[int, int], Tokens]) -> None:
    tokens = counting(100, 7)
    for start, stop in ((0, 100), (6, 8), (7, 14), (50, 50), (99, 100), (0, 0)):
        assert tokens.read(start, stop).tolist() == list(range(start, stop))
    for start, stop in ((-1, 3), (99, 101), (5, 4)):
        with pytest.raises(IndexError):
            tokens.read(start, stop)
    assert len(Tokens([])) == 0


def test_targets_are_the_next_tokens_and_each_token_is_a_target_once(counting: Callable[[int, int], Tokens]) -> None:
    windows = Windows(counting(101, 33), 10)
    inputs, targets = windows.rows(windows.first(1000))
    assert inputs.shape == targets.shape == (10, 10)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()
    assert targets.ravel().tolist() == list(range(1, 101))
    assert len(Windows(counting(100, 33), 10)) == 9
    with pytest.raises(ValueError, match="no window"):
        Windows(counting(10, 33), 10)


def test_epochs_have_every_window_once_each_in_an_order_of_its_own(counting: Callable[[int, int], Tokens]) -> None:
    batches = Batches(counting(231, 1000), 4, 10, seed=1)  # 23 windows make batches that cross the border of an epoch
    stream = np.concatenate([batches.batch(step) for step in range(23)]).reshape(4, 23)
    assert [sorted(epoch) for epoch in stream.tolist()] == [list(range(23))] * 4
    assert len({tuple(epoch) for epoch in stream.tolist()}) == 4
    assert batches.batch(0).shape == (4,)


def test_order_of_batches_depends_on_seed_and_step_alone(counting: Callable[[int, int], Tokens]) -> None:
    tokens = counting(501, 1000)
    one, two, other = (Batches(tokens, 8, 5, seed) for seed in (7, 7, 8))
    forwards = [one.batch(step).tolist() for step in range(40)]
    backwards = [two.batch(step).tolist() for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert forwards != [other.batch(step).tolist() for step in range(40)]
    assert Batches(tokens, 8, 5, 7).batch(10**12).shape == (8,)


def test_order_of_batches_stays_the_same_with_every_numpy(counting: Callable[[int, int], Tokens]) -> None:
    # A run that is resumed with a later NumPy must continue in the same order, so these numbers may never change.
    assert Batches(counting(51, 1000), 6, 5, seed=1337).batch(1).tolist() == [0, 9, 2, 3, 2, 6]


def test_batch_larger_than_an_epoch_repeats_windows(counting: Callable[[int, int], Tokens]) -> None:
    assert sorted(Batches(counting(31, 1000), 7, 10, 0).batch(0).tolist()[:6]) == [0, 0, 1, 1, 2, 2]


def test_reading_batches_needs_no_torch() -> None:
    code = "import sys, trainer.data.prepare; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
