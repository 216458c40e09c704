"""Ownership, the exchange over real gloo groups (the members are threads), and the cost model."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchft import ProcessGroupGloo

from trainer.cluster.delegate import _local_store
from trainer.cluster.group import GroupFailed, MemberGroup
from trainer.contract import exchange_cost
from trainer.contract.exchange_cost import Links, Plan
from trainer.parallel.exchange import Exchange
from trainer.parallel.ownership import NORM_BLOCKS, Lane, Ownership, lanes, norm_block

T = TypeVar("T")
PATIENCE = 60.0
# The number of trainers, of servers, and of processes of a trainer; and how these share the vector.
SHAPES = [
    (1, 1, 1, "slices"),
    (2, 1, 1, "slices"),
    (3, 2, 1, "slices"),
    (2, 3, 1, "slices"),
    (2, 1, 2, "slices"),
    (2, 3, 3, "slices"),
    (3, 2, 2, "rows"),
    (2, 3, 3, "rows"),
]
WIRES = [torch.float32, torch.bfloat16]
PLANS: list[Plan] = ["star", "hierarchical"]
TOTAL, BUCKET = 64 * 71, 64 * 16  # the last bucket is not whole, and there are 5, more than are sent at a time


def rows(total: int, processes: int, seed: int) -> list[Lane]:
    """Return lanes that hold rows of tensors, as FSDP2 cuts them: of any size, some of none, with gaps in between."""
    chance, start, ranges = random.Random(seed), 0, [[] for _ in range(processes)]  # type: ignore[var-annotated]
    while start < total:
        row = min(chance.choice([1, 3, 64, 200]), total - start)
        number = max(1, min(chance.randrange(1, 30), (total - start) // row))
        most = -(-number // processes)
        for k in range(processes):
            first, last = (start + min(number, most * i) * row for i in (k, k + 1))
            if first < last:
                ranges[k].append((first, last))
        start += -(-number * row // 64) * 64
    return [Lane(tuple(own)) for own in ranges]


# -- shards ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2 * 10**9))
def test_norm_blocks_are_few_and_no_larger_than_they_must_be(total: int) -> None:
    block = norm_block(total)
    assert block >= 64
    assert block & (block - 1) == 0
    assert -(-total // block) <= NORM_BLOCKS
    assert block == 64 or -(-total // (block // 2)) > NORM_BLOCKS


@given(st.integers(0, 60_000), st.integers(1, 9), st.integers(1, 20_000), st.booleans())
def test_shards_cover_the_vector_in_whole_blocks_and_are_balanced(
    units: int, servers: int, bucket: int, large: bool
) -> None:
    total = units * 64 * (1000 if large else 1)
    shards, block = Ownership(total, servers, bucket * (1000 if large else 1)), norm_block(total)
    edges = [edge for pieces in shards.pieces for piece in pieces for edge in piece]
    assert edges == sorted(edges)
    assert edges[::2] == [0, *edges[1:-1:2]] if edges else total == 0  # each piece begins where the one before it ends
    assert all(edge % block == 0 or edge == total for edge in edges)
    assert [(pieces[0][0], pieces[-1][1]) for pieces in shards.pieces] == shards.buckets
    assert all(len(pieces) == servers for pieces in shards.pieces)
    sizes = [shards.size(server) for server in range(servers)]
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 2 * block
    for server in range(servers):
        owned, places = shards.owned(server), shards.places(server)
        assert all(first[1] < second[0] for first, second in pairwise(owned))
        assert [stop - start for start, stop in places] == [p[server][1] - p[server][0] for p in shards.pieces]
        assert [start for start, _ in places] == [0, *(stop for _, stop in places)][: len(places)]


def test_shards_of_gpt2_on_three_servers_are_of_equal_size() -> None:
    shards = Ownership(124_475_904, 3)
    assert len(shards.buckets) == 60
    assert [round(shards.size(server) / 2**20, 1) for server in range(3)] == [39.6, 39.6, 39.6]


# -- lanes -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60_000), st.integers(1, 9), st.integers(1, 20_000), st.booleans())
def test_lanes_cut_each_bucket_into_equal_slices_of_whole_blocks(
    units: int, processes: int, bucket: int, large: bool
) -> None:
    total, bucket = units * 64 * (1000 if large else 1), bucket * (1000 if large else 1)
    block, made = norm_block(total), lanes(total, processes, bucket)
    assert len({lane.size for lane in made}) == 1
    assert all(lane.aligned for lane in made)
    length = sum(lane.size for lane in made)  # of the flat vector
    assert total <= length < total + processes * block
    assert length == total or processes > 1
    buckets = Ownership(total, 3, bucket, processes).buckets
    for start, stop in [*buckets[:-1], (buckets[-1][0], length)]:
        held = [lane.held(start, stop) for lane in made]
        assert held[0][0][0] == start
        assert [ranges[0][1] for ranges in held] == [*(ranges[0][0] for ranges in held[1:]), stop]
        assert {len(ranges) for ranges in held} == {1}
        assert len({ranges[0][1] - ranges[0][0] for ranges in held}) == 1
        assert processes == 1 or all((ranges[0][1] - ranges[0][0]) % block == 0 for ranges in held)
        assert held[0] == [(start, start + (stop - start) // processes)]


@given(st.integers(1, 400), st.integers(1, 5), st.integers(1, 4), st.integers(64, 9_000), st.integers())
def test_servers_and_lanes_have_the_same_elements_in_the_same_order(
    units: int, servers: int, processes: int, bucket: int, seed: int
) -> None:
    total = units * 64
    for made in (rows(total, processes, seed), lanes(total, processes, bucket)):
        shards, flat = Ownership(total, servers, bucket, processes), torch.arange(total + 64 * processes)
        own = [torch.cat([flat[:0], *(flat[a:b] for a, b in shards.owned(server))]) for server in range(servers)]
        met = torch.zeros(total, dtype=torch.int64)
        for lane in made:
            vector = torch.cat([flat[:0], *(flat[start:stop] for start, stop in lane.ranges)])
            assert len(vector) == lane.size
            parts, segments = shards.parts(lane), [shards.segments(server, lane) for server in range(servers)]
            edges = [edge for bucket_parts in parts for part in bucket_parts for edge in part]
            assert edges[0] == 0
            assert edges[1:-1:2] == edges[2::2]  # the parts follow each other
            for k, bucket_parts in enumerate(parts):
                for server, (start, stop) in enumerate(bucket_parts):
                    shared = torch.cat([own[server][:0], *(own[server][a:b] for a, b in segments[server][k])])
                    assert torch.equal(shared, vector[start:stop])
                    met[shared] += 1
        assert int(met.max()) == 1
        assert bool((met == 1).all()) or not all(lane.aligned for lane in made)


def test_lane_of_one_process_alone_is_the_flat_vector() -> None:
    shards = Ownership(124_475_904, 3)
    (lane,) = lanes(124_475_904, 1)
    assert lane.ranges == ((0, 124_475_904),)
    assert shards.parts(lane) == shards.pieces
    assert [ranges[0] for ranges in shards.segments(1, lane)] == shards.places(1)


# -- the exchange ------------------------------------------------------------------------------------------------------


Vectors = dict[tuple[int, int], torch.Tensor]  # by lane and rank; a server has one, the same for all lanes


class Members:
    """The groups of a test's members: one for each lane. Each member has a thread in each of its lanes."""

    def __init__(self, shape: tuple[int, int, int, str], stack: ExitStack) -> None:
        self.trainers, self.servers, processes, kind = shape
        self.size = self.trainers + self.servers
        self.shards = Ownership(TOTAL, self.servers, BUCKET, processes)
        self.lanes = rows(TOTAL, processes, 1) if kind == "rows" else lanes(TOTAL, processes, BUCKET)
        self._threads = stack.enter_context(ThreadPoolExecutor(processes * self.size))
        self._store = _local_store("127.0.0.1")
        self.groups = self.all(self._join)
        for group in self.groups.values():
            stack.callback(group.close)

    def _join(self, lane: int, rank: int) -> MemberGroup:
        members = ProcessGroupGloo(timeout=timedelta(seconds=PATIENCE))
        members.configure(f"127.0.0.1:{self._store.port}/{lane}", f"member-{rank}", rank, self.size, 0)
        return MemberGroup(members, rank, self.size, torch.device("cpu"))

    def all(self, call: Callable[[int, int], T]) -> dict[tuple[int, int], T]:
        """Call the function for each lane and rank, all at the same time."""
        places = [(lane, rank) for lane in range(len(self.lanes)) for rank in range(self.size)]
        futures = {place: self._threads.submit(call, *place) for place in places}
        return {place: future.result(PATIENCE) for place, future in futures.items()}

    def exchanges(self, plan: Plan, wire: torch.dtype) -> dict[tuple[int, int], Exchange]:
        return {
            (lane, rank): Exchange(group, self.trainers, self.shards, self.lanes[lane], plan, wire)
            for (lane, rank), group in self.groups.items()
        }

    def part(self, vector: torch.Tensor, lane: int, rank: int) -> torch.Tensor:
        """Return a trainer's lane of a flat vector, or a server's part, with nan where no lane has an element."""
        if rank < self.trainers:
            padded = torch.nn.functional.pad(vector, (0, 64 * len(self.lanes)))  # the last slices reach beyond the end
            return torch.cat([padded[start:stop] for start, stop in self.lanes[lane].ranges])
        held = torch.full_like(vector, torch.nan)
        for start, stop in (pair for lane in self.lanes for pair in lane.ranges):
            held[start:stop] = vector[start:stop]
        return torch.cat([held[start:stop] for start, stop in self.shards.owned(rank - self.trainers)])

    def empty(self) -> Vectors:
        """Return vectors of wrong values."""
        vectors = {place: torch.full_like(self.part(torch.zeros(TOTAL), *place), torch.nan) for place in self.groups}
        return {(lane, rank): vectors[lane if rank < self.trainers else 0, rank] for lane, rank in vectors}

    def gradients(self, factor: float = 1.0) -> list[torch.Tensor]:
        """Return each trainer's gradient, so different in size that the order of a sum shows in its last bits."""
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(TOTAL, generator=generator) * 10.0**rank * factor for rank in range(self.trainers)]

    def assert_parts(self, vectors: Vectors, expected: torch.Tensor, *, of_servers: bool) -> None:
        """Compare the trainers' or the servers' vectors with their parts of the expected one, bit for bit."""
        for (lane, rank), vector in vectors.items():
            if (rank >= self.trainers) is of_servers:
                right, places = self.part(expected, lane, rank), self.shards.parts(self.lanes[lane])
                if not of_servers:  # the last slices' padding does not travel
                    right[places[-1][-1][1] :] = torch.nan
                torch.testing.assert_close(vector, right, rtol=0, atol=0, equal_nan=True)


