"""Measure the memory of a parameter server: `python -m benchmarks.memory [--servers 1 2] [--trainers 2]`.

Real runs train a model of 25 million parameters through two checkpoints. The figure is the peak resident memory of a
server beyond that of a tiny model's server, in bytes for each parameter of its part. The bound is 28 bytes (parameters,
gradient, AdamW's two moments, and the copy from which checkpoints are written) and a bucket for each trainer.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.trainer.running import Run
from trainer.parallel.ownership import BUCKET_ELEMENTS

TINY = {"layers": 1, "heads": 1, "width": 8, "positions": 32}
LARGE = {"layers": 8, "heads": 8, "width": 512, "positions": 32}
PARAMETERS = 25_368_064  # those of LARGE with bytes as tokens
STEPS = 6


def peaks(folder: Path, model: dict[str, int], trainers: int, servers: int) -> list[int]:
    """Return the peak memory of each server's computing process during the last steps, in bytes."""
    cluster: dict[str, Any] = {"workers": trainers - 1, "parameterServers": servers}
    run = Run(
        folder,
        model=model,
        hyperparameters={"steps": 100_000},
        checkpoints={"every": STEPS // 2},
        evaluation={"every": 100_000},
        cluster=cluster,
    )
    try:
        run.start()
        run.until_step(STEPS + 1)
        return [_peak(run.machine(f"ps-{i}").trainer_pid) for i in range(servers)]
    finally:
        run.end()


def _peak(process: int | None) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--trainers", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    table = Table("servers", "MB each", "bytes a parameter", "bound", title=f"{options.trainers} trainers")
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        for servers in options.servers:
            tiny = peaks(Path(folder) / f"tiny-{servers}", TINY, options.trainers, servers)
            large = peaks(Path(folder) / f"large-{servers}", LARGE, options.trainers, servers)
            more = max(large) - min(tiny)
            own = PARAMETERS / servers
            bound = 28 + options.trainers * BUCKET_ELEMENTS * 4 / own
            table.add_row(str(servers), f"{more / 1e6:.0f}", f"{more / own:.1f}", f"{bound:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
