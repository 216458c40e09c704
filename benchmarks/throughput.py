"""Compare our tokens per second with nanoGPT's, in one run: `python -m benchmarks.throughput --nanogpt DIR`.

Both have the same model, batch, sequence length, precision, tokens and cores. Both take whole steps with data,
clipping and optimizer, in turns, so that a noisy machine disturbs both alike. A figure is the median of the
turns. A ratio is the median of the turns' ratios, followed by the middle half of them.

    one process     takes many short turns in this process, through the whole real loop with one member (quorum,
                    vote, metrics, status, heartbeat)
    data parallel, parameter servers, fsdp, two of two
                    are real runs through `python -m trainer`, in turns of the same length: of two trainers, of one
                    whose two processes share the model, and of two trainers with two processes each. They share the
                    cores that nanoGPT's one process has, and so does a server. On one machine they have nothing to
                    gain, and the ratio shows the cost of the exchange

nanoGPT is not part of this project: clone it, and give its folder. For the published GPT-2 on one GPU:

    python -m benchmarks.throughput --nanogpt DIR --layers 12 --heads 12 --width 768 --length 1024 --vocabulary 50257 \
        --batch 32 --dtype bf16 --compile --modes "one process"
"""

import argparse
import hashlib
import importlib.util
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.models import BPE

from tests.trainer.running import Run
from trainer.compute.assembly import TrainingMember, assemble
from trainer.compute.context import make_context
from trainer.compute.process import Process
from trainer.contract import paths
from trainer.data.batches import TOKEN
from trainer.data.prepared import Manifest, Shard, Split, find_prepared
from trainer.data.tokenizer import from_bytes
from trainer.model.device import pick

Step = Callable[[], None]
NEVER = 10**9  # steps
SETTLED = 5  # a run's first steps, which do not count
TOKENS = {"train": 2_000_000, "validation": 100_000}
ONE = "one process"
RUNS: dict[str, dict[str, Any]] = {  # what they declare
    "data parallel": {"cluster": {"workers": 1}},
    "parameter servers": {"cluster": {"workers": 1, "parameterServers": 1}},
    "fsdp": {"cluster": {"processes": 2}, "parallel": {"parallelism": "fsdp"}},
    "two of two": {"cluster": {"workers": 1, "processes": 2}},
}


def make_run(options: argparse.Namespace, folder: Path, name: str, steps: int, threads: int, **declared: Any) -> Run:
    """Declare a run of the compared model in `folder`, and draw its tokens unless they are there."""
    declared["cluster"] = {"threads": threads, **declared.get("cluster", {})}
    run = Run(
        folder,
        run=name,
        model={
            "layers": options.layers, "heads": options.heads, "width": options.width, "positions": options.length,
        },
        data={"tokenizer": "train", "vocabularySize": options.vocabulary},
        hyperparameters={
            "learningRate": 6e-4, "batchSize": options.batch, "sequenceLength": options.length, "steps": steps,
            "microBatchSize": options.batch, "precision": options.dtype, "compile": options.compile,
        },
        **{"evaluation": {"every": NEVER}, "checkpoints": {"every": NEVER}, **declared},
    )  # fmt: skip
    if find_prepared(run.storage, run.spec.data, run.spec.fingerprint) is None:
        _draw_tokens(run, options.vocabulary)
    return run


def _draw_tokens(run: Run, vocabulary: int) -> None:
    """Draw random tokens for a text: the speed depends on the size of the vocabulary, not on the text."""
    folder = paths.tokens(run.spec.fingerprint, run.spec.data.tokens_key())
    tokenizer = from_bytes()
    entries = tokenizer.get_vocab()
    tokenizer.model = BPE(vocab=entries | {f"unused {i}": i for i in range(len(entries), vocabulary)}, merges=[])
    content = tokenizer.to_str().encode()
    run.storage.write(f"{folder}/{paths.TOKENIZER}", content)
    splits, random = {}, np.random.default_rng(0)
    for name, count in TOKENS.items():
        tokens = random.integers(0, vocabulary, count).astype(TOKEN).tobytes()
        shard = Shard(name=f"{name}-00000.bin", tokens=count, sha256=hashlib.sha256(tokens).hexdigest())
        run.storage.write(f"{folder}/{shard.name}", tokens)
        splits[name] = Split(bytes=len(tokens), tokens=count, unigram_entropy=math.log(vocabulary), shards=[shard])
    manifest = Manifest(
        fingerprint=run.spec.fingerprint,
        tokenizer="train",
        tokenizer_sha256=hashlib.sha256(content).hexdigest(),
        vocabulary_size=vocabulary,
        **splits,
    )
    run.storage.write(f"{folder}/{paths.MANIFEST}", manifest.model_dump_json(by_alias=True).encode())


class _Quiet(Process):
    def log(self, line: str) -> None:
        """Print nothing, as the table has everything."""