@contextmanager
def connected(shape: tuple[int, int, int, str]) -> Iterator[Members]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        yield Members(shape, stack)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "{}+{}-{}-{}".format(*shape))
def members(request: pytest.FixtureRequest) -> Iterator[Members]:
    with connected(request.param) as made:
        yield made


def in_order(gradients: list[torch.Tensor], wire: torch.dtype) -> torch.Tensor:
    """Return the expected sum: of the values that were sent, in rank order, in fp32."""
    total = gradients[0].to(wire).float()
    for gradient in gradients[1:]:
        total = total + gradient.to(wire).float()
    return total


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_exchange_sums_in_rank_order_and_returns_the_parameters(
    members: Members, plan: Plan, wire: torch.dtype
) -> None:
    """Each exchange runs twice, as buffers are reused.

    Both plans, whatever the lanes, are compared with the same bits, so they are equal too.
    """
    exchanges = members.exchanges(plan, wire)
    for factor in (1.0, -3.0):
        gradients = members.gradients(factor)
        expected = in_order(gradients, wire)
        results, parameters, exact = members.empty(), members.empty(), members.empty()

        def step(*place: int) -> None:
            exchange, (lane, rank) = exchanges[place], place  # type: ignore[index]
            if rank < members.trainers:
                exchange.push(members.part(gradients[rank], lane, rank))  # noqa: B023
                exchange.pull(parameters[lane, rank])  # noqa: B023
                exchange.pull(exact[lane, rank], exact=True)  # noqa: B023
            else:
                exchange.collect(results[lane, rank])  # noqa: B023
                exchange.serve(results[lane, rank])  # noqa: B023
                exchange.serve(results[lane, rank], exact=True)  # noqa: B023

        members.all(step)
        members.assert_parts(results, expected, of_servers=True)
        members.assert_parts(parameters, expected.to(wire).float(), of_servers=False)
        members.assert_parts(exact, expected, of_servers=False)


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_interleaved_exchange_returns_parameters_while_gradients_are_sent(
    members: Members, plan: Plan, wire: torch.dtype
) -> None:
    """The new parameters are minus the sum: each part must be there when the server is asked for it."""
    exchanges, gradients = members.exchanges(plan, wire), members.gradients()
    expected = in_order(gradients, wire)
    results = members.empty()

    def step(lane: int, rank: int) -> None:
        if rank < members.trainers:
            exchanges[lane, rank].push_and_pull(members.part(gradients[rank], lane, rank), results[lane, rank])
            return
        own, segments = results[lane, rank], members.shards.segments(rank - members.trainers, members.lanes[lane])

        def update(bucket: int) -> torch.Tensor:
            return -torch.cat([own[:0], *(own[start:stop] for start, stop in segments[bucket])])

        exchanges[lane, rank].collect_and_serve(own, update)

    members.all(step)
    members.assert_parts(results, expected, of_servers=True)
    members.assert_parts(results, -expected.to(wire).float(), of_servers=False)


