"""A trainer's half of parameter servers: it pulls parameters, pushes gradients, and keeps nothing between steps.

Each process of a machine exchanges its lane with the servers, so that the machine's link carries each byte once. A
thread moves buckets: gradients travel while the backward pass computes the next ones, and the forward pass begins when
its first parameters have arrived. ps_server.py is the other half.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.quorum import Quorum
from trainer.cluster.step_group import StepGroup
from trainer.contract.errors import InputError
from trainer.parallel import protocol
from trainer.parallel.exchange import Exchange
from trainer.parallel.mover import Mover
from trainer.parallel.ownership import Ownership, norm_block
from trainer.parallel.shard import Shard
from trainer.training.member_context import MemberContext
from trainer.training.progress import Decision, Progress
from trainer.training.vote import Vote


class PsTrainer:
    """The engine of one process of a trainer among parameter servers."""

    writes = False  # the first server writes records and status: its record of a step lasts as long as the step

    def __init__(
        self, context: MemberContext, shard: Shard, begin: Callable[[], object], announcement: Announcement
    ) -> None:
        """Make the engine of `shard`. begin: puts a new run's parameters into it."""
        spec, self._processes = context.spec, context.processes
        self.progress = Progress(step=-1)  # the servers say where the run is
        self._scale = Progress.at_start(announcement.scaled).scale
        self._spec, self._shard, self._announcement = spec, shard, announcement
        self._log = context.host.log
        self._begin, self._untouched = begin, True  # whether `shard` still holds a new run's parameters
        self._holds = -1  # lineage of the parameters that are here
        self._ownership = Ownership(shard.total, spec.cluster.parameter_servers, processes=self._processes.size)
        self._blocks = -(-self._ownership.total // norm_block(self._ownership.total))
        self._interleaved = protocol.interleaved(spec)
        self._mover = Mover(shard.device)
        self._key = ""
        self._group: StepGroup | None = None
        self._made_exchange: Exchange | None = None
        self._pulling = self._pushing = self._first = False
        self._pulled = 0.0

    @property
    def announcement(self) -> Announcement:
        return replace(self._announcement, holds=self._holds)

    # -- before a step ---------------------------------------------------------------------------------------------

    def prepare(self, quorum: Quorum) -> bool:
        """Learn the servers' position; at the very start, give them their first parameters."""
        if not protocol.servers_agree(quorum):
            return False
        first = len(quorum.trainers)  # rank of the first server
        fills = not protocol.servers_filled(quorum)
        if fills and not self._untouched and quorum.rank == 0:  # servers were lost before the first checkpoint
            self._begin()
        with quorum.group.agreed():
            if quorum.key != self._key:
                self._meet(quorum)
            if fills:
                quorum.lane.broadcast_json({"layout": self._shard.layout, "scale": self._scale}, 0)
                self._exchange.fill(self._shard.parameters)
            if protocol.trainer_differs(quorum):
                state = quorum.lane.broadcast_json(None, first)
                if state["total"] != self._ownership.total:
                    raise InputError(
                        f"the newest checkpoint of {self._spec.run} holds another model ({state['total']} elements"
                        f" instead of {self._ownership.total}); move its checkpoints away"
                    )
                self.progress = Progress(**state["progress"])
        return True

    def _meet(self, quorum: Quorum) -> None:
        """Make the exchange of a new group."""
        lanes = protocol.tell_lanes(quorum, self._shard.lane)
        log = self._log if self._processes.rank == 0 else lambda _: None
        (self._made_exchange,) = protocol.make_exchanges(quorum, self._spec, self._ownership, lanes, log)
        self._key, self._group, self._pulled = quorum.key, quorum.group, 0.0
        self._first = quorum.rank == 0 and self._processes.rank == 0

    @property
    def _exchange(self) -> Exchange:
        assert self._made_exchange is not None
        return self._made_exchange

    def start(self, quorum: Quorum) -> None:
        """Begin to pull the parameters, unless they are here; ready() or the forward pass's hooks wait for them."""
        self._mover.waited = self._shard.readiness.waited = 0.0
        self._untouched = False
        if protocol.pull_needed(quorum):
            self._holds = -1
            self._pulling = True
            self._shard.readiness.fetch()
            self._mover.begin(self._pull)
            if not self._shard.waits:
                self.ready()

    def _pull(self) -> None:
        started, last_first = time.monotonic(), range(len(self._shard.buckets) - 1, -1, -1)

        def arrived(bucket: int) -> None:
            self._shard.gather(bucket)
            self._shard.readiness.arrived(bucket)

        try:
            self._pull_vectors(self._all_of(last_first, arrived))
        except BaseException as error:
            self._shard.readiness.fail(error)
            raise
        self._pulled = time.monotonic() - started

    def _pull_vectors(self, arrived: "_AllOf") -> None:
        with arrived:
            self._exchange.pull(self._shard.parameters, arrived, self._mover.event)

    def _all_of(self, buckets: Iterable[int], call: Callable[[int], None]) -> "_AllOf":
        return _AllOf(buckets, call, alone=self._processes.size == 1)

    def ready(self) -> None:
        """Wait for all parameters."""
        if self._pulling:
            self._mover.wait()
            self._shard.readiness.arrive_all()
            self._pulling, self._holds = False, self.progress.lineage

    # -- a step ----------------------------------------------------------------------------------------------------

    def backward_begins(self) -> None:
        """Let gradients that become final travel: the next backward pass is the step's last."""
        self.ready()
        self._shard.backward_begins()
        self._pushing = True
        self._mover.begin(self._push)

    def _push(self) -> None:
        def final(bucket: int) -> None:
            self._shard.reduce(bucket)
            if self._group is None or self._group.failed:
                raise GroupFailed("the step was given up")

        gradients, parameters, event = self._shard.gradients, self._shard.parameters, self._mover.event
        with self._all_of(range(len(self._shard.buckets)), final) as reduced:
            if self._interleaved:
                self._exchange.push_and_pull(gradients, parameters, reduced, event)
            else:
                self._exchange.push(gradients, reduced, event)

    def backward_ends(self, passes: int) -> None:
        """Send the rest: all gradients of this process are final. Before the first quorum nothing is sent."""
        if self._group is None:
            self._shard.backward_ends(passes)
            return
        if not self._pushing:  # it had no part in this step's batch
            self.backward_begins()
        self._shard.backward_ends(passes)
        self._pushed()
        self._pushing = False

    def _pushed(self) -> None:
        """Wait until everything on its way has arrived."""
        started = time.monotonic()
        self._mover.wait()
        if self._first:  # to compare with the cost model's prediction for this group
            self._first = False
            megabytes = self._ownership.total * protocol.WIRE[self._spec.parallel.wire].itemsize / 1e6
            pull = f"pull {self._pulled:.3g} s, " if self._pulled else ""
            self._log(
                f"measured in the group's first step, {megabytes:.3g} MB each way: {pull}push"
                f" {time.monotonic() - started:.3g} s after the last gradient"
            )

    def forward_ends(self, passes: int) -> None:
        self._shard.forward_ends(passes)

    def sum(self, vote: Vote) -> Tally:
        """Sum the votes. The servers have summed the gradients, and add the sums of squares."""
        assert self._group is not None
        blocks = torch.zeros(self._blocks, dtype=torch.float64)
        waited = self._mover.waited + self._shard.readiness.waited
        sums = self._group.sum(replace(vote, waited=waited, squares=blocks).to_tensor(blocks.device))
        return Vote.from_tensor(sums).tally()

    def commit(self, decision: Decision, key: str, scaled: bool) -> None:
        self.progress.commit(decision, key, scaled)
        self._holds = self.progress.lineage if self._interleaved and decision.finite else -1
        if self._holds >= 0:
            self._gather()

    def _gather(self) -> None:
        for bucket in range(len(self._shard.buckets)):
            self._shard.gather(bucket)

    def abandon(self) -> None:
        """Forget the parameters, which do not count after a failed step, and free the thread that moves buckets."""
        self._holds, self._key = -1, ""
        if self._group is not None:
            self._group.lane.close()
        self._shard.readiness.finish()
        self._mover.forget()  # once it has seen that the group is gone
        self._pulling = self._pushing = False
        self._shard.readiness.arrive_all()

    # -- the ends --------------------------------------------------------------------------------------------------

    def save(self, attempt: int, *, leads: bool, wait: bool = False) -> bool:
        """Do nothing: the servers write checkpoints."""
        return False

    def finish(self, quorum: Quorum) -> bool:
        """Pull the exact model once the servers have written the last checkpoint."""
        if not protocol.servers_done(quorum):
            return False
        with quorum.group.agreed():
            self._exchange.pull(self._shard.parameters, exact=True)
        self._gather()
        return True

    def restore(self) -> None:
        """Do nothing: the servers restore checkpoints."""


class _AllOf:
    """A call for each bucket, which an exchange makes one after the other.

    The processes of a machine wait for each other in it. So where an exchange fails, the rest is made up for, unless
    this process is alone; the step's vote then fails in all of them.
    """

    def __init__(self, buckets: Iterable[int], call: Callable[[int], None], *, alone: bool) -> None:
        self._left, self._call, self._alone = list(buckets), call, alone

    def __call__(self, bucket: int) -> None:
        self._call(bucket)
        self._left.remove(bucket)

    def __enter__(self) -> "_AllOf":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if self._alone or not isinstance(error, GroupFailed):
            return False
        while self._left:
            self(self._left[0])
        return True
