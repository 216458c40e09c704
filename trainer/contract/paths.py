"""The layout of a bucket, which is `gs://bucket` or a folder: every path in it, relative to it.

    current.json                        {"run", "launch"}: the run that the stack declares now
    data/<fingerprint>/<file>           the source text, addressed by its content
    data/<fingerprint>/<tokens key>/    the tokens of that text for one tokenizer and split (trainer/data/prepare.py)
        tokenizer.json
        train-00000.bin ...             shards of a part: uint16 tokens, little-endian, without a header
        train-examples.bin, train.jsonl of pairs: where each example's tokens are (batches.EXAMPLE), and its lines
        manifest.json                   written last: without it, the folder does not count
    runs/<run>/job.json                 JobSpec
    runs/<run>/status.json              Status, changed by conditional writes
    runs/<run>/launches/<launch>.json   Launched: on Google Cloud, where a launch has a deadline and a zone
    runs/<run>/launches/<launch>.placement.json   Placement: where it has moved since (trainer/runs/placement.py)
    runs/<run>/ends/<launch>.json       End: on Google Cloud, its end, as its master asked for it or at the deadline
    runs/<run>/cluster.json             the lease of the Lighthouse's host, and the attempt (trainer/cluster/lease.py)
    runs/<run>/machines/<name>.json     MachineStatus: a machine's heartbeat, history and last words
    runs/<run>/machines/<name>.lock     on this machine: held while its process lives; <name>.log is what it printed
    runs/<run>/metrics/*.jsonl          Record lines (trainer/runs/metrics.py)
    runs/<run>/metrics/tensorboard/     the same as TensorBoard's events, in a bucket that is a folder
    runs/<run>/samples.jsonl            Sample lines (trainer/runs/samples.py)
    runs/<run>/checkpoints/step-00000500-attempt-1/
        part-00000-of-00002.safetensors a member's ranges of the vectors; part-00000-of-00002.json describes it
        manifest.json                   written last: with it, the checkpoint is whole
    runs/<run>/scratch/<process>/       files on their way into a bucket that is a folder
    runs/<run>/model/                   the trained model in Hugging Face's format; manifest.json is written last
    runs/<run>/evaluation.json          Scores: how good the model is at evaluation.task (trainer/runs/scores.py)
    runs/<run>/predictions.jsonl        Prediction lines: all that the model answered
    runs/<run>/report.html              how the run went, as a page (trainer/report/page.py)
    runs/<run>/sweep.json               of a sweep: the trials that are over (trainer/runs/trials.py)
    runs/<run>/trials/<n>/              of a sweep: trial n, with all the files of a run of its own
        parameters.json                 the hyperparameters as they were suggested

A run is named by its id; the id of a sweep's trial is `<run>/trials/<n>`. On Google Cloud `data/` is in a bucket of its
own, beside two folders more:

    vocabulary/gpt2/<file>              GPT-2's vocabulary, for machines without internet
    build/<tag>.tar.gz                  what Cloud Build makes the trainer's image from
"""

import re
from collections.abc import Callable

CURRENT = "current.json"
DATA = "data"
RUNS = "runs"
VOCABULARY = "vocabulary/gpt2"
JOB = "job.json"
MANIFEST = "manifest.json"  # in a folder: written last, it marks the folder as whole
TOKENIZER = "tokenizer.json"  # in a folder of tokens, and in a model's

_IN_RUN = re.compile(rf"{RUNS}/([^/]+(?:/trials/\d+)?)/")
_CHECKPOINT = re.compile(r"step-(\d+)-attempt-(\d+)")


def text(fingerprint: str, name: str) -> str:
    return f"{DATA}/{fingerprint}/{name}"


def tokens(fingerprint: str, tokens_key: str) -> str:
    """Return the folder of a text's tokens. tokens_key: Data.tokens_key()."""
    return f"{DATA}/{fingerprint}/{tokens_key}"


def run(run_id: str) -> str:
    return f"{RUNS}/{run_id}"


def job(run_id: str) -> str:
    return f"{RUNS}/{run_id}/{JOB}"


def status(run_id: str) -> str:
    return f"{RUNS}/{run_id}/status.json"


def launches(run_id: str) -> str:
    return f"{RUNS}/{run_id}/launches"


def launch(run_id: str, number: int) -> str:
    return f"{launches(run_id)}/{number}.json"


def placement(run_id: str, number: int) -> str:
    return f"{launches(run_id)}/{number}.placement.json"