@pytest.mark.parametrize("plan", PLANS)
def test_exchange_calls_ready_and_arrived_for_each_bucket_in_order(members: Members, plan: Plan) -> None:
    """The exchange sends what `ready` wrote, and `arrived` sees the values that came."""
    exchanges, results = members.exchanges(plan, torch.float32), members.empty()
    asked: dict[tuple[int, int], list[int]] = {place: [] for place in results}
    told: dict[tuple[int, int], list[int]] = {place: [] for place in results}
    buckets = range(len(members.shards.buckets))

    def step(lane: int, rank: int) -> None:
        if rank >= members.trainers:
            exchanges[lane, rank].collect(results[lane, rank])
            exchanges[lane, rank].serve(results[lane, rank])
            return
        gradient, result = torch.full((members.lanes[lane].size,), torch.nan), results[lane, rank]
        parts = [slice(parts[0][0], parts[-1][1]) for parts in members.shards.parts(members.lanes[lane])]

        def ready(bucket: int) -> None:
            asked[lane, rank].append(bucket)
            gradient[parts[bucket]] = bucket + 1

        def arrived(bucket: int) -> None:
            told[lane, rank].append(bucket)
            assert bool((result[parts[bucket]] == (bucket + 1) * members.trainers).all())

        exchanges[lane, rank].push(gradient, ready)
        exchanges[lane, rank].pull(result, arrived)

    members.all(step)
    assert len(buckets) > 4
    for place in asked:
        expected = list(buckets) if place[1] < members.trainers else []
        assert (asked[place], told[place]) == (expected, expected[::-1])


