"""Pairs from their file to the loss: refused lines, the part that a pair is in, the content of a batch."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.running import Run
from trainer.contract.errors import InputError
from trainer.contract.options import Data, Model
from trainer.data.batches import EXAMPLE, IGNORED, TOKEN, PairBatches, Tokens
from trainer.data.pairs import PARTS, PairFile, part_of
from trainer.data.prepare import check_enough, prepare
from trainer.data.prepared import Prepared, find_prepared
from trainer.data.tokenizer import from_bytes
from trainer.model.gpt2 import build
from trainer.model.loss import counted_positions, make_loss
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

CPU = torch.device("cpu")
END = 256  # the end-of-text token of the byte tokenizer
LENGTH = 32


def numerals(count: int = 400) -> list[dict[str, str]]:
    """Return sums of different lengths; some prompts occur with several completions, some pairs occur twice."""
    chance = random.Random(3)
    made = []
    for _ in range(count):
        a, b = chance.randrange(30), chance.randrange(10 ** chance.randrange(1, 6))
        made.append({"prompt": f"{a}+{b}=", "completion": f"{a + b}" if chance.random() < 0.9 else "é"})
    return made + made[:20]


def lines(pairs: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(pair).encode() + b"\n" for pair in pairs)


def put(storage: Storage, content: bytes, **fields: Any) -> tuple[Data, str]:
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = f"data/{fingerprint}/my.jsonl"
    storage.write(path, content)
    return Data.model_validate({"path": path, "format": "pairs", "tokenizer": "byte"} | fields), fingerprint


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "bucket"))


@pytest.fixture
def prepared(storage: Storage) -> Prepared:
    return prepare(storage, *put(storage, lines(numerals()), validation_fraction=0.2, test_fraction=0.2))


def batches(prepared: Prepared, batch: int = 16, length: int = LENGTH) -> PairBatches:
    return PairBatches(prepared.tokens("train"), prepared.examples("train"), batch, length, seed=5)


# -- the output of prepare() -------------------------------------------------------------------------------------------


def test_every_pair_is_in_one_part_and_no_prompt_in_two(prepared: Prepared) -> None:
    parts = {part: prepared.pairs(part) for part in PARTS}
    found = Counter((pair.prompt, pair.completion) for pairs in parts.values() for pair in pairs)
    assert found == Counter((pair["prompt"], pair["completion"]) for pair in numerals())
    prompts = [{pair.prompt for pair in pairs} for pairs in parts.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    assert all(len(pairs) > 20 for pairs in parts.values())


def test_tokens_and_texts_are_the_same_examples(prepared: Prepared) -> None:
    for part in PARTS:
        tokens, examples, pairs = prepared.tokens(part), prepared.examples(part), prepared.pairs(part)
        assert len(examples) == len(pairs)
        assert int(examples["tokens"].sum()) == len(tokens)
        for example, pair in zip(examples, pairs, strict=True):
            start, stop = int(example["start"]), int(example["start"] + example["tokens"])
            assert tokens.read(start, stop).tolist() == [*(pair.prompt + pair.completion).encode(), END]
            assert example["prompt"] == len(pair.prompt.encode())
            assert numerals()[int(example["line"]) - 1] == {"prompt": pair.prompt, "completion": pair.completion}


def test_a_prompt_stays_in_its_part_when_more_pairs_come(storage: Storage, prepared: Prepared) -> None:
    more = [{"prompt": f"new {i}", "completion": "x"} for i in range(50)]
    data = put(storage, lines(more + numerals()), validation_fraction=0.2, test_fraction=0.2)
    test = {pair.prompt for pair in prepare(storage, *data).pairs("test")}
    assert {pair.prompt for pair in prepared.pairs("test")} == {prompt for prompt in test if prompt[0] != "n"}


def test_unigram_entropy_is_that_of_the_completions(storage: Storage) -> None:
    pairs = [{"prompt": f"{i}", "completion": "a"} for i in range(100)]
    manifest = prepare(storage, *put(storage, lines(pairs), validation_fraction=0.3)).manifest
    n = manifest.train.examples
    assert n is not None
    assert manifest.validation.unigram_entropy == pytest.approx(-np.log((n + 1) / (2 * n + 257)))


def test_trained_vocabulary_knows_the_training_part_alone(storage: Storage) -> None:
    data = Data(path="", format="pairs", test_fraction=0.3)
    words = {"train": "abab", "validation": "cdcd", "test": "efef"}
    pairs = [{"prompt": p, "completion": words[part_of(p, data)] * 5} for p in map(str, range(300))]
    fields = {"tokenizer": "train", "vocabulary_size": 300, "test_fraction": 0.3}
    vocabulary = prepare(storage, *put(storage, lines(pairs), **fields)).tokenizer().get_vocab()
    assert "ab" in vocabulary
    assert not {"cd", "ef"} & vocabulary.keys()


@pytest.mark.parametrize("name", ["test-examples.bin", "train.jsonl", "test-00000.bin"])
def test_prepared_file_that_is_missing_is_made_again(storage: Storage, name: str) -> None:
    data, fingerprint = put(storage, lines(numerals()))
    made = prepare(storage, data, fingerprint)
    storage.delete(f"{made.folder}/{name}")
    assert find_prepared(storage, data, fingerprint) is None
    assert prepare(storage, data, fingerprint).manifest == made.manifest


def test_pairs_prepared_in_a_google_bucket_are_read_from_it(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = open_storage(gcs_bucket)
    prepared = prepare(storage, *put(storage, lines(numerals())))
    assert sum(len(prepared.pairs(part)) for part in PARTS) == len(numerals())
    assert len(batches(prepared).batch(0)) == 16


# -- bad lines ---------------------------------------------------------------------------------------------------------

GOOD = b'{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b'{"prompt": "a", "completion": "b"', r"not JSON \(.*\)"),
        (b'["a", "b"]', "not a JSON object with prompt and completion"),
        (b'{"prompt": "a"}', "no completion"),
        (b'{"completion": "a"}', "no prompt"),
        (b'{"prompt": "a", "completion": ""}', "completion is empty"),
        (b'{"prompt": "", "completion": "b"}', "prompt is empty"),
        (b'{"prompt": "a", "completion": 3}', "completion is no text in quotes"),
        (b'{"prompt": "a", "completion": "b", "id": 1}', "unknown key id; only prompt and completion may be there"),
        (b'{"prompt": "a", "completion": "\xff"}', "not UTF-8 at byte 31 of the line"),
        (b'{"prompt": "\\ud83d", "completion": "b"}', "prompt has half of a character"),
        (b'{"prompt": "a", "completion": "b<|endoftext|>"}', r"completion has <\|endoftext\|> in it.*"),
        (b"[" * 100_000, "not a pair, but lists in lists"),
    ],
)
def test_bad_line_is_refused_by_its_number_and_reason(tmp_path: Path, bad: bytes, what: str) -> None:
    file = tmp_path / "my.jsonl"
    file.write_bytes(GOOD + b"\n\n" + bad + b"\r\n" + GOOD)
    with pytest.raises(InputError, match=rf"^my:3: {what}: fix 1 bad line, or raise data.skipBadLines, which is 0$"):
        list(PairFile(file, "my"))
    lenient = PairFile(file, "my", skip=1)
    assert [line.number for line in lenient] == [1, 4]
    assert (lenient.skipped, lenient.done) == (1, lenient.size)


def test_more_bad_lines_than_skip_bad_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    file.write_bytes(b"\n".join([GOOD, b"x", GOOD, b"{}"] + [b"y"] * 10))
    words = r"^my:2: not JSON .* \(and line 4: no prompt; line 5: not JSON .*\): fix at least 4 bad lines, .* is 2$"
    with pytest.raises(InputError, match=words):
        list(PairFile(file, "my", skip=2))
    assert len(list(PairFile(file, "my", skip=12))) == 2


def test_skipped_bad_lines_are_counted_in_the_manifest(storage: Storage) -> None:
    prepared = prepare(storage, *put(storage, lines(numerals()) + b"oops\n", skip_bad_lines=1))
    assert prepared.manifest.skipped == 1


def test_byte_order_mark_before_the_first_line_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert [line.content for line in PairFile(file, "my")] == [GOOD]


def test_compressed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    file.write_bytes(b"\x1f\x8b" + GOOD)
    with pytest.raises(InputError, match="my: this is compressed: gunzip it"):
        list(PairFile(file, "my", skip=5))


def test_check_enough_with_too_few_or_too_long_pairs_names_the_cause(storage: Storage, prepared: Prepared) -> None:
    check_enough(prepared, LENGTH, 16)
    with pytest.raises(InputError, match=r"the train part needs 400 of the 420 pairs \(train .*lower batchSize$"):
        check_enough(prepared, LENGTH, 400)
    with pytest.raises(InputError, match=r"the test part needs 1 .*raise data.testFraction$"):
        check_enough(prepare(storage, *put(storage, lines(numerals()), test_fraction=1e-9)), LENGTH, 16)
    pairs = [*numerals(), {"prompt": "long", "completion": "x" * 12}]
    made = prepare(storage, *put(storage, lines(pairs)))
    check_enough(made, 13, 16)
    with pytest.raises(
        InputError, match=r"the completion in line 421 has 13 tokens with end-of-text, more than .* 12:"
    ):
        check_enough(made, 12, 16)


# -- batches -----------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 200), batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epochs=st.integers(1, 4))
@settings(max_examples=40)
def test_pair_batches_contain_every_example_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch: int, seed: int, epochs: int
) -> None:
    batch = min(batch, count)
    examples = np.zeros(count, EXAMPLE)
    examples["prompt"], examples["tokens"] = 1, 3 + np.arange(count) * 7919 % 20
    file = tmp_path_factory.getbasetemp() / "pairs.bin"
    np.zeros(1, TOKEN).tofile(file)
    order = PairBatches(Tokens([file]), examples, batch, LENGTH, seed)
    steps = -(-epochs * count // batch)
    drawn = [order.batch(step) for step in range(steps)]
    assert all(len(indices) == batch for indices in drawn)
    seen = Counter(np.concatenate(drawn).tolist())
    assert min(seen.values()) >= epochs  # the last step may have begun one more epoch
    assert sum(seen.values()) == steps * batch
    last = steps - 1
    again = PairBatches(Tokens([file]), examples, batch, LENGTH, seed)
    assert again.batch(last).tolist() == drawn[last].tolist()  # the order of the calls does not matter


def test_pair_batch_holds_examples_of_about_one_length(prepared: Prepared) -> None:
    order, examples = batches(prepared, batch=16), prepared.examples("train")
    spreads = []
    for step in range(len(order) // 16):
        sizes = examples["tokens"][order.batch(step)].astype(int)
        assert sizes.tolist() == sorted(sizes.tolist())
        spreads.append(sizes[-1] - sizes[0])
    assert np.mean(spreads) < 0.3 * (examples["tokens"].max() - examples["tokens"].min())
    first = [int(examples["tokens"][order.batch(step)].max()) for step in range(len(order) // 16)]
    assert first != sorted(first)  # the batches do not begin with the shortest examples


def test_rows_of_a_batch_hold_pairs_and_count_only_completions_as_targets(prepared: Prepared) -> None:
    order, pairs = batches(prepared), prepared.pairs("train")
    indices = order.batch(0)
    inputs, targets = order.rows(indices)
    assert inputs.shape == targets.shape
    assert inputs.shape[1] % 8 == 0
    assert order.counted(indices) == (targets != IGNORED).sum()
    for row, wanted, index in zip(inputs, targets, indices, strict=True):
        prompt, completion = pairs[index].prompt.encode(), [*pairs[index].completion.encode(), END]
        assert row[: len(prompt) + len(completion) - 1].tolist() == [*prompt, *completion[:-1]]
        assert [token for token in wanted if token != IGNORED] == completion
        assert wanted[len(prompt) - 1] == completion[0]


def test_prompt_longer_than_the_sequence_loses_its_beginning(prepared: Prepared) -> None:
    length = 8  # the prompts have at most 14 tokens more
    order, pairs, examples = batches(prepared, length=length), prepared.pairs("train"), prepared.examples("train")
    long = np.flatnonzero(examples["tokens"] > length + 1)
    assert prepared.truncated("train", length) == len(long) > 0
    inputs, targets = order.rows(long[:5])
    for row, wanted, index in zip(inputs, targets, long, strict=False):
        whole = [*(pairs[index].prompt + pairs[index].completion).encode(), END]
        assert row.tolist() == whole[-length - 1 : -1]
        assert [token for token in wanted if token != IGNORED] == [*pairs[index].completion.encode(), END]


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_masked_loss_equals_that_of_transformers_with_labels(prepared: Prepared) -> None:
    model = build(Model(layers=2, heads=2, width=16, positions=LENGTH), from_bytes(), 0.0, 1)
    order = batches(prepared)
    inputs, targets = map(torch.from_numpy, order.rows(order.batch(1)))
    loss = make_loss(model, None, CPU)(inputs, targets, None, counted_positions(targets))
    loss.backward()  # type: ignore[no-untyped-call]
    ours = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    total = torch.zeros(())
    for row, wanted in zip(inputs, targets, strict=True):  # each row is computed alone, without padding
        size = int((wanted != IGNORED).nonzero().max()) + 1
        logits = model(row[None, :size]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits, wanted[:size], ignore_index=-100, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    total.backward()  # type: ignore[no-untyped-call]
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


def run_of_pairs(new_run: Callable[..., Run], hyper: dict[str, Any] | None = None, **more: Any) -> Run:
    content = lines(numerals())
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = f"data/{fingerprint}/my.jsonl"
    run = new_run(
        data={"path": path, "format": "pairs"},
        fingerprint=fingerprint,
        hyperparameters={"steps": 60, "batchSize": 15} | (hyper or {}),
        evaluation={"every": 60},
        **more,
    )
    run.storage.write(path, content)
    return run


@pytest.mark.slow
def test_runs_with_other_numbers_of_trainers_have_the_same_losses(new_run: Callable[..., Run]) -> None:
    one = run_of_pairs(new_run).start()
    assert one.wait().state == "SUCCEEDED"
    two = run_of_pairs(new_run, cluster={"workers": 1}).start()
    assert two.wait().state == "SUCCEEDED"
    assert two.losses() == pytest.approx(one.losses(), rel=1e-4)
    assert two.validation() == pytest.approx(one.validation(), rel=1e-4)
    first, last = one.losses()[0], one.validation()[-1]
    assert first is not None
    assert last < first / 2


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_run_with_a_parameter_server_has_the_same_losses(new_run: Callable[..., Run], clip: float) -> None:
    """Without clipping, a server could send parameters early if it knew how many tokens count."""
    shapes: list[dict[str, int]] = [{}, {"parameterServers": 1, "workers": 1}]
    hyper = {"gradientClip": clip, "steps": 30, "learningRate": 0.003}
    runs = [run_of_pairs(new_run, hyper=hyper, cluster=shape).start() for shape in shapes]
    assert [run.wait().state for run in runs] == ["SUCCEEDED", "SUCCEEDED"]
    assert runs[1].losses() == pytest.approx(runs[0].losses(), rel=1e-4)


@pytest.mark.slow
def test_local_synchronization_weighs_trainers_by_their_tokens(new_run: Callable[..., Run]) -> None:
    """Each trainer's change counts by its share of the tokens, which differs from step to step."""
    parallel = {"synchronization": "local", "every": 10}
    run = run_of_pairs(new_run, cluster={"parameterServers": 1, "workers": 1}, parallel=parallel).start()
    assert run.wait().state == "SUCCEEDED"
    losses = run.losses()
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < losses[0] / 1.5
