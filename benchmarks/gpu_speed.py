"""How fast GPUs train gpt2 with 124M parameters, beside nanoGPT, and what memory and checkpoints that takes."""

import argparse
import datetime
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_session import Session, commit, device_name, finish, visible
from benchmarks.throughput import NEVER, SETTLED, make_run, measure, nanogpt_step, our_step, our_trainer
from infra.sizing.measured_gpus import MeasuredGpu
from tests.trainer.running import Run
from trainer.contract import memory
from trainer.contract.errors import first_line
from trainer.contract.geometry import Dimensions, padded_vocabulary

MODEL = "gpt2"
GPT2 = {"layers": 12, "heads": 12, "width": 768, "length": 1024, "vocabulary": 50257}
LARGE = 40e9  # bytes of a GPU's memory that take 32 rows; others take 8
GOAL_RATIO, GOAL_MFU = 1.1, 0.45  # beside nanoGPT compiled, on one H100
PREDICTED = 0.15  # the part by which the peak of memory may differ from the prediction
STEPS = 60  # of a whole run
CHECKPOINT_EVERY = 10  # steps
Found = dict[str, float | None]


def shape(session: Session, rows: int, precision: str, *, compiled: bool = False) -> argparse.Namespace:
    """Return the options of benchmarks.throughput for gpt2."""
    sizes = {**GPT2, "batch": rows, "nanogpt_batch": rows, "dtype": precision, "compile": compiled}
    return argparse.Namespace(nanogpt=session.options.nanogpt, threads=4, **sizes)


def apart(work: Callable[..., Found], seconds: float, *arguments: Any) -> Found:
    """Return what `work` returns in a process of its own, whose GPU memory is its own too."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, work, arguments), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise RuntimeError(f"not done after {seconds:.0f} s")
        answer = here.recv()
    except EOFError as error:
        process.join()
        raise RuntimeError(f"its process ended with code {process.exitcode}") from error
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    found: Found = answer
    return found


def _work(there: Connection, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    try:
        there.send(work(*arguments))
    except Exception as error:
        there.send(first_line(error))


def our_speed(shape: argparse.Namespace, folder: Path, seconds: float) -> Found:
    """Return tokens per second of the real loop with one member, its peak, and its memory: tensors, and all torch's."""
    torch.set_num_threads(shape.threads)
    run = make_run(shape, folder, f"one-{time.time_ns()}", NEVER, shape.threads)
    trainer = our_trainer(run)
    tokens = shape.batch * shape.length
    measure(lambda: our_step(trainer), seconds / 2, tokens)
    speed = measure(lambda: our_step(trainer), seconds, tokens)
    peak = trainer.engine.announcement.peak
    taken, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"speed": speed, "peak": peak, "memory": taken, "reserved": reserved}


def their_speed(shape: argparse.Namespace, tokens: Path, seconds: float) -> Found:
    """Return the tokens per second of nanoGPT's loop."""
    torch.set_num_threads(shape.threads)
    step = nanogpt_step(shape, tokens)
    measure(step, seconds / 2, shape.batch * shape.length)
    return {"speed": measure(step, seconds, shape.batch * shape.length)}


def predicted_bytes(run: Run) -> float:
    """Return what infra predicts of the tensors on the GPU of a run's only process, with the whole batch at once."""
    spec = run.spec
    width, length = GPT2["width"], GPT2["length"]
    size = Dimensions(GPT2["layers"], width, length, padded_vocabulary(GPT2["vocabulary"]))
    half = spec.hyperparameters.precision != "fp32"
    process = memory.TrainerProcess(size, spec.hyperparameters, spec.parallel, size.parameters, half=half)
    return memory.held(process, spec.hyperparameters.batch_size).total


