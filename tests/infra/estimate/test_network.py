"""What a step waits for: between GPUs, between machines, and what computing hides."""

from pathlib import Path
from typing import Any

import pytest

from infra.estimate.network import Exchange, exchange
from infra.fleet.fleet import resolve_fleet
from infra.sizing import workload
from infra.sizing.ranges import NOTHING, Range
from tests.infra.google_graph import make_root, stack_values
from tests.infra.google_graph import read as load

LONG, NONE = Range(10, 20), Range(0, 0)  # seconds of computing that hide all they can, and nothing
GRADIENT = 124_475_904 * 4  # bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def exchanged(
    root: Path, machine: str, workers: int, computing: Range, *, servers: int = 0, **parallel: Any
) -> Exchange:
    """Estimate the exchange of gpt2 with 64 sequences a step."""
    values = stack_values()
    training = {"scaleTier": "CUSTOM", "masterType": machine, "workerCount": workers, "parameterServerCount": servers}
    training |= {"workerType": machine} if workers else {}
    training |= {"parameterServerType": "n1-highmem-8"} if servers else {}
    values["gpt2-training:trainingInput"] = training | {"hyperparameters": {"batchSize": 64, "steps": 1000}}
    values |= {"gpt2-training:machines": {}, "gpt2-training:limits": {}, "gpt2-training:parallel": parallel}
    stack = load(values, root)
    size = workload.dimensions(stack)
    assert size is not None
    return exchange(stack, resolve_fleet(stack), size, computing)


def test_process_alone_waits_for_nobody(root: Path) -> None:
    assert exchanged(root, "a2-highgpu-1g", 0, LONG).seconds == NOTHING


def test_gpus_of_a_machine_sum_and_gather_at_their_own_bandwidth(root: Path) -> None:
    found = exchanged(root, "a2-highgpu-8g", 0, NONE)
    assert found.seconds.low == pytest.approx(2 * 7 / 8 * GRADIENT / 400e9)
    assert found.seconds.high == pytest.approx(2 * 7 / 8 * GRADIENT / 100e9)
    assert "8 GPUs: 0.436 GB of gradients" in found.origin


def test_lanes_of_a_machine_share_its_link(root: Path) -> None:
    """Between machines eight GPUs send what one would: each a lane, an eighth of the gradient."""
    one, eight = (exchanged(root, f"a2-highgpu-{n}g", 1, NONE) for n in (1, 8))
    assert one.seconds.low == pytest.approx(1.02 * GRADIENT / (24e9 / 8))
    inside = 2 * 7 / 8 * GRADIENT / 400e9
    assert eight.seconds.low == pytest.approx(1.02 * GRADIENT / (100e9 / 8) + inside)
    assert "of 498 MB in fp32 in 8 lanes over one link" in eight.origin


def test_bf16_on_the_wire_halves_what_travels_between_machines(root: Path) -> None:
    whole, half = (exchanged(root, "a2-highgpu-1g", 1, NONE, wire=wire) for wire in ("fp32", "bf16"))
    assert half.seconds.low == pytest.approx(whole.seconds.low / 2)
    assert half.seconds.high == pytest.approx(whole.seconds.high / 2)


def test_backward_pass_hides_all_gradients_at_best_and_half_of_them_at_worst(root: Path) -> None:
    shown, hidden = (exchanged(root, "a2-highgpu-1g", 1, computing) for computing in (NONE, LONG))
    assert hidden.seconds.low == 0
    assert hidden.seconds.high == pytest.approx(shown.seconds.high / 2)


def test_gathered_parameters_of_replicas_are_waited_for_and_those_of_fsdp_are_hidden(root: Path) -> None:
    replicas = exchanged(root, "a2-highgpu-8g", 0, LONG)
    sharded = exchanged(root, "a2-highgpu-8g", 0, LONG, parallelism="fsdp")
    assert replicas.seconds.low == pytest.approx(7 / 8 * GRADIENT / 400e9)
    assert sharded.seconds.low == 0
    assert "parameters gathered 2 times" in sharded.origin


def test_servers_bring_parameters_that_are_waited_for(root: Path) -> None:
    shown, hidden = (exchanged(root, "a2-highgpu-1g", 1, computing, servers=3) for computing in (NONE, LONG))
    assert shown.plan == hidden.plan != ""
    assert hidden.seconds.low == pytest.approx(shown.seconds.low / 2)