def test_fill_is_exact_with_a_bf16_wire(members: Members) -> None:
    exchanges, vectors = members.exchanges("star", torch.bfloat16), members.empty()
    first = torch.randn(TOTAL, generator=torch.Generator().manual_seed(2))
    for lane in range(len(members.lanes)):
        vectors[lane, 0].copy_(members.part(first, lane, 0))
    members.all(lambda *place: exchanges[place].fill(vectors[place]))
    members.assert_parts(vectors, first, of_servers=True)
    assert all(bool(v.isnan().all()) for (_, rank), v in vectors.items() if 1 <= rank < members.trainers)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("lost", [1, 4])  # a trainer and a server
def test_exchange_without_a_lost_member_fails_for_the_others(plan: Plan, lost: int) -> None:
    with connected((3, 2, 1, "slices")) as members:
        exchanges, gradients, results = members.exchanges(plan, torch.float32), members.gradients(), members.empty()

        def step(lane: int, rank: int) -> None:
            def ready(bucket: int) -> None:
                if rank == lost and bucket == 3:
                    raise RuntimeError("gone")

            group, exchange = members.groups[lane, rank], exchanges[lane, rank]
            try:
                if rank < members.trainers:
                    exchange.push(gradients[rank], ready)
                elif rank == lost:
                    raise RuntimeError("gone")
                else:
                    exchange.collect(results[lane, rank])
                # This sum fails as the vote does: not every member exchanges data with the lost one.
                group.sum(torch.ones(1))
            except RuntimeError:
                group.close()
            except GroupFailed:
                return
            else:
                pytest.fail("the step went on without a member")

        members.all(step)


