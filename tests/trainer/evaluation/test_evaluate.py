"""A model's scores at its task: the metrics, the generated answers, and the files that a run leaves."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.trainer.running import Run
from trainer.data.batches import Windows
from trainer.data.pairs import Pair
from trainer.data.prepared import find_prepared
from trainer.data.tokenizer import from_bytes
from trainer.evaluation.answers import Answers, answer
from trainer.evaluation.measures import (
    baseline,
    confusion,
    questions,
    retrieved,
    sentiment,
    source,
    token_f1,
    translation,
)
from trainer.runs import scores
from trainer.runs.scores import Scores

END = 256


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_translation_counts_exact_matches_chrf_and_bleu() -> None:
    right = translation(["1999-01-02", "2000-12-31"], [" 1999-01-02", "2000-12-31\n"])
    assert right == {"exact_match": 1.0, "chrf": pytest.approx(100), "bleu": pytest.approx(100)}
    half = translation(["1999-01-02", "2000-12-31"], ["1999-01-02", "1999-12-31"])
    assert half["exact_match"] == 0.5
    assert 50 < half["bleu"] < 100
    assert 50 < half["chrf"] < 100


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("XIV = ", "XIV"), ("Translate to French:\ngood day =>", "good day"), ("a-b →\n\n", "a-b"), ("", ""), ("=", "")],
)
def test_source_of_a_prompt_is_the_text_to_translate(prompt: str, expected: str) -> None:
    assert source(prompt) == expected


def test_sentiment_counts_accuracy_and_confusion() -> None:
    expected, answers = ["good", "bad", "bad", "good"], ["good ", "bad", "good", "goood"]
    assert sentiment(expected, answers) == {"accuracy": 0.5}
    table = confusion(expected, answers)
    assert table is not None
    assert (table.labels, table.predicted) == (["bad", "good"], ["bad", "good", "(other)"])
    assert table.counts == [[1, 1, 0], [0, 1, 1]]
    without = confusion(expected, expected)
    assert without is not None
    assert (without.predicted, without.counts) == (["bad", "good"], [[2, 0], [0, 2]])
    assert confusion([str(i) for i in range(50)], [str(i) for i in range(50)]) is None


def test_questions_count_matches_and_f1_as_squad_does() -> None:
    assert questions(["The Cat!"], ["cat"]) == {"exact_match": 1.0, "f1": 1.0}
    assert token_f1("red fish", "a red house boat") == pytest.approx(2 * 1 / (2 + 3))
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert token_f1("the", "an") == 1.0
    assert token_f1("the", "cat") == 0.0


def test_retrieved_answer_is_the_rest_of_the_matching_sentence() -> None:
    assert retrieved("Ada keeps a cat. Ben lives in Oslo.\nWhere does Ben live? ") == "lives in oslo"
    assert retrieved("Ada keeps a cat. Ben keeps a dog.\nWhat keeps Ben?\nAnswer: ") == "dog"
    assert retrieved("What is this?") == retrieved("") == ""


def test_baseline_is_the_majority_label_for_sentiment_and_the_source_for_translation() -> None:
    trained = [Pair(str(i), "bad" if i % 3 else "good") for i in range(9)]
    majority = baseline("sentiment", [Pair("x", "good"), Pair("y", "bad"), Pair("z", "good")], trained)
    assert majority.name == "always 'bad'"
    assert majority.metrics == {"accuracy": pytest.approx(1 / 3)}
    copied = baseline("translation", [Pair("abc = ", "abc"), Pair("abc = ", "xyz")], [])
    assert copied.metrics["exact_match"] == 0.5


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """Return a random model with weights so large that its choices are clear and depend on a token's position."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def alone(model: GPT2LMHeadModel, prompt: bytes, most: int) -> str:
    """Generate token by token, without batch, cache or padding."""
    ids = list(prompt)
    for _ in range(most):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == END:
            break
        ids.append(token)
    return str(from_bytes().decode(ids[len(prompt) :]))


def ask(model: GPT2LMHeadModel, prompts: list[str], longest: int = 8, window: int = 32, **more: Any) -> Answers:
    return answer(model, from_bytes(), prompts, longest, window, **more)


PROMPTS = [letters * (1 + i % 3) for i, letters in enumerate(["a", "xyz", "hello ", "b", "?", "Qu", "longest", "12"])]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_prompt_in_a_batch_gets_the_same_answer_as_alone(model: GPT2LMHeadModel, batch: int) -> None:
    expected = [alone(model, prompt.encode(), 8) for prompt in PROMPTS]
    assert len(set(expected)) > 4  # with fewer different answers this test would prove little
    assert ask(model, PROMPTS, batch=batch) == Answers(expected, 0)


def test_prompt_longer_than_the_context_loses_its_beginning(model: GPT2LMHeadModel) -> None:
    prompts = ["x" * 10 + "0123456789" * 2 + "abcde", "0123456789" * 2 + "abcde"]  # 32 - 8 + 1 tokens are kept
    found = ask(model, prompts)
    assert found.truncated == 1
    assert found.texts[0] == found.texts[1]


