"""Collectives of a group of members. Each either works for all members, or fails and ends the group."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, ReduceOp

from trainer.contract.errors import first_line

POLL = 0.0001  # seconds between two looks at the device


class GroupFailed(Exception):
    """A member was lost during a collective. Nothing was committed; ask for a new quorum."""


class Pending:
    """A collective that was begun."""

    def __init__(self, group: "MemberGroup", works: list[Any]) -> None:
        self._group, self._works = group, works

    def wait(self) -> None:
        """Wait until its output is there; with NCCL, let the current stream wait. Raise GroupFailed."""
        for work in self._works:
            self._group.finish(work)


class MemberGroup:
    """The members of one quorum. A member alone has nothing to wait for. Every method may raise GroupFailed."""

    def __init__(self, members: Any, rank: int, size: int, device: torch.device) -> None:
        """Wrap a process group.

        Args:
            members: torchft's process group; None if this member is alone.
            rank: of this member.
            size: how many members there are.
            device: where tensors must be to be sent.
        """
        self._members, self.rank, self.size, self.device = members, rank, size, device
        self._lock = threading.Lock()
        self.failed, self._reason = False, "the group was given up"
        self._begun = 0  # all-to-alls so far, which tag their messages

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all members, in place."""
        self.begin_sum(tensor).wait()
        self.settle()

    def begin_sum(self, tensor: Tensor) -> Pending:
        """Begin to sum a tensor over all members, in place. All members must begin their collectives in one order."""
        if self.size == 1:
            return Pending(self, [])
        options = AllreduceOptions()
        options.reduceOp = ReduceOp.SUM
        return Pending(self, [self._begin(lambda: self._members.allreduce([tensor], options))])

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Give all members root's tensor, in place."""
        if self.size > 1:
            options = BroadcastOptions()
            options.rootRank = root
            self.finish(self._begin(lambda: self._members.broadcast([tensor], options)))
            self.settle()

    def broadcast_json(self, value: Any, root: int) -> Any:
        """Return root's JSON value, on every member."""
        body = json.dumps(value).encode() if self.rank == root else b""
        length = torch.tensor([len(body)], device=self.device)
        self.broadcast(length, root)
        text = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == root:
            text.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
        self.broadcast(text, root)
        return json.loads(bytes(text.cpu().numpy()))

    def all_to_all(self, outputs: Sequence[Tensor], sources: Sequence[Tensor]) -> Pending:
        """Begin to send each rank its tensor of `sources`, and to fill `outputs` from the ranks.

        Empty tensors are not sent. All members must begin their collectives in the same order.
        """
        self._begun += 1
        return Pending(self, self._begin(lambda: self._transfer(outputs, sources)))

    def _transfer(self, outputs: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Any]:
        """Begin the messages between members that have elements for each other.

        gloo's own all-to-all also sends empty messages, which wait behind all else on their connection, and does two
        at a time: it took 1.4 times as long (docs/performance.md).
        """
        outputs[self.rank].copy_(sources[self.rank])
        works = []
        for distance in range(1, self.size):  # each rank begins with another partner
            sender, receiver = (self.rank - distance) % self.size, (self.rank + distance) % self.size
            if len(outputs[sender]):
                works.append(self._members.recv([outputs[sender]], sender, self._begun))
            if len(sources[receiver]):
                works.append(self._members.send([sources[receiver]], receiver, self._begun))
        return works

    def check(self) -> None:
        """Raise GroupFailed if the group has failed."""
        if self.failed:
            raise GroupFailed(self._reason)

    def settle(self) -> None:
        """Wait until the device has done the collectives that its current stream waits for.

        NCCL reports a lost member only to those that look. A call that waits for the device would not return.
        """
        if self.device.type != "cuda" or self.size == 1:
            return
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        while not done.query():  # type: ignore[no-untyped-call]
            self.check()
            time.sleep(POLL)
        try:
            error = self._members.errored()
            if error is not None:
                raise error
        except Exception as error:
            raise self._fail(error) from error

    def _begin(self, call: Callable[[], Any]) -> Any:
        self.check()
        try:
            return call()
        except Exception as error:
            raise self._fail(error) from error

    def finish(self, work: Any) -> None:
        """Wait for a collective that was begun; with NCCL, let the current stream wait."""
        self.check()
        try:
            work.wait()
            error = None if self.device.type == "cuda" else self._members.errored()  # NCCL's waits for the device
            if error is not None:
                raise error
        except Exception as error:
            raise self._fail(error) from error

    def _fail(self, error: Exception) -> GroupFailed:
        if not self.failed:  # the first error is the reason
            self._reason = first_line(error)
        self.close()
        return GroupFailed(self._reason)

    def close(self) -> None:
        """End the group at once: the others notice it within a second instead of at the time-out."""
        with self._lock:
            members, self._members = self._members, None
        self.failed = True
        if members is not None:
            with suppress(Exception):
                members.abort(errored=False)
