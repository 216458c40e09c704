"""How fast machines train: published figures, and those of a GPU that was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.fleet.catalog import ACCELERATORS
from infra.sizing import measured_gpus
from infra.sizing.speed import GPUS, gpu_speed
from trainer.contract.geometry import PEAKS
from trainer.contract.options import Hyperparameters

H100 = "nvidia-h100-80gb"
ENTRY = {
    "device": "NVIDIA H100 80GB HBM3",
    "model": "gpt2",
    "precision": "bf16",
    "compiled": True,
    "tokensPerSecond": 500_000.0,
    "mfu": 0.43,
    "peakMemory": 3e10,
    "date": "2026-12-01",
    "commit": "0123456789abcdef",
}


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that replaces the table by entries like ENTRY, each with some values changed."""

    paths = iter(tmp_path / f"{number}.json" for number in range(9))  # a file is read once

    def replace(*entries: dict[str, Any]) -> None:
        path = next(paths)
        path.write_text(json.dumps([ENTRY | entry for entry in entries]))
        monkeypatch.setattr(measured_gpus, "TABLE", path)

    return replace


def compiled(precision: str = "auto") -> Hyperparameters:
    return Hyperparameters(compile=True, precision=precision)


def test_speeds_exist_for_every_gpu_of_the_catalog() -> None:
    assert GPUS.keys() == ACCELERATORS.keys()
    assert all(gpu.name in PEAKS for gpu in GPUS.values())


def test_table_of_the_checkout_is_valid() -> None:
    assert isinstance(measured_gpus.table(measured_gpus.TABLE), tuple)


def test_measured_gpu_replaces_the_published_range(measure: Any) -> None:
    measure({})
    found = gpu_speed(H100, compiled())
    assert found.flops.low == pytest.approx(0.9 * 0.43 * 989e12)
    assert found.flops.high == pytest.approx(1.1 * 0.43 * 989e12)
    assert "measured on NVIDIA H100 80GB HBM3 with gpt2, 2026-12-01, commit 0123456" in found.origin


@pytest.mark.parametrize(
    "other",
    [
        {"device": "NVIDIA H100 PCIe"},
        {"device": "NVIDIA L4"},
        {"compiled": False},
        {"precision": "fp32"},
        {"mfu": None},
    ],
)
def test_measured_gpu_of_another_kind_changes_nothing(measure: Any, other: dict[str, Any]) -> None:
    measure()
    published = gpu_speed(H100, compiled())
    measure(other)
    assert gpu_speed(H100, compiled()) == published


def test_newest_measurement_counts(measure: Any) -> None:
    measure({"date": "2026-12-03", "mfu": 0.4}, {"date": "2026-12-02", "mfu": 0.2})
    assert gpu_speed(H100, compiled()).flops.middle == pytest.approx(0.4 * 989e12, rel=0.01)


def test_table_with_unknown_keys_is_refused(measure: Any) -> None:
    measure({"speed": 1})
    with pytest.raises(ValidationError):
        gpu_speed(H100, compiled())


def test_fp32_on_a_gpu_with_tensor_cores_is_tf32() -> None:
    assert "of 494 TFLOP/s" in gpu_speed(H100, compiled("fp32")).origin
    assert "of 8.1 TFLOP/s" in gpu_speed("nvidia-tesla-t4", compiled("fp32")).origin
