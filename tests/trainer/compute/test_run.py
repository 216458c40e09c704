"""Whole runs of `python -m trainer`: they end, and they resume exactly. Most are forks, see tests/warm.py."""

import json
import os
import shutil
import signal
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.trainer.running import STEPS, Run
from trainer.data.batches import Windows
from trainer.data.prepared import find_prepared
from trainer.data.tokenizer import from_bytes
from trainer.model.flat import Flat
from trainer.model.gpt2 import build
from trainer.model.loss import make_loss
from trainer.runs.records import Status
from trainer.storage import manifest
from trainer.training.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow
NewRun = Callable[..., Run]


def test_run_ends_with_a_model_that_transformers_loads(undisturbed: Run) -> None:
    status = undisturbed.status()
    assert status is not None
    assert (status.state, status.step, status.attempt) == ("SUCCEEDED", STEPS, 1)
    assert status.started is not None
    assert status.finished is not None
    assert len(undisturbed.losses()) == STEPS
    first, last = undisturbed.validation()
    assert last < first < 4.0  # before training the loss over 257 tokens is 5.5 nats

    folder = undisturbed.storage.local_path("runs/test-run/model")
    assert folder is not None
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(listed)
    assert all(manifest.verify(folder / name, entry) for name, entry in listed.items())
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.vocab_size, model.config.activation_function) == (257, "gelu_new")
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert tokenizer.decode(tokenizer("one plus two")["input_ids"]) == "one plus two"
    text = pipeline("text-generation", model=str(folder))("one plus", max_new_tokens=8, do_sample=False)
    assert text[0]["generated_text"].startswith("one plus")
    # The model learned what the loss says: its loss on the same kind of text is near the last validation loss.
    ids = torch.tensor(tokenizer("two plus two is four\none plus")["input_ids"])[None, :32]
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss) < last + 1.0


def test_finished_run_that_is_started_again_stays_finished(undisturbed: Run, new_run: NewRun) -> None:
    run = new_run()
    shutil.copytree(undisturbed.folder, run.folder, dirs_exist_ok=True)  # other tests read the first one's history
    before = run.storage.list("runs/test-run/checkpoints"), run.status()
    run.start().wait()
    assert (run.storage.list("runs/test-run/checkpoints"), run.status()) == before
    assert run.machine("master-0").state == "finished"


def test_two_trainers_compute_what_one_computes(undisturbed: Run, new_run: NewRun) -> None:
    """The losses are equal bit for bit: with two micro-batches a step, both runs sum the same two gradients."""
    run = new_run(cluster={"workers": 1})
    assert run.start(forked=False).wait().state == "SUCCEEDED"
    assert {record.trainers for record in run.steps()} == {2}
    assert run.losses() == undisturbed.losses()
    assert run.validation() == pytest.approx(undisturbed.validation(), abs=1e-6)


def test_run_that_was_stopped_and_then_killed_resumes_exactly(undisturbed: Run, new_run: NewRun) -> None:
    """A stop saves the last step; after a kill the run takes the steps since its newest checkpoint again."""
    run = new_run()
    run.start().until_step(150)
    run.machines["master-0"].send_signal(signal.SIGTERM)
    stopped = run.wait()
    assert stopped.state == "RUNNING"  # nobody ended the run: it only has no machine
    assert stopped.step < STEPS
    assert run.machine("master-0").state == "stopped"
    run.start().until_step(stopped.step + 50)
    killed = run.machine("master-0").trainer_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    final = run.wait()
    assert (final.state, final.attempt) == ("SUCCEEDED", 3)
    assert run.machine("master-0").restarts == 1
    assert run.losses() == undisturbed.losses()
    assert run.validation() == undisturbed.validation()


def test_damaged_newest_checkpoint_is_skipped(undisturbed: Run, new_run: NewRun) -> None:
    run = new_run()
    run.start().until_step(250)
    run.machines["master-0"].send_signal(signal.SIGTERM)
    assert run.wait().state == "RUNNING"
    folders = sorted({e.path.rsplit("/", 1)[0] for e in run.storage.list("runs/test-run/checkpoints")})
    assert len(folders) == 2  # the newest two are kept
    newest = run.storage.local_path(f"{folders[-1]}/part-00000-of-00001.safetensors")
    assert newest is not None
    body = bytearray(newest.read_bytes())
    body[-1] ^= 1
    newest.write_bytes(bytes(body))
    run.start()
    assert run.wait().state == "SUCCEEDED"
    assert run.losses() == undisturbed.losses()