# -- the cost model ----------------------------------------------------------------------------------------------------

REFERENCE = (10, 3, Links.of(32, 16))  # the reference job: 10 n1-highmem-16 and 3 n1-highmem-8
SIZE = 497.8e6  # GPT-2's size in bytes


def test_exchange_cost_of_the_reference_job_is_that_of_its_table() -> None:
    """The figures were worked out by hand; the hierarchical plan is the interleaved one."""
    trainers, servers, links = REFERENCE
    assert exchange_cost.star(SIZE, *REFERENCE) == pytest.approx(1.66, abs=0.005)
    assert exchange_cost.star(SIZE, *REFERENCE, interleaved=True) == pytest.approx(0.83, abs=0.005)
    assert exchange_cost.hierarchical(SIZE, *REFERENCE, interleaved=True) == pytest.approx(0.24, abs=0.005)
    assert exchange_cost.hierarchical(SIZE, *REFERENCE) == pytest.approx(0.25, abs=0.005)
    assert exchange_cost.all_reduce(SIZE, trainers, links) == pytest.approx(0.22, abs=0.005)
    assert exchange_cost.choose(SIZE, trainers, servers, links) == "hierarchical"
    assert exchange_cost.describe("hierarchical", SIZE, *REFERENCE) == (
        "hierarchical: 0.249 s a step predicted (star 1.66 s, all-reduce without servers 0.224 s)"
    )


def test_exchange_cost_with_bf16_halves_all_but_the_forwarded_sums() -> None:
    """Trainers forward their sums to servers as fp32."""
    halved = exchange_cost.hierarchical(SIZE / 2, *REFERENCE, sums=2.0)
    assert exchange_cost.hierarchical(SIZE, *REFERENCE) / 2 < halved < exchange_cost.hierarchical(SIZE, *REFERENCE)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1, 100), st.floats(1, 100), st.booleans())
def test_choose_takes_star_where_the_servers_keep_up(
    trainers: int, servers: int, trainer: float, server: float, interleaved: bool
) -> None:
    links = Links.of(trainer, server)
    chosen = exchange_cost.choose(SIZE, trainers, servers, links, interleaved)
    if chosen == "hierarchical":
        slow = exchange_cost.star(SIZE, trainers, servers, links, interleaved)
        assert exchange_cost.hierarchical(SIZE, trainers, servers, links, interleaved) < slow
    if servers * links.server >= trainers * links.trainer:
        assert chosen == "star"
        if interleaved and trainers > 2:
            assert exchange_cost.star(SIZE, trainers, servers, links, True) < exchange_cost.all_reduce(
                SIZE, trainers, links
            )


def test_choose_with_unknown_links_decides_by_the_numbers_of_members() -> None:
    links = Links.of(None, 16)
    assert exchange_cost.choose(SIZE, 4, 4, links) == "star"
    assert exchange_cost.choose(SIZE, 10, 3, links) == "hierarchical"
    assert "not known" in exchange_cost.describe("star", SIZE, 4, 4, links)