def our_trainer(run: Run) -> TrainingMember:
    """Return the master of a run of one machine, in this process and ready to take steps."""
    process = _Quiet("master-0", "127.0.0.1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends the benchmark
    prepared = find_prepared(run.storage, run.spec.data, run.spec.fingerprint)
    assert prepared is not None
    trainer = assemble(make_context(process, run.storage, run.spec), prepared)
    trainer.prepare()
    trainer.membership.join(0.0)
    trainer.leads = True
    return trainer


def our_step(trainer: TrainingMember) -> None:
    """Take a step as Training.run does."""
    quorum = trainer.membership.quorum(trainer.progress.position, trainer.engine.announcement)
    assert trainer.engine.prepare(quorum)
    trainer.step(quorum)


def run_speed(run: Run) -> float:
    """Return the tokens per second of a whole run after its first steps."""
    try:
        status = run.start().wait()
    finally:
        run.end()
    if status.state != "SUCCEEDED":
        raise SystemExit(f"{run.spec.run}: {status.state}, {status.reason}")
    steps = run.steps()[SETTLED:]
    hyper = run.spec.hyperparameters
    a_step = hyper.batch_size * hyper.sequence_length
    return a_step * (len(steps) - 1) / (steps[-1].time - steps[0].time)


def nanogpt_step(options: argparse.Namespace, tokens: Path) -> Step:
    """Return the body of nanoGPT's train.py loop with its own model, optimizer and way to draw a batch."""
    location = importlib.util.spec_from_file_location("nanogpt_model", options.nanogpt / "model.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules["nanogpt_model"] = module
    location.loader.exec_module(module)
    device, precision = pick(options.dtype)
    config = module.GPTConfig(
        block_size=options.length,
        vocab_size=-(-options.vocabulary // 64) * 64,
        n_layer=options.layers,
        n_head=options.heads,
        n_embd=options.width,
        dropout=0.0,
        bias=True,
    )
    torch.manual_seed(1337)
    model = module.GPT(config).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    if options.compile:
        model = torch.compile(model)
    data = np.memmap(tokens, dtype=TOKEN, mode="r")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(data) - options.length, (options.nanogpt_batch,))
        x = torch.stack([torch.from_numpy(data[i : i + options.length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + options.length].astype(np.int64)) for i in starts])
        if device.type == "cuda":
            x, y = (t.pin_memory().to(device, non_blocking=True) for t in (x, y))
        return x, y

    ahead = batch()

    def step() -> None:
        nonlocal ahead
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            _, loss = model(*ahead)
        ahead = batch()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(step: Step, seconds: float, tokens: int) -> float:
    """Return the tokens per second over about `seconds`."""
    _wait()
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        step()
        count += 1
    _wait()
    return count * tokens / (time.perf_counter() - begun)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    ours: Callable[[float], float], theirs: Callable[[float], float], rounds: int, seconds: float
) -> list[float]:
    """Return our tokens/s, theirs, and the ratio, as medians of the turns, and the ratio's quartiles."""
    speeds: list[tuple[float, float]] = []
    for turn in range(rounds):
        if turn % 2:
            own, other = ours(seconds), theirs(seconds)
        else:
            other, own = theirs(seconds), ours(seconds)
        speeds.append((own, other))
        print(f"turn {turn + 1} of {rounds}: ratio {own / other:.3f}", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in speeds]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else 3 * ratios
    return [*(statistics.median(column) for column in zip(*speeds, strict=True)), middle, low, high]


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    rows: dict[str, list[float]] = {}
    peak: float | None = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first = make_run(options, folder, "benchmark", NEVER, options.threads)
        tokens = next(folder.glob("data/*/*/train-00000.bin"))
        a_step, their_step = options.batch * options.length, options.nanogpt_batch * options.length
        nanogpt = nanogpt_step(options, tokens)

        def theirs(seconds: float) -> float:
            return measure(nanogpt, seconds, their_step)

        speed = theirs(2.0)  # warm-up, compiling included
        if ONE in options.modes:
            trainer = our_trainer(first)
            peak = trainer.engine.announcement.peak

            def ours(seconds: float) -> float:
                return measure(lambda: our_step(trainer), seconds, a_step)

            ours(2.0)
            rows[ONE] = compare(ours, theirs, options.rounds, options.seconds)
            trainer.membership.close()
            trainer.journal.metrics.close()
            trainer.journal.status.close()
        for mode in [mode for mode in options.modes if mode in RUNS]:

            def a_run(seconds: float, mode: str = mode) -> float:
                name = f"{mode.replace(' ', '-')}-{time.time_ns()}"
                steps = SETTLED + 2 + round(seconds * speed / a_step)
                return run_speed(make_run(options, folder, name, steps, max(1, options.threads // 2), **RUNS[mode]))

            rows[mode] = compare(a_run, theirs, options.run_rounds, options.run_seconds)
    batch = f"B{options.batch}" + (f" (nanoGPT B{options.nanogpt_batch})" if their_step != a_step else "")
    shape = f"L{options.layers} E{options.width} V{options.vocabulary} {batch} T{options.length}"
    print(f"\n{shape} {options.dtype}{' compiled' if options.compile else ''}, {options.threads} threads; tokens/s")
    print(f"{'':18} {'ours':>10} {'nanoGPT':>10} {'ratio':>7}  middle half")
    for mode, (own, other, ratio, low, high) in rows.items():
        mfu = f"   MFU {own / peak:.1%}, nanoGPT {other / peak:.1%}" if peak else ""
        print(f"{mode:18} {own:10,.0f} {other:10,.0f} {ratio:7.3f}  {low:.3f} to {high:.3f}{mfu}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--modes", nargs="+", choices=[ONE, *RUNS], help="default: all; on a GPU, one process")
    for name, value in (("layers", 4), ("heads", 4), ("width", 128), ("length", 128), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--nanogpt-batch", type=int, help="if another batch is better for it (default: as --batch)")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens, 257 or more (default: %(default)s)")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile both models by torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40, help="turns of one process (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.7, help="seconds of such a turn (default: %(default)s)")
    parser.add_argument("--run-rounds", type=int, default=5, help="turns of the other modes (default: %(default)s)")
    parser.add_argument("--run-seconds", type=float, default=10.0, help="seconds of such a turn (default: %(default)s)")
    options = parser.parse_args()
    if not (options.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt}: no model.py there; give a checkout of nanoGPT")
    options.modes = options.modes or ([ONE] if torch.cuda.is_available() else [ONE, *RUNS])
    options.nanogpt_batch = options.nanogpt_batch or options.batch
    return options


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # as in trainer/compute/__main__.py: loaded libraries only print noise at the end
