"""Tokens per second of our training step beside nanoGPT's, in one run: `python -m benchmarks.throughput --nanogpt DIR`.

Same model, batch, sequence length, precision and threads; both take whole steps with data, clipping and optimizer, in
many short turns, so that a noisy machine disturbs both alike. The figure is the median of the turns' ratios, with the
middle half of them beside it.

What ours does besides: everything of the real loop with one member (quorum, vote, metrics, status, heartbeat).
nanoGPT is not part of this project: clone it, and give its folder.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.batches import TOKEN, Batches, Tokens, Windows
from trainer.checkpoint import Checkpoints
from trainer.cluster import Cluster
from trainer.device import peak_speed, pick
from trainer.metrics import Metrics
from trainer.model import Flat, build, compiled, make_loss
from trainer.optimizer import Optimizer
from trainer.spec import END_OF_TEXT, Data, Hyperparameters, JobSpec, Model
from trainer.spec import Cluster as ClusterSpec
from trainer.status import StatusWriter
from trainer.storage import open_storage
from trainer.tokenizer import from_bytes
from trainer.train import Training

Step = Callable[[], None]


class _Vocabulary:
    """Stands in for a tokenizer: only its size matters here."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab_size(self) -> int:
        return self._size

    def token_to_id(self, token: str) -> int:
        assert token == END_OF_TEXT
        return 0


def our_step(options: argparse.Namespace, folder: Path, tokens: Path) -> Step:
    hyper = Hyperparameters(
        learning_rate=6e-4,
        batch_size=options.batch,
        sequence_length=options.length,
        micro_batch_size=options.batch,
        steps=10**6,
        precision=options.dtype,
        compile=options.compile,
    )
    spec = JobSpec(
        run="benchmark",
        model=Model(layers=options.layers, heads=options.heads, width=options.width, positions=options.length),
        data=Data(path="data", tokenizer="byte"),
        fingerprint="none",
        code="none",
        hyperparameters=hyper,
        cluster=ClusterSpec(threads=options.threads),
    )
    storage = open_storage(str(folder))
    device, precision = pick(hyper.precision)
    vocabulary: Any = _Vocabulary(options.vocabulary) if options.vocabulary else from_bytes()
    model = build(spec.model, vocabulary, hyper.dropout, hyper.seed).to(device).eval()
    flat = Flat(model, device)
    loss = make_loss(model, precision, device)
    log = print
    cluster = Cluster(
        storage, spec.run, "master-0", trainers=1, least=1, address="127.0.0.1", device=device,
        log=log, report=lambda *_: None, stopping=lambda: False,
    )  # fmt: skip
    training = Training(
        spec,
        flat=flat,
        loss=compiled(loss, log) if options.compile else loss,
        optimizer=Optimizer(flat, hyper),
        batches=Batches(Tokens([tokens]), options.batch, options.length, hyper.seed),
        validation=Windows(Tokens([tokens]), options.length),
        cluster=cluster,
        checkpoints=Checkpoints(storage, spec.run, 1, log),
        metrics=Metrics(storage, spec.run, "master-0", lambda line: None),
        status=StatusWriter(storage, spec.run, 1, log),
        device=device,
        scaled=precision == torch.float16,
        peak_speed=peak_speed(device, precision, model, options.length),
        log=lambda line: None,
        report=lambda **_: None,
        stopping=lambda: False,
    )
    cluster.join(0.0)

    def step() -> None:
        training.step(cluster.quorum((0, 0, 0)))

    return step


def nanogpt_step(options: argparse.Namespace, tokens: Path) -> Step:
    """The body of nanoGPT's train.py loop with its own model, optimizer and way to draw a batch."""
    location = importlib.util.spec_from_file_location("nanogpt_model", options.nanogpt / "model.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules["nanogpt_model"] = module
    location.loader.exec_module(module)
    device, precision = pick(options.dtype)
    vocabulary = options.vocabulary or 257
    config = module.GPTConfig(
        block_size=options.length,
        vocab_size=-(-vocabulary // 64) * 64,
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
        starts = torch.randint(len(data) - options.length, (options.batch,))
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
    """Tokens per second over about `seconds`."""
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    for name, value in (("layers", 4), ("heads", 4), ("width", 128), ("length", 128), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens (default: %(default)s)")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="both through torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=40, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a turn (default: %(default)s)")
    options = parser.parse_args()
    if not (options.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt}: no model.py there; give a checkout of nanoGPT")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.bin"
        np.random.default_rng(0).integers(0, options.vocabulary, 2_000_000).astype(TOKEN).tofile(tokens)
        steps = {"ours": our_step(options, Path(scratch), tokens), "nanoGPT": nanogpt_step(options, tokens)}
        a_step = options.batch * options.length
        for step in steps.values():
            measure(step, 2.0, a_step)  # warm-up, compiling included
        speeds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.rounds):
            for name in list(steps)[:: 1 if turn % 2 else -1]:
                speeds[name].append(measure(steps[name], options.seconds, a_step))
            if turn % 10 == 9:
                print(f"{turn + 1} of {options.rounds} turns", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds["nanoGPT"], strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    shape = f"L{options.layers} E{options.width} V{options.vocabulary} B{options.batch} T{options.length}"
    print(
        f"{shape} {options.dtype}{' compiled' if options.compile else ''}, {options.threads} threads:"
        f" ours {medians['ours']:,.0f}, nanoGPT {medians['nanoGPT']:,.0f} tokens/s,"
        f" ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
