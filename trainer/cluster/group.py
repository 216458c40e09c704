"""What the members of a group do together. Every collective either works for all or fails, and ends the group."""

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, ReduceOp

from trainer.contract.errors import first_line


class GroupFailed(Exception):
    """A member was lost in the middle of a collective: nothing was committed; ask for a new quorum."""


class Pending:
    """A collective that is under way."""

    def __init__(self, group: "Group", works: list[Any]) -> None:
        self._group, self._works = group, works

    def wait(self) -> None:
        """Until its output is there. Raises GroupFailed."""
        for work in self._works:
            self._group.finish(work)


class Group:
    """The members of one quorum. Alone, all is done already. Every method raises GroupFailed."""

    def __init__(self, members: Any, rank: int, size: int, device: torch.device) -> None:
        """members: a torchft process group, None if this member is alone; device: where what it sends must lie."""
        self._members, self.rank, self.size, self.device = members, rank, size, device
        self._lock = threading.Lock()
        self.failed = False
        self._begun = 0  # all-to-alls: the tag of their messages

    def sum(self, tensor: Tensor) -> None:
        """All-reduce in place."""
        if self.size > 1:
            options = AllreduceOptions()
            options.reduceOp = ReduceOp.SUM
            self.run(lambda: self._members.allreduce([tensor], options))

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Everyone gets root's tensor, in place."""
        if self.size > 1:
            options = BroadcastOptions()
            options.rootRank = root
            self.run(lambda: self._members.broadcast([tensor], options))

    def broadcast_json(self, value: Any, root: int) -> Any:
        """Everyone gets root's JSON value."""
        body = json.dumps(value).encode() if self.rank == root else b""
        length = torch.tensor([len(body)], device=self.device)
        self.broadcast(length, root)
        text = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.rank == root:
            text.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
        self.broadcast(text, root)
        return json.loads(bytes(text.cpu().numpy()))

    def all_to_all(self, outputs: Sequence[Tensor], sources: Sequence[Tensor]) -> Pending:
        """Begin to send each rank its one of `sources`, and to fill `outputs`, by rank. Those without elements are not
        sent. All members must begin their collectives in the same order.
        """
        self._begun += 1
        return Pending(self, self._begin(lambda: self._transfer(outputs, sources)))

    def _transfer(self, outputs: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Any]:
        """Messages between those who have something for each other. gloo's own all-to-all also sends nothing to
        everyone and waits for it, behind all else on that connection, and does two at a time: it took 1.4 times as
        long (docs/performance.md)."""
        outputs[self.rank].copy_(sources[self.rank])
        works = []
        for distance in range(1, self.size):  # everyone begins with another
            sender, receiver = (self.rank - distance) % self.size, (self.rank + distance) % self.size
            if len(outputs[sender]):
                works.append(self._members.recv([outputs[sender]], sender, self._begun))
            if len(sources[receiver]):
                works.append(self._members.send([sources[receiver]], receiver, self._begun))
        return works

    def _begin(self, call: Callable[[], Any]) -> Any:
        if self.failed:
            raise GroupFailed("the group has failed before")
        try:
            return call()
        except Exception as error:
            raise self._fail(error) from error

    def run(self, call: Callable[[], Any]) -> None:
        """Begin a collective and wait for it."""
        self.finish(self._begin(call))

    def finish(self, work: Any) -> None:
        """Wait for what was begun."""
        if self.failed:
            raise GroupFailed("the group has failed before")
        try:
            work.wait()
            error = self._members.errored()
            if error is not None:
                raise error
        except Exception as error:
            raise self._fail(error) from error

    def _fail(self, error: Exception) -> GroupFailed:
        self.failed = True
        self.close()
        return GroupFailed(first_line(error))

    def close(self) -> None:
        """End the group at once: the others then see it in a second instead of waiting for the time-out."""
        with self._lock:
            members, self._members = self._members, None
        self.failed = True
        if members is not None:
            with suppress(Exception):
                members.abort(errored=False)
