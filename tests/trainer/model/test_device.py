"""The device and precision of a process, on GPUs that torch is made to see."""

from collections.abc import Callable

import pytest
import torch

from trainer.contract.errors import InputError
from trainer.model.device import pick


@pytest.fixture
def see_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], list[torch.device]]:
    """Return a function that lets torch see GPUs of a compute capability. It returns the list of those made current."""

    def see(capability: tuple[int, int]) -> list[torch.device]:
        current: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
        return current

    return see


@pytest.mark.parametrize(
    ("precision", "capability", "dtype"),
    [
        ("auto", (9, 0), torch.bfloat16),
        ("auto", (8, 0), torch.bfloat16),
        ("auto", (7, 5), torch.float16),
        ("auto", (6, 1), None),
        ("bf16", (8, 9), torch.bfloat16),
        ("fp16", (9, 0), torch.float16),
        ("fp32", (9, 0), None),
    ],
)
def test_pick_on_a_gpu_takes_the_precision_that_it_has(
    see_gpus: Callable[[tuple[int, int]], list[torch.device]],
    precision: str,
    capability: tuple[int, int],
    dtype: torch.dtype | None,
) -> None:
    current = see_gpus(capability)
    assert pick(precision, 3) == (torch.device("cuda:3"), dtype)
    assert current == [torch.device("cuda:3")]


def test_pick_of_bf16_on_a_gpu_that_imitates_it_is_refused(
    see_gpus: Callable[[tuple[int, int]], list[torch.device]],
) -> None:
    see_gpus((7, 5))
    with pytest.raises(InputError, match="found bf16, which a Tesla T4 emulates slowly; use fp16"):
        pick("bf16")


def test_pick_of_fp16_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^hyperparameters.precision: fp16 needs a GPU"):
        pick("fp16")
    assert pick("auto") == (torch.device("cpu"), None)
