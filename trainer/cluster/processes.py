"""The processes of one machine, one for each GPU, as a group that never changes: if one is lost, all end.

The supervisor starts the first process, which starts the others with its own command line. The kernel ends them with
it, and it ends itself when one of them has failed; the supervisor then starts all again.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh

from trainer.cluster.announcement import NOTHING, Announcement, Position
from trainer.cluster.group import MemberGroup
from trainer.cluster.host import Host
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.membership import Member, Membership, Quorum
from trainer.contract.spec import JobSpec
from trainer.storage.base import Storage

LOCALHOST = "127.0.0.1"
RANK, PORT = "GPT2_TRAINING_LOCAL_RANK", "GPT2_TRAINING_LOCAL_PORT"
COLLECTIVE = timedelta(minutes=10)  # also the wait for the slowest writer of a last checkpoint


def local_rank() -> int:
    """Return this process's rank on its machine; 0 if it is the only one."""
    return int(os.environ.get(RANK, "0"))


class Processes:
    """This process as one of `size`, once all of them run.

    `mesh` is torch's device mesh of all of them. CUDA's current device is this process's own.
    """

    def __init__(self, size: int, peaceful: tuple[int, ...], log: Callable[[str], None]) -> None:
        """Start or meet the others. peaceful: exit codes with which a process may end without ending the others."""
        self.rank, self.size, self._peaceful, self._log = local_rank(), size, peaceful, log
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        self._others: list[subprocess.Popen[bytes]] = []
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
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(self.rank)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=size, timeout=COLLECTIVE)
        self.mesh = init_device_mesh("cuda" if cuda else "cpu", (size,))

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, RANK: str(rank), "GPT2_TRAINING_SUPERVISOR": str(os.getpid())}
        environment.pop("GPT2_TRAINING_REPORT_FD", None)  # the first process alone reports for the machine
        # close_fds=False: as in trainer/machine/supervisor.py, they inherit the lock that says that this machine lives
        process = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, close_fds=False)
        threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        return process

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if code not in self._peaceful:
            self._log(f"process {rank} of this machine ended with code {code}: all end, to start again")
            os._exit(max(code, 1))  # the kernel ends the others with this one

    def wait(self) -> None:
        """Wait, in the first process, for the others to end: they would end with it."""
        for process in self._others:
            process.wait()


class _ProcessesGroup(MemberGroup):
    """The group of one machine's processes, over which evaluations are summed."""

    def sum(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor)


class FixedMembership(Membership):
    """The membership of one machine's processes: always the same members. The first process counts the attempts.

    Any of their hosts may be stopping: all leave after the same step.
    """

    def __init__(self, processes: Processes, storage: Storage, spec: JobSpec, host: Host, device: torch.device) -> None:
        super().__init__(storage, spec, host, device)
        self._processes = processes
        self._group = _ProcessesGroup(None, processes.rank, processes.size, device)
        self._names = [f"{host.name}/gpu-{i}" for i in range(processes.size)]

    def join(self, step_seconds: float) -> None:
        if self._processes.rank == 0:
            super().join(step_seconds)
        attempt = torch.tensor(self.attempt)
        dist.broadcast(attempt, 0)
        self._lighthouse.attempt = int(attempt)

    def give_up(self) -> None:
        """Do nothing: the processes leave together, after a step."""

    def quorum(self, progress: Position, announcement: Announcement = NOTHING) -> Quorum:
        stop = torch.tensor(int(self._host.stopping()))
        dist.all_reduce(stop, dist.ReduceOp.MAX)
        if stop:
            raise Stopping
        members = tuple(Member(name, progress, self._processes.size, announced=announcement) for name in self._names)
        key = f"{self.attempt}-together"
        return Quorum(members, (), True, self._processes.rank, key, self.attempt, self._group)
