"""Compare a push and a pull with the network's bound and a ring all-reduce: `python -m benchmarks.parameter_server`.

A member is a process in a network namespace of its own, with a shaped link (benchmarks/links.py; Linux, root). Links
are so slow that two cores are no limit. The vector is small, but cut into as many buckets as that of GPT-2 (124M). The
methods take turns, and each figure is the median of the rounds. Sums and parameters are compared bit for bit.

The bound is the time of trainer/contract/exchange_cost.py for these links. Without "interleaved", all members wait for
each other between push and pull, as they do when gradients are clipped.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

os.environ["RUST_LOG"] = "error"
os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torchft import ProcessGroupGloo

from benchmarks.links import LinksUnavailable, address, enter, links
from trainer.cluster.group import MemberGroup
from trainer.contract import exchange_cost
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Lane, Ownership

PORT = 29500
TIMEOUT = timedelta(seconds=120)
RING = "ring all-reduce, no servers"
SHAPES = [(4, 4, 100, 100), (6, 2, 100, 50), (10, 3, 100, 50)]  # trainers, servers, Mb/s of each
METHODS = ["star", "star, interleaved", "hierarchical", "hierarchical, interleaved", RING]


@dataclass(frozen=True)
class Setting:
    trainers: int
    servers: int
    trainer_mbps: float
    server_mbps: float
    elements: int
    bucket: int

    @property
    def size(self) -> int:
        return self.trainers + self.servers

    def bound(self, method: str) -> float:
        links = exchange_cost.Links.of(self.trainer_mbps / 1e3, self.server_mbps / 1e3)
        if method == RING:
            return exchange_cost.all_reduce(self.elements * 4, self.trainers, links)
        plan = exchange_cost.star if method.startswith("star") else exchange_cost.hierarchical
        return plan(self.elements * 4, self.trainers, self.servers, links, "interleaved" in method)


def join(name: str, rank: int, size: int) -> MemberGroup:
    members = ProcessGroupGloo(timeout=TIMEOUT)
    members.configure(f"{address(0)}:{PORT}/{name}", f"member-{rank}", rank, size, 0)
    return MemberGroup(members, rank, size, torch.device("cpu"))


def gradient(setting: Setting, trainer: int) -> torch.Tensor:
    return torch.randn(setting.elements, generator=torch.Generator().manual_seed(trainer))


def expected(setting: Setting) -> torch.Tensor:
    total = gradient(setting, 0)
    for trainer in range(1, setting.trainers):
        total.add_(gradient(setting, trainer))
    return total


def member(setting: Setting, rank: int, namespace: str, orders: Connection) -> None:
    """Run one member: it executes the methods that it receives, and sends the seconds of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    enter(namespace)
    torch.set_num_threads(1)
    store = TCPStore(address(0), PORT, is_master=True, wait_for_workers=False) if rank == 0 else None
    orders.send("here")
    orders.recv()
    everyone = join("everyone", rank, setting.size)
    trainers = join("trainers", rank, setting.trainers) if rank < setting.trainers else None
    shards = Ownership(setting.elements, setting.servers, setting.bucket)
    lane = Lane(((0, setting.elements),))
    exchanges = {
        plan: Exchange(everyone, setting.trainers, shards, lane, plan, torch.float32)
        for plan in ("star", "hierarchical")
    }
    total = expected(setting)
    serves = rank >= setting.trainers
    if serves:
        ranges, places = shards.owned(rank - setting.trainers), shards.places(rank - setting.trainers)
        total = torch.cat([total[start:stop] for start, stop in ranges])
        own = torch.zeros_like(total)
    else:
        mine, parameters = gradient(setting, rank), torch.zeros(setting.elements)

    def barrier() -> None:
        everyone.sum(torch.zeros(1))

    def run(method: str) -> torch.Tensor:
        """Return a vector that must equal `total`: the servers' sum takes the place of the new parameters."""
        if method == RING:
            if trainers is not None:
                parameters.copy_(mine)
                trainers.sum(parameters)
            return total if serves else parameters
        exchange = exchanges[method.split(",")[0]]
        if serves and "interleaved" in method:
            exchange.collect_and_serve(own, lambda bucket: own[slice(*places[bucket])])
        elif serves:
            exchange.collect(own)
            barrier()
            exchange.serve(own)
        elif "interleaved" in method:
            exchange.push_and_pull(mine, parameters)
        else:
            exchange.push(mine)
            barrier()
            exchange.pull(parameters)
        return own if serves else parameters

    while (method := orders.recv()) is not None:
        (own if serves else parameters).zero_()
        barrier()
        begun = time.perf_counter()
        result = run(method)
        seconds = time.perf_counter() - begun
        # a ring adds in another order
        right = torch.allclose(result, total, atol=1e-4) if method == RING else torch.equal(result, total)
        orders.send((seconds, right))
    del store


def measure(setting: Setting, rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Return the seconds of the slowest member, by method."""
    context = multiprocessing.get_context("fork")  # so torch is imported once
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    rates = [setting.trainer_mbps * 1e6] * setting.trainers + [setting.server_mbps * 1e6] * setting.servers
    with ExitStack() as stack:
        namespaces = stack.enter_context(links(rates))
        pipes: list[Any] = []
        for rank, namespace in enumerate(namespaces):
            ours, theirs = context.Pipe()
            process = context.Process(target=member, args=(setting, rank, namespace, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            pipes.append(ours)
            if rank == 0:
                ours.recv()  # the store is there
        for pipe in pipes[1:]:
            pipe.recv()
        for pipe in pipes:
            pipe.send("join")
        for turn in range(rounds + 1):
            for method in METHODS if turn > 0 else METHODS[2:]:  # the faster methods warm the connections up
                for pipe in pipes:
                    pipe.send(method)
                answers = [pipe.recv() for pipe in pipes]
                if not all(right for _, right in answers):
                    raise SystemExit(f"{method}: the result is wrong")
                if turn > 0:
                    found[method].append(max(seconds for seconds, _ in answers))
            say(f"{setting.trainers} trainers, {setting.servers} servers: round {turn} of {rounds}")
        for pipe in pipes:
            pipe.send(None)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parameter_server", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s, about a minute each")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--elements", type=int, default=3_145_728, help="of the vector; default: %(default)s")
    parser.add_argument("--buckets", type=int, default=60, help="default: %(default)s")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(1)
    bucket = -(-options.elements // options.buckets)
    for shape in SHAPES:
        setting = Setting(*shape, options.elements, bucket)
        try:
            found = measure(setting, 1 if options.quick else options.rounds, lambda line: print(line, file=sys.stderr))
        except LinksUnavailable as why:
            print(f"not measured: {why}")
            return 0
        show(setting, {method: statistics.median(seconds) for method, seconds in found.items()})
    return 0


def show(setting: Setting, seconds: dict[str, float]) -> None:
    table = Table(
        title=f"{setting.trainers} trainers of {setting.trainer_mbps} Mb/s,"
        f" {setting.servers} servers of {setting.server_mbps} Mb/s"
    )
    for column in (f"{setting.elements * 4 / 1e6:.1f} MB there and back", "ms", "bound", "/ bound", "/ ring"):
        table.add_column(column, justify="right" if table.columns else "left")
    for method in METHODS:
        took, bound = seconds[method], setting.bound(method)
        ratios = f"{took / bound:.2f}", f"{took / seconds[RING]:.2f}"
        table.add_row(method, f"{took * 1e3:.0f}", f"{bound * 1e3:.0f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
