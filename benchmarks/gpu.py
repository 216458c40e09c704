"""Try the trainer on a machine with GPUs, in at most eight minutes: `python -m benchmarks.gpu --nanogpt DIR`.

First, whether it computes the right thing, with a small model:

    losses     of 20 steps in fp32, bf16 and fp16, beside those of the CPU in fp32
    restart    a process is killed, and the machine's processes continue from a checkpoint, with the same losses

Then, how fast gpt2 with 124M parameters trains, and what that takes:

    one GPU    eagerly and compiled, each beside nanoGPT's own loop; the peak of its memory beside what infra predicts
    all GPUs   whole runs of `python -m trainer`: data parallel, fsdp, and with a parameter server; what a checkpoint
               takes from a run

A part that fails says why, and the next one begins; so does a part for which no time is left. The table is Markdown.
Speeds of one GPU are also written to --json, from which estimates read them. With --cpu only the first half runs, on
the CPU. nanoGPT is not part of this project: clone it, and give its folder.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu_losses import correctness
from benchmarks.gpu_session import Session, commit, device_name, keep, table
from benchmarks.gpu_speed import speeds
from infra.sizing.measured_gpus import TABLE


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    gpus = 0 if options.cpu else torch.cuda.device_count()
    if gpus == 0 and not options.cpu:
        print("no GPU: torch sees none here; --cpu tries the first half on the CPU", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(options, Path(scratch), gpus, time.monotonic() + 60 * options.minutes)
        session.attempt("losses and restart", 60, lambda: correctness(session))
        if gpus:
            speeds(session)
    name = f"{gpus} x {device_name()}" if gpus else "CPU"
    print(table(session, f"{name}, torch {torch.__version__}, {commit()}"))
    if session.speeds:
        keep(session.speeds, options.json)
    return int(any(row.good is False for row in session.rows))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="only whether the right thing is computed, on the CPU")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; without it nothing is compared")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=TABLE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.nanogpt is not None and not (options.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt}: no model.py there; give a checkout of nanoGPT")
    return options


if __name__ == "__main__":
    sys.exit(main())