def test_run_with_sgd_and_dropout_resumes_exactly(new_run: NewRun) -> None:
    settings = {"optimizer": "sgd", "dropout": 0.1, "steps": 300}
    calm, run = new_run(hyperparameters=settings), new_run(hyperparameters=settings, checkpoints={"every": 50})
    assert calm.start().wait().state == "SUCCEEDED"
    run.start().until_step(60)
    run.machines["master-0"].send_signal(signal.SIGTERM)
    assert run.wait().state == "RUNNING"
    assert run.start().wait().state == "SUCCEEDED"
    assert run.losses() == calm.losses()
    assert run.validation() == calm.validation()
    assert saved_loss(run) == pytest.approx(run.validation()[-1], abs=1e-5)  # validation ran without dropout


def saved_loss(run: Run) -> float:
    """Return the mean validation loss of the newest checkpoint.

    It holds the model in training, with its padded vocabulary.
    """
    spec = run.spec
    model = build(spec.model, from_bytes(), dropout=0.0, seed=0).eval()
    flat = Flat(model, torch.device("cpu"))
    checkpoints = CheckpointStore(run.storage, spec.run, spec.checkpoints, print)
    assert checkpoints.restore({"parameters": flat.parameters}, layout=flat.layout) is not None
    inputs, targets = validation_rows(run)
    with torch.no_grad():
        return float(make_loss(model, None, torch.device("cpu"))(inputs, targets)) / targets.numel()


def validation_rows(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    prepared = find_prepared(run.storage, run.spec.data, run.spec.fingerprint)
    assert prepared is not None
    windows = Windows(prepared.tokens("validation"), run.spec.hyperparameters.sequence_length)
    inputs, targets = windows.rows(windows.first(run.spec.evaluation.sequences))
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def exported_loss(run: Run) -> float:
    """Return the mean validation loss of the exported model, as transformers computes it."""
    inputs, targets = validation_rows(run)
    folder = run.storage.local_path("runs/test-run/model")
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder).eval()(inputs).logits
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_run_that_lost_its_machine_before_the_export_writes_its_model(undisturbed: Run, new_run: NewRun) -> None:
    run = new_run()
    shutil.copytree(undisturbed.folder, run.folder, dirs_exist_ok=True)
    shutil.rmtree(run.folder / "runs/test-run/model")
    run.storage.delete("runs/test-run/status.json")
    status = run.start(forked=False).wait()
    assert (status.state, status.step, status.attempt) == ("SUCCEEDED", STEPS, 2)
    card = run.storage.read("runs/test-run/model/README.md").decode()
    assert f"validation loss | {undisturbed.validation()[-1]:.4f} nats" in card
    assert exported_loss(run) == pytest.approx(undisturbed.validation()[-1], abs=1e-4)


def test_fp16_without_a_gpu_fails_the_run(new_run: NewRun) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    run = new_run(hyperparameters={"precision": "fp16"})
    status = run.start().wait()
    assert (status.state, status.step) == ("FAILED", 0)
    assert status.reason == "master-0: hyperparameters.precision: fp16 needs a GPU; use fp32, bf16 or auto"
    assert run.machine("master-0").log == [status.reason.removeprefix("master-0: ")]


def test_run_that_diverges_fails_without_a_restart_and_names_the_learning_rate(new_run: NewRun) -> None:
    run = new_run(
        hyperparameters={"learningRate": 10.0, "optimizer": "sgd", "gradientClip": 0.0, "warmupSteps": 0, "steps": 100}
    )
    status = run.start().wait()
    assert status.state == "FAILED"
    assert "learningRate" in status.reason
    assert run.machine("master-0").restarts == 0
    failed_at = status.step
    run.spec = run.spec.model_copy(
        update={"hyperparameters": run.spec.hyperparameters.model_copy(update={"learning_rate": 0.001})}
    )
    run.write_spec()
    assert isinstance(run.start().wait(), Status)
    assert run.status() == status  # the same launch does not start again
    run.relaunch()
    again = run.start().wait()
    assert (again.state, again.launch) == ("SUCCEEDED", 2)
    assert failed_at <= again.step
