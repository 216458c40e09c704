import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from trainer.contract.errors import InputError
from trainer.contract.options import END_OF_TEXT, Data
from trainer.data import tokenizer as vocabularies
from trainer.data.text import pieces
from trainer.storage.factory import open_storage

SAMPLE = "the cat sat on the mat, and the dog's ball\nrolled under  the table\n" * 40 + f"{END_OF_TEXT}\nend of text\n"
TRAINED = vocabularies.train([SAMPLE], 400)
BYTES = vocabularies.from_bytes()
TEXTS = st.lists(st.text() | st.sampled_from([END_OF_TEXT, "\n", " ", "the cat", "\r\n", "\t", "\u00a0"])).map("".join)


def tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in vocabularies.encode(tokenizer, text.encode())]


@given(TEXTS)
def test_decoded_tokens_are_the_encoded_text(text: str) -> None:
    for tokenizer in (TRAINED, BYTES):
        assert tokenizer.decode(tokens(tokenizer, text), skip_special_tokens=False) == text


@given(st.text(alphabet="ab \n\r\t.'\u00a0é1", min_size=1), st.integers(1, 20))
@settings(max_examples=500)
def test_tokens_of_the_pieces_are_those_of_the_whole(text: str, size: int) -> None:
    parts = [piece.decode() for piece in pieces(text.encode(), size)]
    assert "".join(parts) == text
    for tokenizer in (TRAINED, BYTES):
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        assert [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).ids] == whole


@given(TEXTS)
def test_byte_tokenizer_uses_bytes_as_ids(text: str) -> None:
    expected: list[int] = []
    for i, part in enumerate(text.split(END_OF_TEXT)):
        expected += [256] * (i > 0) + list(part.encode())
    assert tokens(BYTES, text) == expected


def test_end_of_text_is_one_token_and_never_part_of_a_learned_one() -> None:
    for tokenizer in (TRAINED, BYTES):
        assert tokens(tokenizer, f"a{END_OF_TEXT}{END_OF_TEXT}b").count(vocabularies.end_of_text(tokenizer)) == 2
    learned = vocabularies.train([f"a{END_OF_TEXT}" * 500], 300)
    assert learned.get_vocab_size() == 257  # nothing is left to merge


def test_trained_vocabulary_shortens_text_and_keeps_to_its_size() -> None:
    assert TRAINED.get_vocab_size() <= 400
    assert len(tokens(TRAINED, SAMPLE)) < len(SAMPLE) / 2


def test_training_in_another_process_gives_the_same_vocabulary() -> None:
    code = "import sys; from trainer.data.tokenizer import train; print(train([sys.stdin.read()], 400).to_str())"
    other = subprocess.run(
        [sys.executable, "-c", code], input=SAMPLE, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
    )  # fmt: skip
    assert other.stdout.strip() == TRAINED.to_str()


def test_saved_tokenizer_is_loaded_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = f"the dog's  ball, é\n{END_OF_TEXT}\n\n the\u4e2d"
    for name, tokenizer in (("trained", TRAINED), ("bytes", BYTES)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
        vocabularies.save_tokenizer(tokenizer, folder, 77)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded(text)["input_ids"] == tokens(tokenizer, text)
        assert loaded.decode(tokens(tokenizer, text)) == text
        assert len(loaded) == tokenizer.get_vocab_size()
        assert loaded.eos_token_id == loaded.bos_token_id == vocabularies.end_of_text(tokenizer)
        assert loaded.model_max_length == 77


def write_gpt2_files(folder: Path, names: tuple[str, str]) -> None:
    entries = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"aa": 256}
    (folder / names[0]).write_text(json.dumps(entries | {END_OF_TEXT: 257}))
    (folder / names[1]).write_text("#version: 0.2\na a\n")


def checkpoint(path: str | None) -> Data:
    return Data(path="x", tokenizer="checkpoint", vocabulary_path=path)


def test_checkpoint_with_vocab_and_merges_files_is_loaded(tmp_path: Path) -> None:
    write_gpt2_files(tmp_path, ("vocab.json", "merges.txt"))
    assert tokens(vocabularies.build(checkpoint(str(tmp_path)), []), f"aab{END_OF_TEXT}")[-1] == 257


def test_checkpoint_is_loaded_from_a_path_and_from_an_address(tmp_path: Path) -> None:
    vocabularies.save_tokenizer(TRAINED, tmp_path, 10)
    for where in (str(tmp_path), tmp_path.as_uri()):
        assert tokens(vocabularies.build(checkpoint(where), []), SAMPLE) == tokens(TRAINED, SAMPLE)


@pytest.mark.parametrize("names", vocabularies.GPT2_FILES)
def test_vocabulary_other_than_gpt2s_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    write_gpt2_files(tmp_path, names)
    with pytest.raises(InputError, match=r"258 entries and 1 merges that are not GPT-2's.*fetch"):
        vocabularies.gpt2(str(tmp_path))


def test_gpt2_vocabulary_is_read_from_a_bucket(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"{gcs_bucket}/vocabulary/gpt2"
    with pytest.raises(InputError, match=f"vocabularyPath {where}: has neither vocab.json and merges.txt nor"):
        vocabularies.gpt2(where)
    write_gpt2_files(tmp_path, vocabularies.GPT2_FILES[0])
    for name in vocabularies.GPT2_FILES[0]:
        open_storage(where).upload(tmp_path / name, name)
    with pytest.raises(InputError, match=f"vocabularyPath {where}: 258 entries and 1 merges that are not GPT-2's"):
        vocabularies.gpt2(where)
    monkeypatch.setattr(vocabularies, "GPT2_SHA256", None)
    assert tokens(vocabularies.gpt2(where), f"aab{END_OF_TEXT}")[-1] == 257


def test_gpt2_vocabulary_of_the_original_files_gives_gpt2s_tokens() -> None:
    folder = os.environ.get("GPT2_VOCABULARY")
    if folder is None:
        pytest.skip("GPT2_VOCABULARY names no folder with GPT-2's two vocabulary files")
    tokenizer = vocabularies.gpt2(folder)
    assert tokens(tokenizer, f"Hello world{END_OF_TEXT}") == [15496, 995, 50256]
    assert tokenizer.get_vocab_size() == 50257


def word_tokenizer(with_end: bool) -> str:
    words = {"[UNK]": 0, "a": 1} | ({END_OF_TEXT: 2} if with_end else {})
    return str(Tokenizer(models.WordLevel(words, unk_token="[UNK]")).to_str())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        (word_tokenizer(False), "has no <|endoftext|> token"),
        (word_tokenizer(True), "not byte-level"),
    ],
)
def test_checkpoint_whose_tokenizer_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError) as error:
        vocabularies.build(checkpoint(str(tmp_path)), [])
    assert message in str(error.value)
    assert str(error.value).startswith(f"data.vocabularyPath {tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", [None, "/no/such/folder", "./none", "file:///no/such/bucket"])
def test_checkpoint_that_does_not_exist_is_refused(where: str | None) -> None:
    with pytest.raises(InputError, match=r"data\.vocabularyPath"):
        vocabularies.build(checkpoint(where), [])


def test_gpt2_without_a_hub_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"set data\.vocabularyPath to a folder") as error:
        vocabularies.build(Data(path="x", tokenizer="gpt2"), [])
    assert "\n" not in str(error.value)


def test_encode_gives_uint16_also_for_an_empty_text() -> None:
    assert vocabularies.encode(BYTES, b"").dtype == vocabularies.encode(BYTES, b"a").dtype == np.uint16