def test_answer_limit_beyond_the_context_leaves_half_of_it_to_the_prompt(model: GPT2LMHeadModel) -> None:
    found = ask(model, ["0123456789"], longest=1000)
    assert found.truncated == 0
    assert found.texts == [alone(model, b"0123456789", 32 - 16 + 1)]


def test_answer_ends_at_end_of_text(model: GPT2LMHeadModel) -> None:
    texts = ask(model, PROMPTS).texts
    likely = max(range(256), key=lambda byte: sum(text.encode().count(byte) for text in texts))
    row = model.transformer.wte.weight[END].clone()
    with torch.no_grad():  # a frequent byte of the answers now ends a text
        model.transformer.wte.weight[END] = model.transformer.wte.weight[likely] * 1.5
    try:
        shorter = ask(model, PROMPTS).texts
        assert shorter == [alone(model, prompt.encode(), 8) for prompt in PROMPTS]
        assert min(map(len, shorter)) < 8
    finally:
        with torch.no_grad():
            model.transformer.wte.weight[END] = row


def test_answer_is_stopped_by_an_error_of_the_progress_call(model: GPT2LMHeadModel) -> None:
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        if done >= 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(model, PROMPTS, batch=3, progress=progress)
    assert told[0] == 0  # the call comes at the first token, not when a batch is done
    assert told[-1] == 3


# -- files of a run ----------------------------------------------------------------------------------------------------


def run_of_words(new_run: Callable[..., Run], task: str | None, steps: int, **more: Any) -> Run:
    """Return a run with two classes, which the prompt's one word decides."""
    pairs = [
        {"prompt": f"{i} {'sun' if i % 3 else 'rain'}: ", "completion": "good" if i % 3 else "bad"} for i in range(300)
    ]
    content = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    path = f"data/{fingerprint}/my.jsonl"
    run = new_run(
        data={"path": path, "format": "pairs"},
        fingerprint=fingerprint,
        hyperparameters={"steps": steps, "batchSize": 16},
        evaluation={"every": steps, **({"task": task} if task else {})},
        **more,
    )
    run.storage.write(path, content)
    return run


def scores_of(run: Run) -> Scores:
    found = scores.read(run.storage, run.spec.run)
    assert found is not None
    return found


@pytest.mark.slow
def test_run_of_pairs_is_evaluated_at_its_end(new_run: Callable[..., Run]) -> None:
    run = run_of_words(new_run, "sentiment", 80, cluster={"workers": 1}).start()
    assert run.wait().state == "SUCCEEDED"
    found = scores_of(run)
    assert (found.task, found.split, found.truncated) == ("sentiment", "test", 0)
    assert found.metrics["accuracy"] > 0.95 > 0.8 > found.baseline.metrics["accuracy"]
    answered = run.storage.read("runs/test-run/predictions.jsonl").decode().splitlines()
    assert len(answered) == found.examples > 10
    right = [json.loads(line)["expected"] == json.loads(line)["predicted"] for line in answered]
    assert sum(right) / len(right) == pytest.approx(found.metrics["accuracy"])
    page = run.storage.read("runs/test-run/report.html").decode()
    assert "Evaluation" in page
    assert f"{found.metrics['accuracy']:.1%}" in page


def test_run_of_text_is_evaluated_by_its_perplexity(new_run: Callable[..., Run]) -> None:
    run = new_run(hyperparameters={"steps": 60}, evaluation={"every": 60, "sequences": 10**6, "task": "text"}).start()
    assert run.wait().state == "SUCCEEDED"
    found = scores_of(run)
    assert (found.split, found.samples) == ("validation", [])
    model = GPT2LMHeadModel.from_pretrained(run.folder / "runs" / "test-run" / "model").eval()
    prepared = find_prepared(run.storage, run.spec.data, run.spec.fingerprint)
    assert prepared is not None
    windows = Windows(prepared.tokens("validation"), 32)
    inputs, targets = map(torch.from_numpy, windows.rows(windows.first(len(windows))))
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
    assert found.metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    # The run also validated on these sequences, but with the model in training, which gives a little probability to
    # rows that the export cuts off.
    assert 0.98 < found.metrics["loss"] / run.validation()[-1] <= 1
    assert found.metrics["perplexity"] == pytest.approx(math.exp(found.metrics["loss"]))
    assert found.metrics["perplexity"] < found.baseline.metrics["perplexity"]


def test_run_that_cannot_be_evaluated_succeeds(new_run: Callable[..., Run], tmp_path: Path) -> None:
    run = run_of_words(new_run, "sentiment", 5)
    in_the_way = run.folder / "runs" / "test-run" / "predictions.jsonl"
    (in_the_way / "folder").mkdir(parents=True)
    assert run.start().wait().state == "SUCCEEDED"
    assert scores.read(run.storage, "test-run") is None
    said = "\n".join(run.machine("master-0").log)
    assert "not evaluated" in said
    assert f"python -m scripts.evaluate test-run --bucket {run.storage.url}" in said
