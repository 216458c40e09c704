"""A trainer's half of parameter servers: parameters come, gradients go, and nothing is kept from step to step.

A thread of its own moves buckets, so that gradients travel while backward computes the next ones, and the forward pass
begins when its first parameters are there. See trainer/parallel/ps_server.py for the other half.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import Group, GroupFailed
from trainer.cluster.membership import Quorum
from trainer.contract.errors import InputError
from trainer.contract.spec import JobSpec
from trainer.model.flat import Flat
from trainer.parallel import protocol
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Shards, norm_block
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class Served:
    """One trainer among parameter servers."""

    writes = False  # the first server writes records and status: what it says of a step is as lasting as the step

    def __init__(
        self,
        spec: JobSpec,
        flat: Flat,
        begin: Callable[[], object],
        progress: Progress,
        log: Callable[[str], None],
        announcement: Announcement,
    ) -> None:
        """begin: puts a new run's parameters into `flat`; progress: as one starts."""
        self.progress, self._scale = Progress(step=-1), progress.scale  # the servers say where the run is
        self._spec, self._flat, self._log, self._announcement = spec, flat, log, announcement
        self._begin, self._untouched = begin, True  # does `flat` still hold a new run's parameters?
        self._holds = -1  # lineage of the parameters that are here
        self._shards = Shards(len(flat.parameters), spec.cluster.parameter_servers)
        self._blocks = -(-self._shards.total // norm_block(self._shards.total))
        self._interleaved = protocol.interleaved(spec)
        self._mover = ThreadPoolExecutor(1, "exchange")
        self._moving: Future[None] | None = None
        self._error: BaseException | None = None
        self._here = [threading.Event() for _ in self._shards.buckets]  # its parameters have arrived
        self._final = [threading.Event() for _ in self._shards.buckets]  # its gradient will not change any more
        self._missing = [0] * len(self._final)  # tensors of the bucket whose gradient is not final
        self._key = ""
        self._group: Group | None = None
        self._exchange: Exchange | None = None
        self._pulling = self._pushing = self._first = False
        self._waited = self._pulled = 0.0
        for event in self._here:
            event.set()
        self._buckets = {start: self._touched(start, size) for _, start, size, _ in flat.layout}
        if not spec.hyperparameters.compile:  # a compiled graph calls no hooks in between
            self._hook()

    @property
    def announcement(self) -> Announcement:
        return replace(self._announcement, holds=self._holds)

    # -- before a step ---------------------------------------------------------------------------------------------

    def prepare(self, quorum: Quorum) -> bool:
        """Know where the servers are; at the very start, give them their first parameters."""
        if not protocol.settled(quorum):
            return False
        if quorum.key != self._key:
            self._exchange = protocol.make_exchange(quorum, self._spec, self._shards, self._log)
            self._key, self._group, self._first = quorum.key, quorum.group, quorum.rank == 0
            self._pulled = 0.0
        first = len(quorum.trainers)  # rank of the first server
        if not protocol.filled(quorum):
            if not self._untouched and quorum.rank == 0:  # servers were lost before the first checkpoint
                self._begin()
            quorum.group.broadcast_json({"layout": self._flat.layout, "scale": self._scale}, 0)
            self._trade.fill(self._flat.parameters)
        if protocol.strangers(quorum):
            state = quorum.group.broadcast_json(None, first)
            if state["total"] != self._shards.total:
                raise InputError(
                    f"the newest checkpoint of {self._spec.run} holds another model ({state['total']} elements instead"
                    f" of {self._shards.total}); move its checkpoints away"
                )
            self.progress = Progress(**state["progress"])
        return True

    @property
    def _trade(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def start(self, quorum: Quorum) -> None:
        """Parameters begin to come, if they are not here; ready() or the forward pass's own hooks wait for them."""
        self._waited = 0.0
        self._untouched = False
        if protocol.stale(quorum):
            self._holds = -1
            for event in self._here:
                event.clear()
            self._pulling = True
            self._move(self._pull)
            if self._spec.hyperparameters.compile:  # nothing in a compiled graph waits for a bucket
                self.ready()

    def _pull(self) -> None:
        begun = time.monotonic()
        self._trade.pull(self._flat.parameters, lambda k: self._here[k].set())
        self._pulled = time.monotonic() - begun

    def ready(self) -> None:
        """Wait for all parameters."""
        if self._pulling:
            self._wait_for_mover()
            self._pulling, self._holds = False, self.progress.lineage

    # -- a step ----------------------------------------------------------------------------------------------------

    def backward_begins(self) -> None:
        """The next backward pass is the step's last: what is final may go."""
        self.ready()
        self._missing = [0] * len(self._final)
        for buckets in self._buckets.values():
            for k in buckets:
                self._missing[k] += 1
        for event in self._final:
            event.clear()
        self._pushing = True
        gradients, parameters = self._flat.gradients, self._flat.parameters
        if self._interleaved:
            self._move(lambda: self._trade.push_and_pull(gradients, parameters, self._until_final))
        else:
            self._move(lambda: self._trade.push(gradients, self._until_final))

    def backward_ends(self) -> None:
        """All gradients of this trainer are final."""
        if not self._pushing:  # it had no part in this step's batch
            self.backward_begins()
        for event in self._final:
            event.set()
        self._pushed()
        self._pushing = False

    def _pushed(self) -> None:
        """Nothing is computed until what is on its way has arrived."""
        begun = time.monotonic()
        self._wait_for_mover()
        if self._first:  # what the cost model predicted for this group can be compared with
            self._first = False
            megabytes = self._shards.total * protocol.WIRE[self._spec.parallel.wire].itemsize / 1e6
            pull = f"pull {self._pulled:.3g} s, " if self._pulled else ""
            self._log(
                f"measured in the group's first step, {megabytes:.3g} MB each way: {pull}push"
                f" {time.monotonic() - begun:.3g} s after the last gradient"
            )

    def forward_ends(self, passes: int) -> None:
        """Trainers evaluate on their own."""

    def sum(self, vote: Vote) -> Tally:
        """Sum the votes. The servers have summed the gradients, and add the sums of squares."""
        assert self._group is not None
        blocks = torch.zeros(self._blocks, dtype=torch.float64)
        votes = replace(vote, waited=self._waited, squares=blocks).to_tensor(blocks.device)
        self._group.sum(votes)
        return Vote.from_tensor(votes).tally()

    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        self.progress.commit(decision, key, scaled)
        self._holds = self.progress.lineage if self._interleaved and decision.finite else -1

    def abandon(self) -> None:
        """The step failed: what is here is worth nothing, and the thread that moves buckets must be free again."""
        self._holds, self._key = -1, ""
        if self._group is not None:
            self._group.close()
        for event in self._final:
            event.set()
        if self._moving is not None:
            self._moving.exception()  # until it has seen that the group is gone
        self._moving, self._error = None, None
        self._pulling = self._pushing = False
        for event in self._here:
            event.set()

    # -- the ends --------------------------------------------------------------------------------------------------

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """The servers do that."""
        return False

    def finish(self, quorum: Quorum) -> bool:
        """The servers have written the last checkpoint, and the model is here as they hold it."""
        if not protocol.done(quorum):
            return False
        self._trade.pull(self._flat.parameters, exact=True)
        return True

    def restore(self) -> None:
        """The servers do that."""

    # -- the thread that moves buckets -----------------------------------------------------------------------------

    def _move(self, work: Callable[[], None]) -> None:
        def moved() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error
                for event in self._here:  # whoever waits for one is to see the error
                    event.set()
                raise

        self._moving = self._mover.submit(moved)

    def _wait_for_mover(self) -> None:
        assert self._moving is not None
        begun = time.monotonic()
        self._moving.result()
        self._waited += time.monotonic() - begun

    def _until_final(self, bucket: int) -> None:
        self._final[bucket].wait()
        if self._group is None or self._group.failed:
            raise GroupFailed("the step was given up")

    def _touched(self, start: int, size: int) -> list[int]:
        """The buckets that a tensor lies in."""
        return [k for k, (begin, end) in enumerate(self._shards.buckets) if begin < start + size and start < end]

    def _hook(self) -> None:
        starts = {name: start for name, start, _, _ in self._flat.layout}
        for name, parameter in self._flat.model.named_parameters():
            buckets = self._buckets[starts[name]]
            parameter.register_post_accumulate_grad_hook(lambda _, buckets=buckets: self._became_final(buckets))
        for name, module in self._flat.model.named_modules():
            own = [f"{name}.{short}" for short, _ in module.named_parameters(recurse=False)]
            needed = sorted({k for tensor in own if tensor in starts for k in self._buckets[starts[tensor]]})
            if needed:
                module.register_forward_pre_hook(lambda *_, needed=needed: self._until_here(needed))

    def _became_final(self, buckets: list[int]) -> None:
        if self._pushing:
            for k in buckets:
                self._missing[k] -= 1
                if not self._missing[k]:
                    self._final[k].set()

    def _until_here(self, buckets: list[int]) -> None:
        if self._pulling:
            begun = time.monotonic()
            for k in buckets:
                self._here[k].wait()
            self._waited += time.monotonic() - begun
            if self._error is not None:
                raise self._error
