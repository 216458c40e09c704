"""A parameter server: it holds a part of the parameters and optimizer state, and updates it with the trainers.

A step is atomic over all servers. Each holds the summed gradient of its part as *prepared*; then one vote, an
all-reduce over all members, gives loss, tokens and norm to all, and each member that has it commits. A server that
missed the vote sees in the next quorum that another committed, and rolls forward with the tally that it announces. A
server without its state takes all back to the newest checkpoint: a copy of every step would double memory and traffic.

With several processes a machine each lane has a group and a vote of its own. A server enters no lane's vote before it
has the gradients of all lanes, and commits with the votes of all lanes. A vote that a lane's member has was entered by
all of the lane's members, and servers are in every lane: so where one server has committed, all have prepared, and each
that missed a vote, in one lane or more, rolls forward. A lane that fails at a server takes the other lanes' groups with
it, because none of them can commit there. Trainers may have counted a step that no server committed: they keep nothing,
and take the servers' position in the next group.

It loads no model and no data: the layout of the flat vector comes with the first parameters or the checkpoint. Memory:
16 bytes a parameter of its part (parameters, gradient and AdamW's two moments), 12 for the copy from which checkpoints
are written, and a few buckets.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.cluster.announcement import Announcement, Tally
from trainer.cluster.group import GroupFailed
from trainer.cluster.lighthouse import Stopping
from trainer.cluster.quorum import Quorum
from trainer.model.layout import ALIGNMENT, Layout, Ranges, total
from trainer.parallel import protocol
from trainer.parallel.ownership import Ownership, norm_block
from trainer.parallel.served_lanes import ServedLane, ServedLanes
from trainer.training.checkpoint import LAST_PARTS, CheckpointShard, order
from trainer.training.member_context import MemberContext
from trainer.training.optimizer import Optimizer, segments, squares
from trainer.training.progress import Decision, Progress, decide, learning_rate
from trainer.training.vote import Vote, loss_sums, mean_loss, sum_lanes


class PsServer:
    """One parameter server among the members of a run."""

    def __init__(self, context: MemberContext) -> None:
        self._spec, self._host, self._membership = context.spec, context.host, context.membership
        self._checkpoints, self._journal = context.checkpoints, context.journal
        self._servers = context.spec.cluster.parameter_servers
        # Its index among the servers, by name. On Google Cloud no name has a number.
        self._place: int | None = None
        self.progress = Progress()
        self._layout: Layout = []
        self._lanes = ServedLanes(self._spec, self._journal.log)
        self._scaled = False  # whether the trainers' loss is (fp16)
        self._prepared = ""  # key of the group whose summed gradient is here
        self._tally: Tally | None = None  # of the last step that a vote decided here
        self._saved: tuple[int, int] = (-1, 0)  # step and attempt of its newest part of a checkpoint
        self._done = False
        self._forget()

    @property
    def leads(self) -> bool:
        """Return whether this server writes for the run. The first one does: its record lasts as long as the step."""
        return self._place == 0

    @property
    def _steps(self) -> int:
        """The number of steps that the next vote decides."""
        return 1

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Quorum:
        """Serve to the last step and return the last quorum, whose first member finishes the run. Raise Stopping."""
        self._journal.begin()
        while True:
            if self._host.stopping():
                raise Stopping
            try:
                quorum = self._membership.quorum(self.progress.position, self._announcement())
                if not self._reconcile(quorum):
                    continue
                if quorum.leaving:
                    if any(member.serves for member in quorum.leaving):
                        self._checkpoints.wait()  # it needs every server's part
                    self._save(quorum.attempt)
                if not quorum.enough:
                    continue
                self._begin(quorum)
                if self.progress.evaluation_due(self._spec):
                    self._evaluate(quorum)
                elif self.progress.step >= self._spec.hyperparameters.steps:
                    if self._finish(quorum):
                        return quorum
                else:
                    self._step(quorum)
            except GroupFailed as error:
                if self._host.stopping():  # perhaps this machine itself gave the step up
                    raise Stopping from error
                self._membership.failed()
                self._journal.recovering(self.progress.step, error, leads=self.leads)

    def leave(self, since_told: Callable[[], float]) -> None:
        """Tell the others, and write a checkpoint of this step with them if all servers are still here."""
        quorum = self._membership.leave(self.progress.position, self._announcement())
        if quorum is not None and not self._reconcile(quorum):  # it may be at another position now
            quorum = self._membership.leave(self.progress.position, self._announcement())
        if quorum is None or not self._reconcile(quorum) or not self._filled:
            return
        self._membership.silence()  # others may leave too, and must not wait for this one again
        self._checkpoints.wait()
        self._save(quorum.attempt)
        self._checkpoints.wait()
        if self._checkpoints.becomes_whole(self.progress.step, quorum.attempt, LAST_PARTS - since_told()):
            self._journal.notice(self.progress.step, quorum.attempt, since_told())

    def _announcement(self) -> Announcement:
        return Announcement(
            place=self._place,
            filled=self._filled,
            reaches=self.progress.next_lineage(self._prepared) if self._prepared else None,
            vote=self._tally,
            validation=self.progress.validation_loss,
            bad=tuple(sorted(self._checkpoints.bad)),
            done=self._done,
        )

    # -- one state on all servers ----------------------------------------------------------------------------------

    def _reconcile(self, quorum: Quorum) -> bool:
        """Return whether all servers are here and at the same position. If not, do this server's part towards it.

        After False, ask for a new quorum.
        """
        servers = quorum.servers
        if len(servers) != self._servers:
            return False

        # Every server must know its place: the part that it holds depends on it.
        bad = {name for server in servers for name in server.announced.bad}
        place = [server.name for server in servers].index(self._host.name)
        if place != self._place:
            self._place = place
            self._restore(bad)
            return False
        if any(server.announced.place != place for place, server in enumerate(servers)):
            return False

        # Servers that missed the last vote roll forward; if one cannot, all go back to the newest checkpoint.
        furthest = max(servers, key=lambda server: server.progress[:2])
        step, evaluations, lineage = furthest.progress
        behind = [server for server in servers if (server.progress.step, server.progress.lineage) != (step, lineage)]
        if behind and not all(server.announced.reaches == lineage for server in behind):
            self._restore(bad)
            return False
        if behind:
            if (self.progress.step, self.progress.lineage) != (step, lineage):
                self._journal.log(f"rolls forward to step {step}, which {furthest.name} has committed")
                assert furthest.announced.vote is not None
                self._commit(quorum, furthest.announced.vote, self._prepared, 0.0)
            return False

        # Servers that missed the last evaluation take its result over.
        if any(server.progress != furthest.progress for server in servers):
            if self.progress.evaluations != evaluations:
                assert furthest.announced.validation is not None
                self.progress.evaluated(furthest.announced.validation)
                self._journal.evaluation(quorum, self.progress, writes=self.leads)
            return False
        self._prepared = ""
        return True

    def prepare(self) -> None:
        """Take a first update, which nobody counts: the part that it holds is known only when all servers are here."""
        self._place = 0
        self._make_room([("warm-up", 0, ALIGNMENT * self._servers, True)])
        self._optimizer.update(0.0)  # torch loads more than a second's worth of modules with it
        self._place = None
        self._forget()

    def finish(self) -> None:
        raise RuntimeError("a parameter server is never the first member")

    def _restore(self, bad: set[str]) -> None:
        """Take the newest whole checkpoint that is not `bad`, if there is one; else wait for a trainer's parameters."""
        self._forget()
        restored = self._checkpoints.restore(self._make_room, skip=bad)
        if restored is not None:
            self.progress, self._filled = restored.progress, True
            self._optimizer.updates = self.progress.updates
            self._saved = order(restored.name)
            self._journal.log(f"restored the checkpoint of step {self.progress.step}")

    def _forget(self) -> None:
        """Return to the state before the first parameters."""
        self.progress, self._filled, self._prepared, self._done = Progress(), False, "", False
        self._saved = (-1, 0)
        self._make_room([])

    def _make_room(self, layout: Layout) -> tuple[dict[str, Tensor], Ranges]:
        """Allocate vectors for this server's part of a model, and return them with the ranges that they hold."""
        self._layout = layout
        self._ownership = Ownership(
            total(layout) if layout else 0, self._servers, processes=self._spec.cluster.processes
        )
        self._block = norm_block(self._ownership.total)
        place = self._place or 0
        self._ranges, size = self._ownership.owned(place), self._ownership.size(place)
        self._parameters, self._gradients = torch.zeros(size), torch.zeros(size)
        parts = segments(layout, self._ownership.total, self._ranges)
        self._optimizer = Optimizer(self._parameters, self._gradients, parts, self._spec.hyperparameters)
        self._vectors = {"parameters": self._parameters}
        self._vectors |= {f"moment{i + 1}": vector for i, vector in enumerate(self._optimizer.vectors)}
        self._lanes.forget()
        return self._vectors, self._ranges

    # -- what a group does -----------------------------------------------------------------------------------------

    def _begin(self, quorum: Quorum) -> None:
        """Take the first parameters, and tell trainers where the run is: the counterpart of PsTrainer.prepare."""
        first = len(quorum.trainers)
        fills = not protocol.servers_filled(quorum)
        self._lanes.meet(quorum)
        if fills:
            start, *_ = [group.broadcast_json(None, 0) for group in quorum.lanes]
            self._make_room([(name, begin, size, decayed) for name, begin, size, decayed in start["layout"]])
            self.progress = Progress(scale=start["scale"])
        assert self._place is not None
        self._lanes.prepare(quorum, self._ownership, self._place)
        if fills:
            self._lanes.each(lambda lane: lane.exchange.fill(self._parameters))
            self._filled = True
        if protocol.trainer_differs(quorum):
            state = {"progress": self.progress.to_json(), "total": self._ownership.total}
            for group in quorum.lanes:
                group.broadcast_json(state, first)

    def _step(self, quorum: Quorum) -> None:
        """Take one step with these members.

        After GroupFailed the step was taken nowhere, or this server can roll forward.
        """
        if protocol.pull_needed(quorum):
            self._lanes.each(self._serve)

        # The summed gradient, and the sums of squares of the blocks that this server owns.
        self._scaled, self._prepared = quorum.trainers[0].announced.scaled, ""
        self._lanes.each(self._collect)
        blocks = -(-self._ownership.total // self._block)
        whole, own = torch.zeros(blocks, dtype=torch.float64), squares(self._gradients, self._block)
        for start, stop in self._ranges:
            first, last = start // self._block, -(-stop // self._block)
            whole[first:last], own = own[: last - first], own[last - first :]

        # The votes decide the step for all members.
        nothing = torch.zeros_like(whole)
        self._prepared = quorum.key
        votes = self._lanes.each(lambda lane: self.vote(lane, whole if lane.first else nothing))
        self._tally = Vote.from_tensor(sum_lanes(votes)).tally()
        waited = self._tally.waited / (len(quorum.trainers) * len(self._lanes))
        self._commit(quorum, self._tally, quorum.key, waited)

    def _serve(self, lane: ServedLane) -> None:
        """Send a lane's trainers all that they need for the next step."""
        lane.exchange.serve(self._parameters)

    def _collect(self, lane: ServedLane) -> None:
        """Sum all that a lane's trainers send in a step."""
        if protocol.interleaved(self._spec):  # the vote decides only whether the update counts
            lane.exchange.collect_and_serve(self._gradients, lambda bucket: self._tentative(lane, bucket))
        else:
            lane.exchange.collect(self._gradients)

    def vote(self, lane: ServedLane, block_squares: Tensor) -> Tensor:
        """Return the sum of a lane's vote. A method of its own, so that a test can lose it."""
        votes = Vote(squares=block_squares).to_tensor(block_squares.device)
        lane.group.sum(votes)
        return votes

    def _decide(self, tally: Tally) -> Decision:
        return decide(self._spec.hyperparameters, self.progress, tally)

    def _commit(self, quorum: Quorum, tally: Tally, key: str, waited: float) -> None:
        """Take the step that the group `key` prepared. The quorum is that of now, perhaps another one."""
        decision = self._decide(tally)
        if decision.finite:
            self._apply(decision)
        self._prepared, steps = "", self._steps
        self.progress.commit(decision, key, self._scaled, steps)
        self._journal.step(quorum, self.progress, decision, waited, writes=self.leads, steps=steps)
        if self._checkpoint_due(quorum):
            self._save(quorum.attempt)

    def _checkpoint_due(self, quorum: Quorum) -> bool:
        return self.progress.step % self._spec.checkpoints.every == 0

    def _apply(self, decision: Decision) -> None:
        """Update this server's part."""
        self._gradients.mul_(decision.factor)
        self._optimizer.update(decision.rate)

    def _tentative(self, lane: ServedLane, bucket: int) -> Tensor:
        """Return a lane's parameters of a bucket as the step will make them if it counts, by the arithmetic of _apply.

        Only for lanes that are cut at multiples of 64 elements: see protocol.interleaved.
        """
        hyper = self._spec.hyperparameters
        assert self._place is not None
        own = lane.segments[bucket]
        factor = 1.0 / (hyper.batch_size * hyper.sequence_length * self.progress.scale)  # like decide()
        gradients = _cut(self._gradients, own).mul_(factor)
        vectors = [_cut(vector, own) for vector in self._vectors.values()]
        held = lane.ranges.held(*self._ownership.pieces[bucket][self._place])
        parts = segments(self._layout, self._ownership.total, held)
        optimizer = Optimizer(vectors[0], gradients, parts, hyper, vectors[1:])
        optimizer.updates = self.progress.updates
        optimizer.update(learning_rate(hyper, self.progress.step))
        return vectors[0]

    def _evaluate(self, quorum: Quorum) -> None:
        if protocol.pull_needed(quorum):
            self._lanes.each(self._serve)
        self.progress.evaluated(mean_loss(self._lanes.each(lambda lane: loss_sums(lane.group))))
        self._journal.evaluation(quorum, self.progress, writes=self.leads)

    def _finish(self, quorum: Quorum) -> bool:
        """Write the last checkpoint; once all servers have, send the exact parameters and return True."""
        if protocol.servers_done(quorum):
            self._lanes.each(lambda lane: lane.exchange.serve(self._parameters, exact=True))
            return True
        self._checkpoints.wait()
        self._save(quorum.attempt)
        self._checkpoints.wait()
        if self.leads:  # the last evaluation too must be there when the run is declared over
            self._journal.metrics.flush()
        self._done = True
        return False

    def _save(self, attempt: int) -> None:
        """Write this server's part of a checkpoint of this step, once, in the background."""
        version = (self.progress.step, attempt)
        if self._saved != version and self._filled and self._place is not None:
            shard = CheckpointShard(self._vectors, self._layout, self._ranges, self._place, self._servers)
            flush = self._journal.metrics.flush if self.leads else lambda: None  # one writes for all
            saving = self._checkpoints.save(shard, self.progress, attempt, before=flush)
            self._saved = version if saving else self._saved


def _cut(vector: Tensor, ranges: Ranges) -> Tensor:
    """Return a copy of some ranges of a vector, end to end."""
    return torch.cat([vector[:0], *(vector[start:stop] for start, stop in ranges)])
