"""A trainer's half of parameter servers: it pulls parameters, pushes gradients, and keeps nothing between steps.

A thread moves buckets, so that gradients travel while the backward pass computes the next ones, and the forward pass
begins when its first parameters have arrived. ps_server.py is the other half.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.cluster.membership import Quorum
from trainer.contract.errors import InputError
from trainer.model.flat import Flat
from trainer.parallel import protocol
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Lane, Ownership, norm_block
from trainer.training.member_context import MemberContext
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class PsTrainer:
    """The engine of one trainer among parameter servers."""

    writes = False  # the first server writes records and status: its record of a step lasts as long as the step

    def __init__(
        self, context: MemberContext, flat: Flat, begin: Callable[[], object], announcement: Announcement
    ) -> None:
        """Hook into the model of `flat`. begin: puts a new run's parameters into it."""
        spec = context.spec
        self.progress = Progress(step=-1)  # the servers say where the run is
        self._scale = Progress.at_start(announcement.scaled).scale
        self._spec, self._flat, self._log, self._announcement = spec, flat, context.host.log, announcement
        self._begin, self._untouched = begin, True  # whether `flat` still holds a new run's parameters
        self._holds = -1  # lineage of the parameters that are here
        self._ownership = Ownership(len(flat.parameters), spec.cluster.parameter_servers)
        self._lane = Lane(((0, self._ownership.total),))
        self._blocks = -(-self._ownership.total // norm_block(self._ownership.total))
        self._interleaved = protocol.interleaved(spec)
        self._mover = ThreadPoolExecutor(1, "exchange")
        self._moving: Future[None] | None = None
        self._error: BaseException | None = None
        self._here = [threading.Event() for _ in self._ownership.buckets]  # its parameters have arrived
        self._final = [threading.Event() for _ in self._ownership.buckets]  # its gradient will not change any more
        self._missing = [0] * len(self._final)  # tensors of the bucket whose gradient is not final
        self._key = ""
        self._group: MemberGroup | None = None
        self._made_exchange: Exchange | None = None
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
        """Learn the servers' position; at the very start, give them their first parameters."""
        if not protocol.servers_agree(quorum):
            return False
        if quorum.key != self._key:
            lanes = protocol.tell_lanes(quorum, self._lane)
            (self._made_exchange,) = protocol.make_exchanges(quorum, self._spec, self._ownership, lanes, self._log)
            self._key, self._group, self._first = quorum.key, quorum.group, quorum.rank == 0
            self._pulled = 0.0
        first = len(quorum.trainers)  # rank of the first server
        if not protocol.servers_filled(quorum):
            if not self._untouched and quorum.rank == 0:  # servers were lost before the first checkpoint
                self._begin()
            quorum.group.broadcast_json({"layout": self._flat.layout, "scale": self._scale}, 0)
            self._exchange.fill(self._flat.parameters)
        if protocol.trainer_differs(quorum):
            state = quorum.group.broadcast_json(None, first)
            if state["total"] != self._ownership.total:
                raise InputError(
                    f"the newest checkpoint of {self._spec.run} holds another model ({state['total']} elements instead"
                    f" of {self._ownership.total}); move its checkpoints away"
                )
            self.progress = Progress(**state["progress"])
        return True

    @property
    def _exchange(self) -> Exchange:
        assert self._made_exchange is not None
        return self._made_exchange

    def start(self, quorum: Quorum) -> None:
        """Begin to pull the parameters, unless they are here; ready() or the forward pass's hooks wait for them."""
        self._waited = 0.0
        self._untouched = False
        if protocol.pull_needed(quorum):
            self._holds = -1
            for event in self._here:
                event.clear()
            self._pulling = True
            self._move(self._pull)
            if self._spec.hyperparameters.compile:  # nothing in a compiled graph waits for a bucket
                self.ready()

    def _pull(self) -> None:
        started = time.monotonic()
        self._exchange.pull(self._flat.parameters, lambda k: self._here[k].set())
        self._pulled = time.monotonic() - started

    def ready(self) -> None:
        """Wait for all parameters."""
        if self._pulling:
            self._wait_for_mover()
            self._pulling, self._holds = False, self.progress.lineage

    # -- a step ----------------------------------------------------------------------------------------------------

    def backward_begins(self) -> None:
        """Let gradients that become final travel: the next backward pass is the step's last."""
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
            self._move(lambda: self._exchange.push_and_pull(gradients, parameters, self._until_final))
        else:
            self._move(lambda: self._exchange.push(gradients, self._until_final))

    def backward_ends(self) -> None:
        """Send the rest: all gradients of this trainer are final."""
        if not self._pushing:  # it had no part in this step's batch
            self.backward_begins()
        for event in self._final:
            event.set()
        self._pushed()
        self._pushing = False

    def _pushed(self) -> None:
        """Wait until everything on its way has arrived."""
        started = time.monotonic()
        self._wait_for_mover()
        if self._first:  # to compare with the cost model's prediction for this group
            self._first = False
            megabytes = self._ownership.total * protocol.WIRE[self._spec.parallel.wire].itemsize / 1e6
            pull = f"pull {self._pulled:.3g} s, " if self._pulled else ""
            self._log(
                f"measured in the group's first step, {megabytes:.3g} MB each way: {pull}push"
                f" {time.monotonic() - started:.3g} s after the last gradient"
            )

    def forward_ends(self, passes: int) -> None:
        """Do nothing: each trainer evaluates on its own."""

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
        """Forget the parameters, which do not count after a failed step, and free the thread that moves buckets."""
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
        """Do nothing: the servers write checkpoints."""
        return False

    def finish(self, quorum: Quorum) -> bool:
        """Pull the exact model once the servers have written the last checkpoint."""
        if not protocol.servers_done(quorum):
            return False
        self._exchange.pull(self._flat.parameters, exact=True)
        return True

    def restore(self) -> None:
        """Do nothing: the servers restore checkpoints."""

    # -- the thread that moves buckets -----------------------------------------------------------------------------

    def _move(self, work: Callable[[], None]) -> None:
        def moved() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error
                for event in self._here:  # threads that wait for one must see the error
                    event.set()
                raise

        self._moving = self._mover.submit(moved)

    def _wait_for_mover(self) -> None:
        assert self._moving is not None
        started = time.monotonic()
        self._moving.result()
        self._waited += time.monotonic() - started

    def _until_final(self, bucket: int) -> None:
        self._final[bucket].wait()
        if self._group is None or self._group.failed:
            raise GroupFailed("the step was given up")

    def _touched(self, start: int, size: int) -> list[int]:
        """Return the buckets that hold a part of a tensor."""
        return [k for k, (begin, end) in enumerate(self._ownership.buckets) if begin < start + size and start < end]

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
            started = time.monotonic()
            for k in buckets:
                self._here[k].wait()
            self._waited += time.monotonic() - started
            if self._error is not None:
                raise self._error
