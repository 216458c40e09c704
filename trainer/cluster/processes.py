"""The processes of one machine, one for each GPU. They never change: if one is lost, all end.

The supervisor starts the first process, which starts the others with its own command line. The kernel ends them with
it, and it ends itself when one of them has failed; the supervisor then starts all again.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

LOCALHOST = "127.0.0.1"
RANK, PORT = "GPT2_TRAINING_LOCAL_RANK", "GPT2_TRAINING_LOCAL_PORT"
# A machine that is silent for ten minutes is started again by its supervisor; a step may take longer than that.
COLLECTIVE = timedelta(hours=6)
# The first process asks for a quorum and waits for as long as machines are missing. The others wait for it.
FOREVER = timedelta(days=1000)
MESSAGE = 4096  # bytes of the first part of a shared value


def local_rank() -> int:
    """Return this process's rank on its machine; 0 if it is the only one."""
    return int(os.environ.get(RANK, "0"))


class Processes:
    """This process as one of `size`, once all of them run. One alone has nothing to wait for.

    All must call the same methods in the same order. Those that a thread of its own calls, `reduce` and `gather`, have
    an order of their own. CUDA's current device is this process's own.
    """

    def __init__(self, size: int, peaceful: tuple[int, ...], log: Callable[[str], None]) -> None:
        """Start or meet the others. peaceful: exit codes with which a process may end without ending the others."""
        self.rank, self.size, self._peaceful, self._log = local_rank(), size, peaceful, log
        self._others: list[subprocess.Popen[bytes]] = []
        self._mesh: DeviceMesh | None = None
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(self.rank)
        if size == 1:
            return
        listener = None
        if self.rank == 0:
            listener = socket.create_server((LOCALHOST, 0))
            os.environ[PORT] = str(listener.getsockname()[1])
            self._others = [self._start(rank) for rank in range(1, size)]
        store = TCPStore(
            LOCALHOST,
            int(os.environ[PORT]),
            is_master=listener is not None,
            wait_for_workers=False,
            use_libuv=True,
            master_listen_fd=listener.detach() if listener else None,
        )
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=size, timeout=COLLECTIVE)
        self._control = _new_group("gloo", FOREVER)
        self._traffic = _new_group(backend, COLLECTIVE)  # of the thread that moves buckets
        self._mesh = init_device_mesh("cuda" if cuda else "cpu", (size,))

    @property
    def mesh(self) -> DeviceMesh:
        """torch's device mesh of all processes of the machine."""
        assert self._mesh is not None
        return self._mesh

    # -- what the processes tell each other ------------------------------------------------------------------------

    def share(self, value: Any = None) -> Any:
        """Return the first process's JSON value, on every process. The others wait for it as long as it takes."""
        if self.size == 1:
            return value
        body = json.dumps(value).encode() if self.rank == 0 else b""
        message = torch.zeros(MESSAGE, dtype=torch.uint8)
        if self.rank == 0:
            head = len(body).to_bytes(8, "big") + body[: MESSAGE - 8]
            message[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        dist.broadcast(message, 0, group=self._control)
        received = bytes(message.numpy())
        length = int.from_bytes(received[:8], "big")
        received = received[8 : 8 + length]
        if length > len(received):
            rest = torch.empty(length - len(received), dtype=torch.uint8)
            if self.rank == 0:
                rest.copy_(torch.frombuffer(bytearray(body[len(received) :]), dtype=torch.uint8))
            dist.broadcast(rest, 0, group=self._control)
            received += bytes(rest.numpy())
        return json.loads(received)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        return self.greatest(int(flag)) > 0

    def greatest(self, value: int) -> int:
        """Return the greatest value of all processes."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._control)
        return int(values)

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    # -- the traffic of gradients and parameters ------------------------------------------------------------------

    def reduce(self, parts: Tensor, total: Tensor) -> None:
        """Sum over the processes, and leave each its own part.

        gloo's own reduce-scatter reduces everything everywhere, and took twice to four times as long.

        Args:
            parts: fp32 [size * n], of which part k becomes process k's.
            total: fp32 [n], filled with the sum of this process's part, on a CPU in the order of the ranks.
        """
        if parts.is_cuda:
            dist.reduce_scatter_tensor(total, parts, group=self._traffic)
            return
        pieces = torch.split(parts, len(total))
        received = [torch.empty_like(total) if rank != self.rank else pieces[rank] for rank in range(self.size)]
        works = []
        for distance in range(1, self.size):  # each process begins with another partner
            sender, receiver = (self.rank - distance) % self.size, (self.rank + distance) % self.size
            works.append(dist.irecv(received[sender], group=self._traffic, group_src=sender))
            works.append(dist.isend(pieces[receiver], group=self._traffic, group_dst=receiver))
        for work in works:
            assert work is not None
            work.wait()
        total.copy_(received[0])
        for other in received[1:]:
            total.add_(other)

    def gather(self, whole: Tensor, part: Tensor) -> None:
        """Fill `whole`, [size * n], with the parts of all processes, [n] each."""
        dist.all_gather_into_tensor(whole, part, group=self._traffic)

    # -- their lives -----------------------------------------------------------------------------------------------

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, RANK: str(rank), "GPT2_TRAINING_SUPERVISOR": str(os.getpid())}
        environment.pop("GPT2_TRAINING_REPORT_FD", None)  # the first process alone reports for the machine
        # close_fds=False: as in trainer/machine/supervisor.py, they inherit the lock that says that this machine lives
        process = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, close_fds=False)
        threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if code in self._peaceful:
            return
        if code <= 1:  # else its own last line says why
            self._log(f"process {rank} of this machine ended with code {code}: all end, to start again")
        if code < 0:  # a signal is no error of the program: so the supervisor sees it
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(code)  # the kernel ends the others with this one

    def wait(self) -> None:
        """Wait, in the first process, for the others to end: they would end with it."""
        for process in self._others:
            process.wait()


def _new_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """Return another group of all processes of the machine."""
    group = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group
