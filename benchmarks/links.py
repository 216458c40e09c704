"""Network namespaces that replace machines: a bridge joins them, and their links have a given speed both ways."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "gpt2-links"
MTU = 8896  # bytes, the most that Google's networks carry: headers are 1 % of them, and 5 % of 1500
BURST, QUEUE = 32768, 4 * 2**20  # bytes, for a link's token bucket
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1


class LinksUnavailable(Exception):
    """This machine does not let us make namespaces or shape links. The message says why."""


def address(member: int) -> str:
    return f"10.213.0.{member + 1}"


@contextlib.contextmanager
def links(rates: Sequence[float]) -> Iterator[list[str]]:
    """Yield the names of namespaces, one for each rate (bits/s, each way). Its link is eth0, its address is address(i).

    They are removed afterwards, as are those of an earlier run that was killed. Raise LinksUnavailable.
    """
    if os.geteuid() != 0:
        raise LinksUnavailable("it takes root to make network namespaces")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise LinksUnavailable(f"there is no `{tool}`: install iproute2")
    sweep()
    switch, members = f"{PREFIX}-{os.getpid()}-switch", [f"{PREFIX}-{os.getpid()}-{i}" for i in range(len(rates))]
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "mtu", str(MTU), "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for i, (name, rate) in enumerate(zip(members, rates, strict=True)):
            port = f"port{i}"
            _run("ip", "netns", "add", name)
            _run("ip", "-n", switch, "link", "add", port, "mtu", str(MTU), "type", "veth",
                 "peer", "name", "eth0", "netns", name, "mtu", str(MTU))  # fmt: skip
            _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", name, "address", "add", f"{address(i)}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", link, "up")
            for where, link in ((name, "eth0"), (switch, port)):  # both directions
                _shape(where, link, rate)
        yield members
    finally:
        sweep()


def sweep() -> None:
    """Remove the namespaces of this process and of processes that have ended."""
    found = subprocess.run(["ip", "netns", "list"], check=False, capture_output=True, text=True).stdout
    for line in found.splitlines():
        name = line.split()[0]
        if not name.startswith(f"{PREFIX}-"):
            continue
        owner = int(name.removeprefix(f"{PREFIX}-").split("-")[0])
        if owner == os.getpid() or not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def enter(name: str) -> None:
    """Move this process into a namespace, and let it end with the process that started it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with Path(f"/run/netns/{name}").open() as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")


def _shape(namespace: str, link: str, rate: float) -> None:
    """Limit the packets that leave through `link` to `rate`. The queue is long: a short one would measure drops."""
    _run("tc", "-n", namespace, "qdisc", "add", "dev", link, "root", "tbf",
         "rate", f"{rate:.0f}bit", "burst", str(BURST), "limit", str(QUEUE))  # fmt: skip


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LinksUnavailable(f"`{' '.join(command)}` says: {(done.stderr.strip().splitlines() or ['nothing'])[0]}")