def ends(run_id: str) -> str:
    return f"{RUNS}/{run_id}/ends"


def end(run_id: str, number: int) -> str:
    return f"{ends(run_id)}/{number}.json"


def lease(run_id: str) -> str:
    return f"{RUNS}/{run_id}/cluster.json"


def machines(run_id: str) -> str:
    return f"{RUNS}/{run_id}/machines"


def machine(run_id: str, name: str) -> str:
    return f"{machines(run_id)}/{name}.json"


def machine_lock(run_id: str, name: str) -> str:
    return f"{machines(run_id)}/{name}.lock"


def machine_log(run_id: str, name: str) -> str:
    return f"{machines(run_id)}/{name}.log"


def metrics(run_id: str) -> str:
    return f"{RUNS}/{run_id}/metrics"


def metrics_file(run_id: str, attempt: int, member: str, started: int, number: int) -> str:
    """Return the path of a file of Record lines.

    started: when the member's process started to write, in seconds since the epoch; number: of the file, from 0.
    """
    return f"{metrics(run_id)}/attempt-{attempt}-{member}-{started}-{number:05d}.jsonl"


def tensorboard(run_id: str) -> str:
    return f"{metrics(run_id)}/tensorboard"


def samples(run_id: str) -> str:
    return f"{RUNS}/{run_id}/samples.jsonl"


def checkpoints(run_id: str) -> str:
    return f"{RUNS}/{run_id}/checkpoints"


def checkpoint_name(step: int, attempt: int) -> str:
    """Return the name of a checkpoint's folder in checkpoints()."""
    return f"step-{step:08d}-attempt-{attempt}"


def scratch(run_id: str, process: str) -> str:
    return f"{RUNS}/{run_id}/scratch/{process}"


def model(run_id: str) -> str:
    return f"{RUNS}/{run_id}/model"


def model_file(run_id: str, name: str) -> str:
    return f"{model(run_id)}/{name}"


def model_manifest(run_id: str) -> str:
    return model_file(run_id, MANIFEST)


def evaluation(run_id: str) -> str:
    return f"{RUNS}/{run_id}/evaluation.json"


def predictions(run_id: str) -> str:
    return f"{RUNS}/{run_id}/predictions.jsonl"


def report(run_id: str) -> str:
    return f"{RUNS}/{run_id}/report.html"


def sweep(run_id: str) -> str:
    return f"{RUNS}/{run_id}/sweep.json"


def parameters(run_id: str) -> str:
    return f"{RUNS}/{run_id}/parameters.json"


def image_source(tag: str) -> str:
    return f"build/{tag}.tar.gz"


def trial_id(run_id: str, number: int | str) -> str:
    """Return the id of a sweep's trial, which is a run of its own."""
    return f"{run_id}/trials/{number}"


def sweep_of(run_id: str) -> str | None:
    """Return the run of the sweep that a trial belongs to; None for any other run."""
    sweep_id, separator, _ = run_id.rpartition("/trials/")
    return sweep_id if separator else None


def run_of_job(path: str) -> str | None:
    """Return the run whose job.json this is; None for any other path."""
    return _run_of(path, job)


def run_of_status(path: str) -> str | None:
    """Return the run whose status.json this is; None for any other path."""
    return _run_of(path, status)


def run_of_model(path: str) -> str | None:
    """Return the run whose model is there, as this is the model's manifest; None for any other path."""
    return _run_of(path, model_manifest)


def _run_of(path: str, path_in: Callable[[str], str]) -> str | None:
    match = _IN_RUN.match(path)
    return match[1] if match and path == path_in(match[1]) else None


def is_machine(path: str, run_id: str) -> bool:
    """Return whether this is the MachineStatus of a machine of the run."""
    return path.startswith(f"{machines(run_id)}/") and path.endswith(".json")


def is_metrics(path: str, run_id: str) -> bool:
    """Return whether this is a file of the run's Record lines."""
    return path.startswith(f"{metrics(run_id)}/") and path.endswith(".jsonl")


def parse_checkpoint(name: str) -> tuple[int, int] | None:
    """Return step and attempt of a checkpoint by the name of its folder, greater for newer ones; None for others."""
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def parse_whole_checkpoint(path: str) -> tuple[int, int] | None:
    """Return step and attempt of the checkpoint whose manifest this is; None for any other path."""
    *_, name, file = ["", *path.split("/")]
    return parse_checkpoint(name) if file == MANIFEST else None