def one_gpu(session: Session, rows: int, precision: str, *, compiled: bool) -> None:
    """Measure the speed and memory of one GPU, beside nanoGPT."""
    options, way = shape(session, rows, precision, compiled=compiled), "compiled" if compiled else "eager"
    run = make_run(options, session.folder, f"predicted-{way}", NEVER, options.threads)
    with visible("0"):
        ours = apart(our_speed, session.left, options, session.folder, session.options.seconds)
    speed, peak, taken, reserved = (ours[key] for key in ("speed", "peak", "memory", "reserved"))
    assert speed is not None
    assert taken is not None
    assert reserved is not None
    mfu, h100 = speed / peak if peak else None, "H100" in device_name()
    words = f"{speed:,.0f} tokens/s" + (f", MFU {mfu:.1%}" if mfu else "")
    if compiled and h100:
        session.add(f"one GPU, {way}", words, f"MFU {GOAL_MFU:.0%}", (mfu or 0) >= GOAL_MFU)
    else:
        session.add(f"one GPU, {way}", words)
    predicted = predicted_bytes(run)
    wanted = f"{predicted / 1e9:.2f} GB, within {PREDICTED:.0%}"
    session.add(f"its memory, {way}", f"{taken / 1e9:.2f} GB", wanted, abs(taken / predicted - 1) <= PREDICTED)
    session.speeds.append(
        MeasuredGpu(
            device=device_name(),
            model=MODEL,
            precision=precision,
            compiled=compiled,
            tokens_per_second=round(speed),
            mfu=mfu,
            peak_memory=reserved,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            commit=commit(),
        )
    )
    if session.options.nanogpt is None:
        return
    tokens = next(session.folder.glob("data/*/*/train-00000.bin"))
    with visible("0"):
        theirs = apart(their_speed, session.left, options, tokens, session.options.seconds)["speed"]
    assert theirs is not None
    words = f"{speed / theirs:.2f} of {theirs:,.0f} tokens/s"
    if compiled and h100:
        session.add(f"beside nanoGPT, {way}", words, f"{GOAL_RATIO}", speed / theirs >= GOAL_RATIO)
    else:
        session.add(f"beside nanoGPT, {way}", words)


def whole_run(session: Session, part: str, rows: int, precision: str, **declared: Any) -> None:
    """Measure a run of `python -m trainer` on all GPUs, compiled, and what its checkpoints cost if it has any."""
    options = shape(session, rows * session.gpus, precision, compiled=True)
    cluster = {"processes": session.gpus, "gpus": session.gpus, **declared.pop("cluster", {})}
    name = part.replace(" ", "-").replace(",", "")
    run = make_run(options, session.folder, name, STEPS, options.threads, cluster=cluster, **declared)
    run.start(forked=False)
    finish(run, session.left)
    records = run.steps()[SETTLED:]
    seconds = [record.step_seconds or 0.0 for record in records]
    usual = statistics.median(seconds)
    speed = options.batch * options.length / usual
    mfu = [record.mfu for record in records if record.mfu is not None]
    session.add(part, f"{speed:,.0f} tokens/s" + (f", MFU {statistics.median(mfu):.1%}" if mfu else ""))
    every = run.spec.checkpoints.every
    waiting = [taken - usual for record, taken in zip(records, seconds, strict=True) if (record.step - 1) % every == 0]
    if waiting:  # the step after a checkpoint waits for its copy
        more = (sum(seconds) - usual * len(seconds)) / len(waiting)
        session.add("a checkpoint", f"{1e3 * statistics.median(waiting):.0f} ms of stall, {1e3 * more:.0f} ms in all")


def speeds(session: Session) -> None:
    """Measure one GPU and all GPUs."""
    rows = 32 if torch.cuda.get_device_properties(0).total_memory > LARGE else 8
    precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    for way in ("compiled", "eager"):
        work = partial(one_gpu, session, rows, precision, compiled=way == "compiled")
        session.attempt(f"one GPU, {way}", 60, work)
    declarations: dict[str, dict[str, Any]] = {
        "data parallel": {"checkpoints": {"every": CHECKPOINT_EVERY}},
        "fsdp": {"parallel": {"parallelism": "fsdp"}},
        "with a parameter server": {"cluster": {"parameterServers": 1}},
    }
    for name, declared in declarations.items():
        part = f"{session.gpus} GPUs, {name}"
        if name == "fsdp" and session.gpus == 1:
            session.add(part, "not begun: it needs two GPUs")
        else:
            session.attempt(part, 50, partial(whole_run, session, part, rows, precision, **declared))
