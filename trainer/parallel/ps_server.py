"""A parameter server: its part of the parameters and of the optimizer's state, and the steps that trainers ask for.

A step is atomic over all servers. Each holds the summed gradient of its part as *prepared*; then one vote, an
all-reduce over all members, tells loss, tokens and norm to all; whoever has it commits. A server that missed the vote
sees in the next quorum that another committed, and rolls forward with the vote that it finds there. A server without
its state takes all back to the newest checkpoint: a copy of every step elsewhere would double memory and traffic.

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
from trainer.cluster.membership import Cluster, Quorum
from trainer.contract.spec import JobSpec
from trainer.model.layout import ALIGNMENT, Layout, Ranges, total
from trainer.parallel import protocol
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import Shards, norm_block
from trainer.training.checkpoint import LAST_PARTS, Checkpoints, order
from trainer.training.journal import Journal
from trainer.training.optimizer import Optimizer, segments, squares
from trainer.training.progress import Decision, Progress, decide, learning_rate
from trainer.training.vote import Vote, mean_loss


class Server:
    def __init__(
        self,
        spec: JobSpec,
        name: str,
        cluster: Cluster,
        checkpoints: Checkpoints,
        journal: Journal,
        stopping: Callable[[], bool],
    ) -> None:
        self._spec, self._name, self._cluster, self._checkpoints = spec, name, cluster, checkpoints
        self._journal, self._stopping = journal, stopping
        self._servers = spec.cluster.parameter_servers
        # Which of the servers it is: its name's place among all of theirs. On Google Cloud no name has a number.
        self._place: int | None = None
        self.progress = Progress()
        self._layout: Layout = []
        self._key = ""
        self._exchange: Exchange | None = None
        self._scaled = False  # is the loss (fp16)
        self._prepared = ""  # key of the group whose summed gradient is here
        self._tally: Tally | None = None  # of the last step that a vote decided here
        self._saved: tuple[int, int] = (-1, 0)  # step and attempt of the newest checkpoint that it wrote its part of
        self._done = False
        self._forget()

    @property
    def leads(self) -> bool:
        """The first server writes for the run: what it says of a step is as lasting as the step."""
        return self._place == 0

    @property
    def _steps(self) -> int:
        """That the next vote decides."""
        return 1

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> Quorum:
        """Serve to the last step, or raise Stopping. Returns the last quorum: its first member finishes the run."""
        self._journal.begin()
        while True:
            if self._stopping():
                raise Stopping
            try:
                quorum = self._cluster.quorum(self.progress.identity, self._announcement())
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
                if self._stopping():  # perhaps it was this machine that gave the step up
                    raise Stopping from error
                self._cluster.failed()
                self._journal.recovering(self.progress.step, error, leads=self.leads)

    def leave(self, since_told: Callable[[], float]) -> None:
        """Tell the others, and write a checkpoint of this step with them, if all servers are still here."""
        quorum = self._cluster.leave(self.progress.identity, self._announcement())
        if quorum is not None and not self._reconcile(quorum):  # it may be another point now
            quorum = self._cluster.leave(self.progress.identity, self._announcement())
        if quorum is None or not self._reconcile(quorum) or not self._filled:
            return
        self._cluster.silence()  # others may leave, too, and are not to wait for another word of this one
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
        """Are all servers here and at the same point? If not, do this one's part of it; then ask for a new quorum."""
        servers = quorum.servers
        if len(servers) != self._servers:
            return False
        bad = {name for server in servers for name in server.announced.bad}
        place = [server.name for server in servers].index(self._name)
        if place != self._place:
            self._place = place
            self._restore(bad)
            return False
        if any(server.announced.place != place for place, server in enumerate(servers)):
            return False
        furthest = max(servers, key=lambda server: server.progress[:2])
        step, evaluations, lineage = furthest.progress
        behind = [server for server in servers if (server.progress[0], server.progress[2]) != (step, lineage)]
        if behind and not all(server.announced.reaches == lineage for server in behind):
            self._restore(bad)
            return False
        if behind:
            if (self.progress.step, self.progress.lineage) != (step, lineage):
                self._journal.log(f"rolls forward to step {step}, which {furthest.name} has committed")
                assert furthest.announced.vote is not None
                self._commit(quorum, furthest.announced.vote, self._prepared, 0.0)
            return False
        if any(server.progress != furthest.progress for server in servers):
            if self.progress.evaluations != evaluations:
                assert furthest.announced.validation is not None
                self.progress.evaluated(furthest.announced.validation)
                self._journal.evaluation(quorum, self.progress, writes=self.leads)
            return False
        self._prepared = ""
        return True

    def prepare(self) -> None:
        """What a server holds depends on which it is, and that is known when all are here. Only a first update."""
        self._place = 0
        self._make_room([("warm-up", 0, ALIGNMENT * self._servers, True)])
        self._optimizer.update(0.0)  # torch loads more than a second's worth of modules with it
        self._place = None
        self._forget()

    def finish(self) -> None:
        raise RuntimeError("a parameter server is never the first member")

    def _restore(self, bad: set[str]) -> None:
        """The newest whole checkpoint, if there is one; else the first trainer brings parameters."""
        self._forget()
        restored = self._checkpoints.restore(self._make_room, skip=bad)
        if restored is not None:
            self.progress, self._filled = restored.progress, True
            self._optimizer.updates = self.progress.updates
            self._saved = order(restored.name)
            self._journal.log(f"restored the checkpoint of step {self.progress.step}")

    def _forget(self) -> None:
        """As a server is before it has parameters."""
        self.progress, self._filled, self._prepared, self._done = Progress(), False, "", False
        self._saved = (-1, 0)
        self._make_room([])

    def _make_room(self, layout: Layout) -> tuple[dict[str, Tensor], Ranges]:
        """Vectors for this server's part of a model, and which part it is."""
        self._layout = layout
        self._shards = Shards(total(layout) if layout else 0, self._servers)
        self._block = norm_block(self._shards.total)
        place = self._place or 0
        self._ranges, size = self._shards.owned(place), self._shards.size(place)
        self._parameters, self._gradients = torch.zeros(size), torch.zeros(size)
        parts = segments(layout, self._shards.total, self._ranges)
        self._optimizer = Optimizer(self._parameters, self._gradients, parts, self._spec.hyperparameters)
        self._vectors = {"parameters": self._parameters}
        self._vectors |= {f"moment{i + 1}": vector for i, vector in enumerate(self._optimizer.vectors)}
        self._key = ""
        return self._vectors, self._ranges

    # -- what a group does -----------------------------------------------------------------------------------------

    def _begin(self, quorum: Quorum) -> None:
        """As Served.prepare: first parameters, and where the run is."""
        first = len(quorum.trainers)
        fills = not protocol.filled(quorum)
        if fills:
            start = quorum.group.broadcast_json(None, 0)
            self._make_room([(name, begin, size, decayed) for name, begin, size, decayed in start["layout"]])
            self.progress = Progress(scale=start["scale"])
        if quorum.key != self._key:
            self._exchange = protocol.make_exchange(quorum, self._spec, self._shards, self._journal.log)
            self._key = quorum.key
        if fills:
            self._trade.fill(self._parameters)
            self._filled = True
        if protocol.strangers(quorum):
            state = {"progress": self.progress.to_json(), "total": self._shards.total}
            quorum.group.broadcast_json(state, first)

    @property
    def _trade(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    def _step(self, quorum: Quorum) -> None:
        """Take one step with these members, or raise GroupFailed: then it is taken nowhere, or can be taken here."""
        if protocol.stale(quorum):
            self._serve()
        self._scaled, self._prepared = quorum.trainers[0].announced.scaled, ""
        self._collect()
        blocks = -(-self._shards.total // self._block)
        whole, own = torch.zeros(blocks, dtype=torch.float64), squares(self._gradients, self._block)
        for start, stop in self._ranges:
            first, last = start // self._block, -(-stop // self._block)
            whole[first:last], own = own[: last - first], own[last - first :]
        vote = Vote(squares=whole).to_tensor(whole.device)
        self._prepared = quorum.key
        self.vote(quorum, vote)
        self._tally = Vote.from_tensor(vote).tally()
        self._commit(quorum, self._tally, quorum.key, self._tally.waited / len(quorum.trainers))

    def _serve(self) -> None:
        """All that a trainer needs for its next step."""
        self._trade.serve(self._parameters)

    def _collect(self) -> None:
        """All that trainers send in a step, summed up."""
        if protocol.interleaved(self._spec):  # nothing about the update depends on the vote but whether it counts
            self._trade.collect_and_serve(self._gradients, self._tentative)
        else:
            self._trade.collect(self._gradients)

    def vote(self, quorum: Quorum, vote: Tensor) -> None:
        """The one moment at which a step is decided. A method of its own so that a test can lose it."""
        quorum.group.sum(vote)

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
        """The update itself."""
        self._gradients.mul_(decision.factor)
        self._optimizer.update(decision.rate)

    def _tentative(self, bucket: int) -> Tensor:
        """The parameters of a bucket as they will be if the vote is for it; the same arithmetic as in _apply."""
        hyper = self._spec.hyperparameters
        assert self._place is not None
        start, stop = self._shards.places(self._place)[bucket]
        factor = 1.0 / (hyper.batch_size * hyper.sequence_length * self.progress.scale)  # as decide() has it
        gradients = self._gradients[start:stop] * factor
        vectors = [vector[start:stop].clone() for vector in self._vectors.values()]
        parts = segments(self._layout, self._shards.total, [self._shards.pieces[bucket][self._place]])
        optimizer = Optimizer(vectors[0], gradients, parts, hyper, vectors[1:])
        optimizer.updates = self.progress.updates
        optimizer.update(learning_rate(hyper, self.progress.step))
        return vectors[0]

    def _evaluate(self, quorum: Quorum) -> None:
        if protocol.stale(quorum):
            self._serve()
        self.progress.evaluated(mean_loss(quorum.group))
        self._journal.evaluation(quorum, self.progress, writes=self.leads)

    def _finish(self, quorum: Quorum) -> bool:
        """The last checkpoint; then, asked again, the exact parameters for the model."""
        if protocol.done(quorum):
            self._trade.serve(self._parameters, exact=True)
            return True
        self._checkpoints.wait()
        self._save(quorum.attempt)
        self._checkpoints.wait()
        self._done = True
        return False

    def _save(self, attempt: int) -> None:
        """This server's part of a checkpoint of this step, once, in the background."""
        wanted = (self.progress.step, attempt)
        if self._saved != wanted and self._filled and self._place is not None:
            begun = self._checkpoints.save(
                self._vectors,
                self.progress,
                attempt,
                self._layout,
                part=self._place,
                parts=self._servers,
                ranges=self._ranges,
                before=self._journal.metrics.flush if self.leads else lambda: None,
            )
            self._saved = wanted if begun else self._saved
