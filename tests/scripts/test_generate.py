"""scripts.generate: text from a trained model, as a person at a terminal gets it. The model is tiny and random."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from scripts.common import UserError
from scripts.generate import main
from trainer.manifest import write_manifest
from trainer.records import Status
from trainer.spec import Data, Hyperparameters, JobSpec, Model
from trainer.storage import open_storage
from trainer.tokenizer import end_of_text, from_bytes, save

RUN = "gpt2-1x16-01234567"
POSITIONS = 32
Generate = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows bytes, in Hugging Face format, its weights large enough to have opinions."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = from_bytes()
    end = end_of_text(tokenizer)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size() + 7,  # padded, as a model that was not exported by us may be
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save(tokenizer, folder, POSITIONS)
    write_manifest(folder)
    return folder


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return run


def bucket_with_run(root: Path, sequence_length: int = POSITIONS) -> Path:
    spec = JobSpec(
        run=RUN,
        model=Model(layers=1, heads=2, width=16, positions=POSITIONS),
        data=Data(path="data/0/text.txt", tokenizer="byte"),
        fingerprint="0" * 16,
        code="0" * 16,
        hyperparameters=Hyperparameters(sequence_length=sequence_length, steps=10),
    )
    storage = open_storage(str(root))
    storage.write(f"runs/{RUN}/job.json", json.dumps(spec.to_json()).encode())
    storage.write("current.json", json.dumps({"run": RUN, "launch": 1}).encode())
    return root


def put_model(folder: Path, bucket: Path) -> None:
    storage = open_storage(str(bucket))
    for file in sorted(folder.iterdir(), key=lambda path: path.name == "manifest.json"):
        storage.upload(file, f"runs/{RUN}/model/{file.name}")


def test_prints_the_prompt_and_a_continuation_of_so_many_tokens(folder: Path, generate: Generate) -> None:
    out = generate("Once upon", "--model", folder, "--tokens", "12", "--seed", "3")
    assert out.startswith("Once upon")
    assert out.endswith("\n")
    assert len(out) > len("Once upon\n")


def test_the_seed_decides_and_nothing_else(folder: Path, generate: Generate) -> None:
    first = generate("ab", "--model", folder, "--tokens", "15", "--seed", "7")
    assert generate("ab", "--model", folder, "--tokens", "15", "--seed", "7") == first
    assert generate("ab", "--model", folder, "--tokens", "15", "--seed", "8") != first


def test_temperature_0_is_what_greedy_search_of_transformers_gives(folder: Path, generate: Generate) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("abc")["input_ids"]
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax()))
    out = generate("abc", "--model", folder, "--tokens", "10", "--temperature", "0")
    assert out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
    assert generate("abc", "--model", folder, "--tokens", "10", "--top-k", "1", "--seed", "5") == out


def test_goes_on_beyond_the_positions_of_the_model(folder: Path, generate: Generate) -> None:
    out = generate("abc", "--model", folder, "--tokens", str(3 * POSITIONS), "--temperature", "1", "--top-k", "0")
    few = generate("abc", "--model", folder, "--tokens", "5", "--temperature", "1", "--top-k", "0")
    assert out.startswith(few.rstrip("\n\ufffd"))
    assert len(out.encode()) > POSITIONS  # unless it drew the end of the text, 1 of 257, which this seed does not


def test_an_empty_prompt_starts_a_text_of_its_own(folder: Path, generate: Generate) -> None:
    assert len(generate("", "--model", folder, "--tokens", "20")) > 1


def test_a_prompt_that_is_too_long_is_cut_at_its_beginning_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "x" * 100 + "abc" * 10 + "d"  # its last 31 tokens are what is seen
    main([prompt, "--model", str(folder), "--tokens", "1", "--temperature", "0"])
    long = capsys.readouterr()
    assert long.err == "the prompt has 131 tokens, the model sees the last 31 of them\n"
    main([prompt[-31:], "--model", str(folder), "--tokens", "1", "--temperature", "0"])
    short = capsys.readouterr()
    assert short.err == ""
    assert long.out == "x" * 100 + short.out


def test_several_samples_are_numbered_and_the_first_is_the_one_alone(folder: Path, generate: Generate) -> None:
    alone = generate("ab", "--model", folder, "--tokens", "8")
    out = generate("ab", "--model", folder, "--tokens", "8", "--samples", "2")
    assert out.startswith("--- 1 of 2 ---\n" + alone)
    assert "--- 2 of 2 ---\nab" in out


def test_the_run_that_the_stack_declares_is_used_where_it_lies(
    folder: Path, tmp_path: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_with_run(tmp_path / "bucket")
    put_model(folder, bucket)
    monkeypatch.chdir(tmp_path)
    out = generate("ab", "--bucket", bucket, "--tokens", "9")
    assert out == generate("ab", "--model", folder, "--tokens", "9")
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_sees_no_further_back_than_the_run_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = bucket_with_run(tmp_path, sequence_length=8)
    put_model(folder, bucket)
    main(["abcdefghij", "--bucket", str(bucket), "--tokens", "20"])
    assert "the prompt has 10 tokens, the model sees the last 7 of them" in capsys.readouterr().err


def test_a_run_without_a_model_says_where_it_is(tmp_path: Path) -> None:
    bucket = bucket_with_run(tmp_path)
    status = Status(state="RUNNING", step=4, updated=0.0)
    open_storage(str(bucket)).write(f"runs/{RUN}/status.json", json.dumps(status.to_json()).encode())
    with pytest.raises(UserError, match=rf"{RUN} has no model yet: it is RUNNING at step 4"):
        main(["ab", "--bucket", str(bucket)])


def test_an_unfinished_model_is_not_used(folder: Path, tmp_path: Path) -> None:
    bucket = bucket_with_run(tmp_path)
    put_model(folder, bucket)
    open_storage(str(bucket)).delete(f"runs/{RUN}/model/manifest.json")
    with pytest.raises(UserError, match="has no model yet"):
        main(["ab", "--bucket", str(bucket)])


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        main(["ab", "--model", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"no config\.json is in it"):
        main(["ab", "--model", str(tmp_path)])


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_model_is_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / damage).write_bytes((folder / damage).read_bytes()[:50])
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded: ") as caught:
        main(["ab", "--model", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be loaded"):
        main(["ab", "--model", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "0"], "--tokens: at least 1 is needed"),
        (["--tokens", "many"], "--tokens: 'many' is not a whole number"),
        (["--temperature", "-1"], "--temperature: '-1' is not a number from 0 to 100"),
        (["--temperature", "nan"], "--temperature: 'nan' is not a number"),
        (["--top-k", "-2"], "--top-k: '-2' is not a whole number"),
        (["--samples", "0"], "--samples: at least 1 is needed"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ab", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_nothing_but_text(folder: Path) -> None:
    """No warning of a library, no progress bar, no network."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "scripts.generate", "Once", "--model", str(folder), "--tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Once")
