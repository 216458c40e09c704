"""scripts.generate: text from a trained model, as a person at a terminal gets it. The model is tiny and random."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.generate import main, session
from scripts.support.common import UserError
from scripts.support.writing import Sampling, Writer, load
from tests.scripts.tiny_model import POSITIONS, tiny_model
from trainer.contract.options import Data, Hyperparameters, Model
from trainer.contract.spec import JobSpec
from trainer.runs.records import Status
from trainer.storage.factory import open_storage

RUN = "gpt2-1x16-01234567"
Generate = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


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


def test_output_is_the_prompt_and_a_continuation_of_this_many_tokens(folder: Path, generate: Generate) -> None:
    out = generate("Once upon", "--model", folder, "--tokens", "12", "--seed", "3")
    assert out.startswith("Once upon")
    assert out.endswith("\n")
    assert len(out) > len("Once upon\n")


def test_output_depends_on_the_seed_and_nothing_else(folder: Path, generate: Generate) -> None:
    first = generate("ab", "--model", folder, "--tokens", "15", "--seed", "7")
    assert generate("ab", "--model", folder, "--tokens", "15", "--seed", "7") == first
    assert generate("ab", "--model", folder, "--tokens", "15", "--seed", "8") != first


def test_temperature_0_gives_the_text_of_transformers_greedy_search(folder: Path, generate: Generate) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("abc")["input_ids"]
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax()))
    out = generate("abc", "--model", folder, "--tokens", "10", "--temperature", "0")
    assert out == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
    assert generate("abc", "--model", folder, "--tokens", "10", "--top-k", "1", "--seed", "5") == out


def test_text_continues_beyond_the_positions_of_the_model(folder: Path, generate: Generate) -> None:
    out = generate("abc", "--model", folder, "--tokens", str(3 * POSITIONS), "--temperature", "1", "--top-k", "0")
    few = generate("abc", "--model", folder, "--tokens", "5", "--temperature", "1", "--top-k", "0")
    assert out.startswith(few.rstrip("\n\ufffd"))
    # The end of the text, which has a probability of 1 in 257, does not occur with this seed.
    assert len(out.encode()) > POSITIONS


def test_empty_prompt_starts_a_text_of_its_own(folder: Path, generate: Generate) -> None:
    assert len(generate("", "--model", folder, "--tokens", "20")) > 1


def test_prompt_that_is_too_long_is_cut_at_its_beginning_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "x" * 100 + "abc" * 10 + "d"  # the model sees the last 31 tokens
    main([prompt, "--model", str(folder), "--tokens", "1", "--temperature", "0"])
    long = capsys.readouterr()
    assert long.err == "the prompt has 131 tokens, the model sees the last 31 of them\n"
    main([prompt[-31:], "--model", str(folder), "--tokens", "1", "--temperature", "0"])
    short = capsys.readouterr()
    assert short.err == ""
    assert long.out == "x" * 100 + short.out


def test_several_samples_are_numbered_and_the_first_equals_a_single_one(folder: Path, generate: Generate) -> None:
    alone = generate("ab", "--model", folder, "--tokens", "8")
    out = generate("ab", "--model", folder, "--tokens", "8", "--samples", "2")
    assert out.startswith("--- 1 of 2 ---\n" + alone)
    assert "--- 2 of 2 ---\nab" in out


def test_declared_run_of_a_bucket_is_used_in_its_place(
    folder: Path, tmp_path: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_with_run(tmp_path / "bucket")
    put_model(folder, bucket)
    monkeypatch.chdir(tmp_path)
    out = generate("ab", "--bucket", bucket, "--tokens", "9")
    assert out == generate("ab", "--model", folder, "--tokens", "9")
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_model_sees_at_most_the_runs_sequence_length(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = bucket_with_run(tmp_path, sequence_length=8)
    put_model(folder, bucket)
    main(["abcdefghij", "--bucket", str(bucket), "--tokens", "20"])
    assert "the prompt has 10 tokens, the model sees the last 7 of them" in capsys.readouterr().err


def test_run_without_a_model_gives_its_state_and_step(tmp_path: Path) -> None:
    bucket = bucket_with_run(tmp_path)
    status = Status(state="RUNNING", step=4, updated=0.0)
    open_storage(str(bucket)).write(f"runs/{RUN}/status.json", json.dumps(status.to_json()).encode())
    with pytest.raises(UserError, match=rf"{RUN} has no model yet: it is RUNNING at step 4"):
        main(["ab", "--bucket", str(bucket)])


def test_unfinished_model_is_not_used(folder: Path, tmp_path: Path) -> None:
    bucket = bucket_with_run(tmp_path)
    put_model(folder, bucket)
    open_storage(str(bucket)).delete(f"runs/{RUN}/model/manifest.json")
    with pytest.raises(UserError, match="has no model yet"):
        main(["ab", "--bucket", str(bucket)])


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        main(["ab", "--model", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"no config\.json is in it"):
        main(["ab", "--model", str(tmp_path)])


@pytest.mark.parametrize("damage", ["model.safetensors", "tokenizer.json", "config.json"])
def test_damaged_model_is_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / damage).write_bytes((folder / damage).read_bytes()[:50])
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded: ") as caught:
        main(["ab", "--model", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_model_with_pickled_weights_is_refused(folder: Path, tmp_path: Path) -> None:
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
        (["--top-p", "0"], "--top-p: '0' is not a number above 0 and up to 1"),
        (["--top-p", "nan"], "--top-p: 'nan' is not a number"),
        (["--stop", ""], "--stop: an empty text is everywhere"),
        (["--file", "prompts.txt"], "give a prompt or --file, not both"),
    ],
)
def test_invalid_option_of_generate_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ab", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_stop_ends_the_text_before_it(folder: Path, generate: Generate) -> None:
    whole = generate("ab", "--model", folder, "--tokens", "30", "--seed", "3").removesuffix("\n")
    stop = whole[12:15]
    expected = whole[: whole.index(stop, 2)]
    several = ["--stop", "never there", "--stop", stop]
    assert generate("ab", "--model", folder, "--tokens", "30", "--seed", "3", *several) == expected + "\n"


def test_smallest_top_p_gives_the_greedy_text(folder: Path, generate: Generate) -> None:
    greedy = generate("abc", "--model", folder, "--tokens", "10", "--temperature", "0")
    assert generate("abc", "--model", folder, "--tokens", "10", "--top-p", "0.000001", "--seed", "4") == greedy


def test_file_of_prompts_gives_each_prompt_the_same_text_as_alone(
    folder: Path, tmp_path: Path, generate: Generate
) -> None:
    (tmp_path / "prompts.txt").write_text("ab\n\n  cd\r\n")
    usual = ["--model", folder, "--tokens", "8", "--seed", "5"]
    alone = [generate(prompt, *usual) for prompt in ("ab", "  cd")]
    out = generate("--file", tmp_path / "prompts.txt", *usual)
    assert out == f"--- 1 of 2 ---\n{alone[0]}\n--- 2 of 2 ---\n{alone[1]}"


def test_file_of_json_prompts_gives_json_lines(folder: Path, tmp_path: Path, generate: Generate) -> None:
    pairs = [{"prompt": "a\nb", "completion": "is not used"}, {"prompt": "é\u2028"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    usual = ["--model", folder, "--tokens", "6"]
    out = generate("--file", tmp_path / "p.jsonl", "--json", "--samples", "2", "--seed", "4", *usual)
    lines = [json.loads(line) for line in out.split("\n")[:-1]]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("a\nb", 4), ("a\nb", 5), ("é\u2028", 4), ("é\u2028", 5),
    ]  # fmt: skip
    assert generate("a\nb", "--seed", "5", *usual) == "a\nb" + lines[1]["text"] + "\n"
    assert all(line["finish"] == "length" and line["tokens"] == 6 for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 1}\n', r"p\.jsonl, line 2: write \{\"prompt\": "),
        ("p.jsonl", b"\n{\n", r"p\.jsonl, line 2: not JSON"),
        ("p.txt", b"\n \n", r"p\.txt: there is no prompt in it"),
        ("p.txt", b"ab\xff", r"p\.txt: not UTF-8 at byte 2"),
        ("p.txt", None, r"p\.txt: No such file"),
    ],
)
def test_bad_file_of_prompts_is_one_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        main(["--file", str(tmp_path / name), "--model", "not even looked for"])


def test_missing_prompt_without_a_terminal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UserError, match="there is no prompt: give one, or --file PROMPTS"):
        main(["--model", "not even looked for"])


def test_prompt_that_is_not_text_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="the prompt is not text"):
        main(["ab\udcff", "--model", str(folder)])


def test_model_with_numbers_that_are_not_finite_is_refused(folder: Path) -> None:
    model, tokenizer = load(folder)
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    writer = Writer(model, tokenizer, name="broken")
    with pytest.raises(UserError, match="broken gives numbers that are not finite"):
        list(writer.write(writer.encode("a"), Sampling()))


def test_model_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = LlamaConfig(
        vocab_size=264, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is of type llama; a GPT-2 is needed"):
        main(["ab", "--model", str(tmp_path)])


# -- a session ---------------------------------------------------------------------------------------------------------


def test_session_answers_each_prompt_with_the_next_seed(
    folder: Path, generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [generate("ab", "--model", folder, "--tokens", "8", "--seed", seed) for seed in ("7", "8")]
    lines = iter(["ab", KeyboardInterrupt(), "ab", "\udcff", "/quit", "never read"])

    def ask(mark: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    writer = Writer(*load(folder), name="tiny")
    session(writer, 1, Sampling(tokens=8, seed=7), ask)
    said = capsys.readouterr()
    assert said.out.startswith("tiny: write a beginning.")
    assert said.out.partition("session.\n")[2] == alone[0] + "\n" + alone[1]
    assert said.err.startswith("error: the prompt is not text")
    assert next(lines) == "never read"


@pytest.mark.slow
def test_session_at_a_terminal_ends_its_text_with_ctrl_c_and_itself_with_ctrl_d(folder: Path) -> None:
    """The test types into a pseudo-terminal with the real command on it."""
    terminal, its_end = pty.openpty()
    # The greedy text repeats itself without end.
    options = ["--model", str(folder), "--tokens", "1000000", "--temperature", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.generate", *options],
        stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True,
    )  # fmt: skip
    os.close(its_end)
    seen = b""

    def read_until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            seen += os.read(terminal, 4096)
        seen = seen.partition(wanted)[2]

    read_until(b"> ")
    os.write(terminal, b"xyz\n")
    read_until(b"\033[1mxyz\033[0m")
    os.read(terminal, 1)  # the text has begun
    process.send_signal(signal.SIGINT)
    read_until(b"> ")
    os.write(terminal, b"\x04")
    assert process.wait() == 0
    os.close(terminal)


@pytest.mark.slow
def test_command_prints_nothing_but_text(folder: Path) -> None:
    """It prints no warning of a library and no progress bar, and needs no network."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "scripts.generate", "Once", "--model", str(folder), "--tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Once")
